// What a real engine says to npm's `openai`: whole, streamed, and by the Responses API.
import OpenAI from "openai";
import { env } from "node:process";

const api = new OpenAI({ maxRetries: 0 });
const model = env.OPENAI_MODEL;
const messages = [{ role: "user", content: "Hello" }];

const whole = await api.chat.completions.create({ model, messages, max_tokens: 5 });

let streamed = "";
const stream = await api.chat.completions.create({ model, messages, max_tokens: 5, stream: true });
for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";

const response = await api.responses.create({ model, input: "Hello", max_output_tokens: 5 });

console.log(JSON.stringify([whole.choices[0].message.content, streamed, response.output_text]));

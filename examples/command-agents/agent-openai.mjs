// The same as agent.mjs with the package `openai` (`npm install openai`), whose client finds OPENAI_BASE_URL and
// OPENAI_API_KEY by itself; the answer is streamed.
import OpenAI from "openai";
import { env, stdin } from "node:process";
import { json } from "node:stream/consumers";

const task = await json(stdin);
const stream = await new OpenAI().chat.completions.create({
  model: env.OPENAI_MODEL,
  messages: [{ role: "user", content: task.question }],
  stream: true,
});
let answer = "";
for await (const chunk of stream) answer += chunk.choices[0]?.delta?.content ?? "";

console.log(task.question, answer);
console.log(JSON.stringify({ reward: answer.trim() === task.answer ? 1 : 0 }));

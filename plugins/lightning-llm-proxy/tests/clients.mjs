// What npm's `openai` sees of each API; its endpoint is OPENAI_BASE_URL.
import OpenAI from "openai";

const api = new OpenAI({ maxRetries: 0 });
const model = "m";
const messages = [{ role: "user", content: "Hello" }];
const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
const seen = {};

async function all(stream, read) {
  const found = [];
  for await (const event of stream) found.push(read(event));
  return found.filter((each) => each !== undefined);
}

function named(calls) {
  return calls.map((call) => ({ name: call.function.name, arguments: call.function.arguments }));
}

const chat = await api.chat.completions.create({ model, messages });
seen.chat = [chat.choices[0].message.content, chat.choices[0].logprobs];

const raw = await api.chat.completions.create({ model, messages }).withResponse();
seen.raw = [raw.request_id, raw.data.choices[0].message.content];

const stream = await api.chat.completions.create({ model, messages, stream: true });
seen.stream = await all(stream, (chunk) => chunk.choices[0].delta.content);

const called = await api.chat.completions.create({ model, messages, tools });
seen.tools = named(called.choices[0].message.tool_calls);

const streamed = await api.chat.completions.stream({ model, messages, tools }).finalChatCompletion();
seen["streamed tools"] = named(streamed.choices[0].message.tool_calls);

const response = await api.responses.create({ model, input: "Hello" });
seen.responses = [response.output_text, response.output[1].name];

const events = await api.responses.create({ model, input: "Hello", stream: true });
seen["streamed responses"] = await all(events, (event) =>
  event.type === "response.output_text.delta" ? event.delta : undefined,
);

const text = await api.completions.create({ model, prompt: "The sun" });
seen.text = [text.choices[0].text];

const embedded = await api.embeddings.create({ model, input: "Hello" });
seen.embeddings = Array.from(embedded.data[0].embedding);

seen.models = await all(api.models.list(), (each) => each.id);

seen.errors = {};
for (const user of ["400", "401", "403", "404", "409", "422", "429", "500"]) {
  try {
    await api.chat.completions.create({ model, messages, user });
  } catch (error) {
    seen.errors[user] = [error.constructor.name, error.status, error.requestID];
  }
}
try {
  await api.chat.completions.create({ model: "other", messages });
} catch (error) {
  seen.refused = [error.constructor.name, error.message];
}

const endless = await api.chat.completions.create({ model, messages, stream: true, user: "endless" });
for await (const chunk of endless) {
  if (chunk.choices[0].delta.content) endless.controller.abort();
}

console.log(JSON.stringify(seen));

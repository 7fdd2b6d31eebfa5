// An agent in JavaScript, without any package: it reads a task, asks a model, and prints what its answer is worth.
// It needs Node.js 18 or newer.
import { env, stdin } from "node:process";
import { json } from "node:stream/consumers";

const task = await json(stdin);
const response = await fetch(`${env.OPENAI_BASE_URL}/chat/completions`, {
  method: "POST",
  headers: { "Content-Type": "application/json", Authorization: `Bearer ${env.OPENAI_API_KEY}` },
  body: JSON.stringify({ model: env.OPENAI_MODEL, messages: [{ role: "user", content: task.question }] }),
});
if (!response.ok) throw new Error(`the model's endpoint answered ${response.status}: ${await response.text()}`);
const answer = (await response.json()).choices[0].message.content;

console.log(task.question, answer);
console.log(JSON.stringify({ reward: answer.trim() === task.answer ? 1 : 0 }));

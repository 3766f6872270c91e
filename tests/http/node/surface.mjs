// The package's helpers for forms, tools, responses and completions; prints what came, as one line of JSON.
// SPECVLM_BASE_URL comes from the environment; see ../../clients/test_openai_npm.py.
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({
  baseURL: process.env.SPECVLM_BASE_URL,
  apiKey: process.env.SPECVLM_API_KEY ?? "none",
  maxRetries: 0,
});
const model = (await client.models.list()).data[0].id;
const Shape = z.object({ kind: z.enum(["circle", "square"]), red: z.boolean() });
const chat = {
  model,
  messages: [{ role: "user", content: "Describe a square." }],
  max_tokens: 80,
  temperature: 0,
};
const flat = { model, input: "Describe a square.", max_output_tokens: 80, temperature: 0 };
const forced = { tool_choice: "required", parallel_tool_calls: false };

const form = { ...chat, response_format: zodResponseFormat(Shape, "shape") };
const parsed = await client.chat.completions.parse(form);
const stream = client.chat.completions.stream(form);
const streamed = await stream.finalChatCompletion();

const draw = { name: "draw", parameters: Shape };
const called = await client.chat.completions.parse({ ...chat, ...forced, tools: [zodFunction(draw)] });
const call = called.choices[0].message.tool_calls[0];
const answered = await client.chat.completions.create({
  ...chat,
  max_tokens: 8,
  messages: [
    ...chat.messages,
    called.choices[0].message,
    { role: "tool", tool_call_id: call.id, content: "Drawn." },
  ],
});

const response = await client.responses.parse({ ...flat, text: { format: zodTextFormat(Shape, "shape") } });
const tool = await client.responses.parse({ ...flat, ...forced, tools: [zodResponsesFunction(draw)] });
const plain = await client.responses.create({ ...flat, max_output_tokens: 8 });
const events = [];
let text = "";
for await (const event of await client.responses.create({ ...flat, max_output_tokens: 8, stream: true })) {
  events.push(event.type);
  text += event.type === "response.output_text.delta" ? event.delta : "";
}

const prompt = { model, prompt: "One, two,", max_tokens: 8, temperature: 0 };
const completion = await client.completions.create(prompt);
let completed = "";
for await (const chunk of await client.completions.create({ ...prompt, stream: true })) {
  completed += chunk.choices[0]?.text ?? "";
}

console.log(
  JSON.stringify({
    parsed: parsed.choices[0].message.parsed,
    streamed: streamed.choices[0].message.parsed,
    call: { name: call.function.name, parsed: call.function.parsed_arguments },
    answered: answered.choices[0].message.content,
    response: response.output_parsed,
    tool: { type: tool.output[0].type, parsed: tool.output[0].parsed_arguments },
    plain: plain.output_text,
    events,
    text,
    completion: completion.choices[0].text,
    completed,
  }),
);

// Streams one chat with a picture and prints what a client saw, as one line of JSON.
// SPECVLM_BASE_URL and SPECVLM_IMAGE (a data URL) come from the environment; see ../test_node_client.py.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.SPECVLM_BASE_URL,
  apiKey: process.env.SPECVLM_API_KEY ?? "none",
  maxRetries: 0,
});

const request = {
  model: (await client.models.list()).data[0].id,
  messages: [
    {
      role: "user",
      content: [
        { type: "image_url", image_url: { url: process.env.SPECVLM_IMAGE } },
        { type: "text", text: "What is in this picture?" },
      ],
    },
  ],
  max_tokens: 12,
  temperature: 0,
};

const whole = await client.chat.completions.create(request);
const stream = await client.chat.completions.create({
  ...request,
  stream: true,
  stream_options: { include_usage: true },
});

let text = "";
let finishReason = null;
let usage = null;
let chunks = 0;
for await (const chunk of stream) {
  chunks += 1;
  const choice = chunk.choices[0];
  text += choice?.delta?.content ?? "";
  finishReason = choice?.finish_reason ?? finishReason;
  usage = chunk.usage ?? usage;
}

// A refusal must arrive as the package's own typed error.
let refusal = null;
try {
  await client.chat.completions.create({ ...request, temperature: 99 });
} catch (error) {
  refusal = { status: error.status, kind: error.constructor.name };
}

console.log(
  JSON.stringify({
    model: request.model,
    whole: {
      text: whole.choices[0].message.content,
      finishReason: whole.choices[0].finish_reason,
      usage: whole.usage,
    },
    stream: { text, finishReason, usage, chunks },
    refusal,
  }),
);

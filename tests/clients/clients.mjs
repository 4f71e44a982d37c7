// Clients from npm against a server at argv[2]: whole answers, streams and drafts.

import OpenAI from "openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const url = `${process.argv[2]}/v1`;
const prompt = "sort up: 4 8 1 9 3";
const answer = "1 3 4 8 9";
const same = (found) => {
  if (found !== answer) throw new Error(`answered ${JSON.stringify(found)}`);
};

async function openaiNode() {
  const client = new OpenAI({ baseURL: url, apiKey: "none" });
  const messages = [{ role: "user", content: prompt }];
  const whole = await client.chat.completions.create({ model: "hybrid", messages });
  same(whole.choices[0].message.content);
  const hybrid = { stream_drafts: true, refine: "none" };
  const stream = await client.chat.completions.create({ model: "hybrid", messages, stream: true, hybrid });
  let text = "";
  let drafts = 0;
  for await (const chunk of stream) {
    text += chunk.choices[0].delta.content ?? ""; // without a check, as naive code does
    drafts += chunk.hybrid?.type === "draft";
  }
  same(text);
  if (!drafts) throw new Error("no draft was read");
  const response = await client.responses.create({ model: "hybrid", input: prompt });
  same(response.output_text);
}

async function aiSdk() {
  const provider = createOpenAICompatible({ name: "hybrid", baseURL: url, apiKey: "none" });
  const model = provider("hybrid");
  same((await generateText({ model, prompt })).text);
  let text = "";
  const providerOptions = { hybrid: { hybrid: { stream_drafts: true } } };
  for await (const part of streamText({ model, prompt, providerOptions }).textStream) text += part;
  same(text);
}

let failed = 0;
for (const check of [openaiNode, aiSdk]) {
  try {
    await check();
    console.log(`ok      ${check.name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${check.name}: ${error}`);
  }
}
process.exit(failed);

// Vercel's AI SDK with its provider for OpenAI: chat completions and responses.
import { createOpenAI } from "@ai-sdk/openai";
import { embed as embedOne, generateText, Output, stepCountIs, streamText, tool as toolOf } from "ai";
import { Contact, ErrorEvent, MAIL, run, sendMail } from "./loop.mjs";

function modelOf(call) {
  const provider = createOpenAI({ baseURL: `${call.url}/v1`, apiKey: call.key });
  return call.api === "responses" ? provider.responses(call.model) : provider.chat(call.model);
}

// The answer as a whole, once it is there.
async function generated(call, options = {}) {
  options = {
    model: modelOf(call),
    prompt: call.prompt,
    maxRetries: call.retries,
    abortSignal: AbortSignal.timeout(call.timeout * 1000),
    ...options,
  };
  if (!call.stream) return generateText(options);
  let failed;
  const result = streamText({ ...options, onError: ({ error }) => (failed ??= error) });
  await result.consumeStream({ onError: (error) => (failed ??= error) });
  if (failed) throw failed instanceof Error ? failed : new ErrorEvent(failed.message);
  return result;
}

async function told(result) {
  return {
    text: await result.text,
    finish: await result.finishReason,
    tokens: (await result.usage).totalTokens ?? null,
  };
}

async function text(call) {
  return told(await generated(call));
}

async function tool(call) {
  const send_mail = toolOf({ description: "Send a mail.", inputSchema: MAIL });
  const options = { tools: { send_mail }, ...(call.forced && { toolChoice: "required" }) };
  const calls = await (await generated(call, options)).toolCalls;
  return { name: calls[0].toolName, arguments: calls[0].input };
}

async function loop(call) {
  const execute = async (given) => sendMail(given);
  const send_mail = toolOf({ description: "Send a mail.", inputSchema: MAIL, execute });
  const options = { tools: { send_mail }, stopWhen: stepCountIs(3) };
  if (call.forced) {
    options.prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" });
  }
  return told(await generated(call, options));
}

async function object(call) {
  const output = Output.object({ schema: Contact });
  return { object: await (await generated(call, { output })).output };
}

async function embed(call) {
  const provider = createOpenAI({ baseURL: `${call.url}/v1`, apiKey: call.key });
  const model = provider.textEmbeddingModel("text-embedding-3-small");
  return { vector: (await embedOne({ model, value: call.prompt, maxRetries: 0 })).embedding };
}

async function hang_up(call) {
  const stop = new AbortController();
  const options = { model: modelOf(call), prompt: call.prompt, maxRetries: 0 };
  const result = streamText({ ...options, abortSignal: stop.signal });
  for await (const piece of result.textStream) {
    stop.abort();
    return { text: piece };
  }
}

function details(error) {
  if (error?.name !== "AI_APICallError") return {};
  const { type = null, code = null } = error.data?.error ?? {};
  const retry_after = error.responseHeaders?.["retry-after"] ?? null;
  return { status_code: error.statusCode ?? null, type, code, retry_after };
}

await run({ text, tool, loop, object, embed, hang_up }, details);

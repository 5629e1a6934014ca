// openai-node: chat completions and responses.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { Contact, ErrorEvent, MAIL, run, sendMail } from "./loop.mjs";

const mail = {
  name: "send_mail",
  description: "Send a mail.",
  parameters: z.toJSONSchema(MAIL),
};

function clientOf(call) {
  return new OpenAI({
    baseURL: `${call.url}/v1`,
    apiKey: call.key,
    maxRetries: call.retries,
    timeout: call.timeout * 1000,
  });
}

function asked(call) {
  return [{ role: "user", content: call.prompt }];
}

async function completion(call, messages, tools) {
  const client = clientOf(call);
  const options = { model: call.model, messages };
  if (tools) options.tools = [{ type: "function", function: mail }];
  if (tools && call.forced && messages.length === 1) options.tool_choice = "required";
  if (!call.stream) return client.chat.completions.create(options);
  const stream = await client.chat.completions.create({
    ...options,
    stream: true,
    stream_options: { include_usage: true },
  });
  const message = { role: "assistant", content: "" };
  let finish, usage;
  for await (const chunk of stream) {
    usage = chunk.usage ?? usage;
    const choice = chunk.choices[0];
    if (!choice) continue;
    finish = choice.finish_reason ?? finish;
    message.content += choice.delta.content ?? "";
    for (const part of choice.delta.tool_calls ?? []) {
      message.tool_calls ??= [];
      const call = (message.tool_calls[part.index] ??= {
        id: part.id,
        type: "function",
        function: { name: part.function.name, arguments: "" },
      });
      call.function.arguments += part.function.arguments ?? "";
    }
  }
  return { choices: [{ message, finish_reason: finish }], usage };
}

async function response(call, input, tools) {
  const client = clientOf(call);
  const options = { model: call.model, input };
  if (tools) options.tools = [{ type: "function", strict: true, ...mail }];
  if (tools && call.forced && input.length === 1) options.tool_choice = "required";
  if (!call.stream) return client.responses.create(options);
  let last;
  let text = "";
  for await (const event of await client.responses.create({ ...options, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
    last = event;
  }
  if (last.response.error) throw new ErrorEvent(last.response.error.message);
  return { ...last.response, output_text: text };
}

function told(call, result) {
  if (call.api === "responses") {
    const finish = result.incomplete_details?.reason ?? result.status;
    return { text: result.output_text, finish, tokens: result.usage?.total_tokens ?? null };
  }
  const { message, finish_reason } = result.choices[0];
  const tokens = result.usage?.total_tokens ?? null;
  return { text: message.content ?? "", finish: finish_reason, tokens };
}

async function text(call) {
  const ask = call.api === "responses" ? response : completion;
  return told(call, await ask(call, asked(call)));
}

function callIn(result) {
  return result.output.find((item) => item.type === "function_call");
}

async function tool(call) {
  if (call.api === "responses") {
    const item = callIn(await response(call, asked(call), true));
    return { name: item.name, arguments: JSON.parse(item.arguments) };
  }
  const result = await completion(call, asked(call), true);
  const made = result.choices[0].message.tool_calls[0].function;
  return { name: made.name, arguments: JSON.parse(made.arguments) };
}

async function loop(call) {
  const turns = asked(call);
  if (call.api === "responses") {
    const first = await response(call, turns, true);
    const { call_id, arguments: given } = callIn(first);
    const output = sendMail(JSON.parse(given));
    turns.push(...first.output, { type: "function_call_output", call_id, output });
    return told(call, await response(call, turns, true));
  }
  const { message } = (await completion(call, turns, true)).choices[0];
  const made = message.tool_calls[0];
  const content = sendMail(JSON.parse(made.function.arguments));
  turns.push(message, { role: "tool", tool_call_id: made.id, content });
  return told(call, await completion(call, turns, true));
}

async function object(call) {
  const client = clientOf(call);
  if (call.api === "responses") {
    const text = { format: zodTextFormat(Contact, "contact") };
    const options = { model: call.model, input: asked(call), text };
    const result = call.stream
      ? await client.responses.stream(options).finalResponse()
      : await client.responses.parse(options);
    return { object: result.output_parsed };
  }
  const response_format = zodResponseFormat(Contact, "contact");
  const options = { model: call.model, messages: asked(call), response_format };
  const result = call.stream
    ? await client.chat.completions.stream(options).finalChatCompletion()
    : await client.chat.completions.parse(options);
  return { object: result.choices[0].message.parsed };
}

async function embed(call) {
  const options = { model: "text-embedding-3-small", input: [call.prompt] };
  const result = await clientOf(call).embeddings.create(options);
  return { vector: result.data[0].embedding };
}

async function image(call) {
  const options = { model: "gpt-image-1", prompt: call.prompt, output_format: "png" };
  return { image: (await clientOf(call).images.generate(options)).data[0].b64_json };
}

async function models(call) {
  const names = [];
  for await (const model of clientOf(call).models.list()) names.push(model.id);
  return { names };
}

async function hang_up(call) {
  const client = clientOf(call);
  if (call.api === "responses") {
    const options = { model: call.model, input: call.prompt, stream: true };
    for await (const event of await client.responses.create(options)) {
      if (event.type === "response.output_text.delta") return { text: event.delta };
    }
  }
  const options = { model: call.model, messages: asked(call), stream: true };
  for await (const chunk of await client.chat.completions.create(options)) {
    const text = chunk.choices[0]?.delta.content;
    if (text) return { text };
  }
}

function details(error) {
  if (!(error instanceof OpenAI.APIError)) return {};
  const { status, type, code, headers } = error;
  const retry_after = headers?.get("retry-after") ?? null;
  return { status_code: status, type: type ?? null, code: code ?? null, retry_after };
}

await run({ text, tool, loop, object, embed, image, models, hang_up }, details);

// Vercel's AI SDK: texts, tools with several steps, objects, agents, conversations.
// Run as `node ai_sdk.mjs URL`, beside the packages that package.json names.
import { createOpenAI } from "@ai-sdk/openai";
import {
  convertToModelMessages,
  Experimental_Agent,
  generateObject,
  generateText,
  Output,
  stepCountIs,
  ToolLoopAgent,
  tool as toolOf,
} from "ai";
import { z } from "zod";

const [address] = process.argv.slice(2);
const MODEL = "gpt-4o-mini";
let current = "";

async function play(...replies) {
  const body = JSON.stringify({ scenario: current, replies });
  await fetch(`${address}/play`, { method: "POST", body });
}

const call = (name, args) => ({ name, arguments: args });

function models() {
  const provider = createOpenAI({ baseURL: `${address}/v1`, apiKey: "no-key" });
  return [provider.chat(MODEL), provider.responses(MODEL)];
}

const weather = toolOf({
  description: "Get the weather in a location",
  inputSchema: z.object({
    location: z.string().describe("The location to get the weather for"),
    unit: z.enum(["C", "F"]).optional(),
  }),
  execute: async ({ location, unit }) => {
    if (location === "Atlantis") throw new Error("no weather station is near Atlantis");
    return { location, temperature: 21, unit: unit ?? "C" };
  },
});

const addResource = toolOf({
  description: `add a resource to your knowledge base.
      If the user provides a random piece of knowledge unprompted, use this tool without asking for confirmation.`,
  inputSchema: z.object({
    content: z.string().describe("the content or resource to add to the knowledge base"),
  }),
  execute: async () => "Resource successfully created and embedded.",
});

const getInformation = toolOf({
  description: "get information from your knowledge base to answer questions.",
  inputSchema: z.object({ question: z.string().describe("the users question") }),
  execute: async () => [{ name: "The user's favourite food is pizza.", similarity: 0.83 }],
});

const Recipe = z.object({
  name: z.string(),
  ingredients: z.array(z.object({ name: z.string(), amount: z.string() })),
  steps: z.array(z.string()).min(1),
});
const LASAGNA = { name: "Lasagna", ingredients: [{ name: "Tomatoes", amount: "1 kg" }], steps: ["Cook."] };

async function texts(model) {
  await play("Ada was a mathematician.", "It rests in the hold.");
  await generateText({ model, system: "You are a helpful assistant.", prompt: "Who was Ada Lovelace?" });
  await generateText({
    model,
    system: "You are a professional writer. You write simple, clear, and concise content.",
    prompt: "Summarize the following article in 3-5 sentences: The ship left at dawn with wool and tin.",
  });
}

async function toolsWithSteps(model) {
  await play(
    [call("weather", { location: "Atlantis" })],
    [call("weather", { place: "Lisbon" })],
    [call("forecast", { location: "Lisbon" })],
    [call("weather", { location: "Lisbon" }), call("weather", { location: "Porto", unit: "F" })],
    "Both cities have 21 degrees.",
  );
  await generateText({
    model,
    tools: { weather },
    stopWhen: stepCountIs(6),
    prompt: "Is it warmer in Lisbon, in Porto or in Atlantis?",
  });
}

async function knowledge(model) {
  await play(
    [call("addResource", { content: "My favourite food is pizza" })],
    "I have noted that.",
    [call("getInformation", { question: "favourite food" })],
    "Pizza!",
  );
  const system = `You are a helpful assistant. Check your knowledge base before answering any questions.
    Only respond to questions using information from tool calls.
    if no relevant information is found in the tool calls, respond, "Sorry, I don't know."`;
  const options = { model, system, tools: { addResource, getInformation }, stopWhen: stepCountIs(5) };
  const messages = [{ role: "user", content: "My favourite food is pizza" }];
  const first = await generateText({ ...options, messages });
  messages.push(...first.response.messages, { role: "user", content: "What do I like to eat?" });
  await generateText({ ...options, messages });
}

async function objects(model) {
  await play(
    JSON.stringify(LASAGNA),
    JSON.stringify({ elements: [{ name: "Kim", kind: "mage" }] }),
    JSON.stringify({ result: "comedy" }),
    JSON.stringify(LASAGNA),
    '{"name": "Soup"',
    JSON.stringify(LASAGNA),
  );
  await generateObject({ model, schema: Recipe, schemaName: "recipe", prompt: "Generate a lasagna recipe." });
  await generateObject({
    model,
    output: "array",
    schema: z.object({ name: z.string(), kind: z.string().describe("Class, e.g. warrior, mage or thief") }),
    prompt: "Generate 3 hero descriptions for a fantasy role playing game.",
  });
  await generateObject({
    model,
    output: "enum",
    enum: ["action", "comedy", "drama"],
    prompt: 'Classify the genre of this plot: "A group of bakers inherits a circus."',
  });
  await generateObject({ model, output: "no-schema", prompt: "Generate a lasagna recipe as JSON." });
  await generateObject({
    model,
    schema: Recipe,
    prompt: "Generate a soup recipe.",
    experimental_repairText: async ({ text, error }) => {
      await generateText({
        model,
        prompt: `The model returned text that does not match the schema.\nError: ${error.message}\nText: ${text}\nReturn the corrected JSON only.`,
      });
      return JSON.stringify(LASAGNA);
    },
  });
  await play([call("weather", { location: "Rome" })], JSON.stringify({ summary: "Mild." }));
  await generateText({
    model,
    tools: { weather },
    stopWhen: stepCountIs(4),
    output: Output.object({ schema: z.object({ summary: z.string() }) }),
    prompt: "Sum up the weather in Rome.",
  });
}

async function repairedCalls(model) {
  await play([call("weather", '{"location": "Bonn"')], JSON.stringify({ location: "Bonn" }), "21 degrees.");
  await generateText({
    model,
    tools: { weather },
    stopWhen: stepCountIs(3),
    prompt: "How warm is it in Bonn?",
    experimental_repairToolCall: async ({ toolCall, error, inputSchema }) => {
      const schema = JSON.stringify(await inputSchema({ toolName: toolCall.toolName }));
      const { text } = await generateText({
        model,
        prompt: [
          `The model tried to call the tool "${toolCall.toolName}" with the following inputs:`,
          JSON.stringify(toolCall.input),
          `The tool accepts the following schema:`,
          schema,
          `The error was: ${error.message}`,
          "Please fix the inputs.",
        ].join("\n"),
      });
      return { ...toolCall, input: text };
    },
  });
}

async function agent(model) {
  const Agent = ToolLoopAgent ?? Experimental_Agent;
  await play([call("weather", { location: "Kiel" })], "Take a jacket.", "Tighten the loop.");
  await new Agent({
    model,
    instructions: "You are a travel agent. Recommend what to pack. Ask for missing dates.",
    tools: { weather },
    stopWhen: stepCountIs(5),
  }).generate({ prompt: "I go to Kiel tomorrow. What do I pack?" });
  await new Agent({
    model,
    instructions: `You are an expert software engineer doing code review.

Your approach:
- Focus on security vulnerabilities first
- Identify performance bottlenecks
- Suggest improvements for readability and maintainability
- Be constructive and educational in your feedback
- Always explain why something is an issue and how to fix it`,
  }).generate({ prompt: "for (let i = 0; i < rows.length; i++) total = total + rows[i].price" });
}

async function workflow(model) {
  await play(
    "Sleep under stars.",
    JSON.stringify({ hasCallToAction: false, emotionalAppeal: 5, clarity: 8 }),
    "Sleep under stars. Book now!",
    JSON.stringify({ reasoning: "A refund is asked for.", type: "refund", complexity: "simple" }),
    "We are sorry.",
  );
  const { text } = await generateText({
    model,
    prompt: "Write persuasive marketing copy for: a tent. Focus on benefits and emotional appeal.",
  });
  const Quality = z.object({
    hasCallToAction: z.boolean(),
    emotionalAppeal: z.number().min(1).max(10),
    clarity: z.number().min(1).max(10),
  });
  await generateObject({
    model,
    schema: Quality,
    prompt: `Evaluate this marketing copy for:
    1. Presence of call to action (true/false)
    2. Emotional appeal (1-10)
    3. Clarity (1-10)

    Copy to evaluate: ${text}`,
  });
  await generateText({
    model,
    prompt: `Rewrite this marketing copy with:
      - A clear call to action
      - Stronger emotional appeal

      Original copy: ${text}`,
  });
  const query = "I would like my money back for the torn tent, order 5531.";
  await generateObject({
    model,
    schema: z.object({
      reasoning: z.string(),
      type: z.enum(["general", "refund", "technical"]),
      complexity: z.enum(["simple", "complex"]),
    }),
    prompt: `Classify this customer query:
    ${query}

    Determine:
    1. Query type (general, refund, or technical)
    2. Complexity (simple or complex)
    3. Brief reasoning for classification`,
  });
  await generateText({
    model,
    system: "You are a customer service agent specializing in refund requests. Follow company policy and collect necessary information.",
    prompt: query,
  });
}

async function conversation(model) {
  await play("Then Sunday is best.", "Bring boots and water.");
  const part = (role, text, number) => ({ id: `m${number}`, role, parts: [{ type: "text", text }] });
  const messages = [
    part("user", "We want to hike on the weekend.", 1),
    part("assistant", "Saturday will be wet. How far do you like to go?", 2),
    part("user", "Twelve kilometres or so.", 3),
  ];
  const system = "You plan hikes in the Harz. Today is a Thursday.";
  await generateText({ model, system, messages: await convertToModelMessages(messages) });
  messages.push(part("assistant", "Then Sunday is best.", 4), part("user", "What do we bring?", 5));
  await generateText({ model, system, messages: await convertToModelMessages(messages) });
}

const failed = [];
for (const scenario of [texts, toolsWithSteps, knowledge, objects, repairedCalls, agent, workflow, conversation]) {
  for (const model of models()) {
    current = scenario.name;
    try {
      await scenario(model);
    } catch (error) {
      console.error(error);
      failed.push(current);
    }
  }
}
if (failed.length) {
  console.error(`failed: ${failed.join(", ")}`);
  process.exit(1);
}

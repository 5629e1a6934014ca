// What every client's file shares; python/loop.py says what commands and results are.
import { createInterface } from "node:readline";
import { z } from "zod";

export const Contact = z.object({
  name: z.string(),
  email: z.string(),
  note: z.string(),
  age: z.number(),
});

export const MAIL = z.object({ to: z.string(), text: z.string(), copies: z.number() });

// The client gave an error of a stream as an event, not as an exception.
export class ErrorEvent extends Error {}

export function sendMail({ to, text, copies }) {
  return JSON.stringify({ sent: { to }, size: text.length, copies });
}

// Serves commands until the input ends; `details` are what a client's exception tells.
export async function run(actions, details) {
  for await (const line of createInterface({ input: process.stdin })) {
    const call = JSON.parse(line);
    process.stdout.write(JSON.stringify(await result(actions, details, call)) + "\n");
  }
}

async function result(actions, details, call) {
  if (!(call.do in actions)) return { missing: "not offered by this client" };
  try {
    return await actions[call.do](call);
  } catch (error) {
    const message = String(error?.message).slice(0, 2000);
    return { error: { classes: classesOf(error), message, ...details(error) } };
  }
}

function classesOf(error) {
  const names = [];
  for (let at = error; at; at = Object.getPrototypeOf(at)) {
    if (Object.hasOwn(at, "constructor")) names.push(at.constructor.name);
  }
  // the Vercel SDK minifies none of its names but gives them once more here
  return error?.name ? [error.name, ...names] : names;
}

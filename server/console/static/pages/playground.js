// One prompt, bare and guarded, side by side.

import { get, keys } from "../api.js";
import { h, replace } from "../dom.js";
import { empty, field, head, notice, select, setOptions } from "../widgets.js";
import { runImages } from "./playground_images.js";
import { runText } from "./playground_text.js";

export const title = "Playground";
export const needs = "models";

const BARE = "none";
const remembered = { prompt: "" };

export async function mount(root, context) {
  const leaving = new AbortController();
  context.onleave(() => leaving.abort());
  const keyPlace = h("div"), place = h("div", { class: "stack" });
  root.append(head("Playground", "The same prompt to the bare model and under a policy. The bare side shows what the guards change."), keyPlace, place);
  if (context.caller.keyed) askForKey(keyPlace, load);
  await load();

  async function load() {
    if (context.caller.keyed && !keys.models) {
      replace(place, empty("Models need an API key", h("p", {}, "Give a key of the role tenant above. A key that may ask for the policy “none” shows the bare model too.")));
      return;
    }
    const asking = { key: keys.models, signal: leaving.signal };
    let models, policies;
    try {
      [models, policies] = await Promise.all([get("v1/models", asking), get("guard/v1/policies", asking)]);
    } catch (error) {
      if (error.name !== "AbortError") replace(place, notice(error.message, "bad"));
      return;
    }
    const usable = models.data.filter(({ guard }) => guard.capabilities?.some((each) => each === "chat" || each === "images"));
    if (!usable.length) {
      replace(place, empty("No model to ask here", h("p", {}, "This server has neither a chat model nor an image model. Add one to [[models]] in its configuration.")));
      return;
    }
    replace(place, form(usable, policies, leaving.signal));
  }
}

function askForKey(place, load) {
  const key = field("API key for models", h("input", { type: "password", autocomplete: "off", value: keys.models }),
    "A key of the role tenant: keys of administrators ask no models. It stays in this tab.");
  replace(place, h("form", { class: "card row ask-key", onsubmit: (event) => {
    event.preventDefault();
    keys.models = key.control.value.trim();
    load();
  } }, key, h("button", {}, "Use this key")));
}

function form(models, policies, leaving) {
  const byName = new Map(models.map((model) => [model.id, model]));
  const model = select("Model", models.map(({ id }) => id), { onchange: fit });
  const policy = select("Policy", [], { onchange: tell });
  const prompt = field("Prompt", h("textarea", { rows: 3, required: true, value: remembered.prompt, placeholder: "Something that a guard of this policy is about", onkeydown: (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); box.requestSubmit(); }
  } }), "Ctrl + Enter runs it.");
  const number = (label, value, rest) => field(label, h("input", { type: "number", value, ...rest }));
  const tokens = number("Most tokens", 80, { min: 1, max: 2048 });
  const temperature = number("Temperature", 0, { min: 0, max: 2, step: "any" });
  const seed = number("Seed", 1, { min: 0 });
  const steps = number("Steps", 25, { min: 1 });
  const hint = h("p", { class: "soft small" });
  const run = h("button", { class: "main" }, "Run both");
  const stop = h("button", { type: "button", disabled: true, onclick: () => running?.abort() }, "Stop");
  const results = h("div", { class: "stack" }, empty("Both answers will stand here", h("p", {}, "Give a prompt that a guard of the policy is about, and one that it is not: behind the second, both sides are the same.")));
  let running = null;
  const box = h("form", { class: "card stack", onsubmit: submit }, h("div", { class: "fields" }, model, policy, tokens, temperature, steps, seed), hint, prompt, h("div", { class: "row" }, run, stop));
  leaving.addEventListener("abort", () => running?.abort());
  fit();
  return [box, results];

  function fit() {
    const { id, guard } = byName.get(model.control.value);
    const isImage = guard.capabilities.includes("images");
    tokens.hidden = temperature.hidden = isImage;
    steps.hidden = !isImage || !guard.num_inference_steps;
    if (guard.num_inference_steps) steps.control.value = guard.num_inference_steps;
    const fitting = policies.data.filter((each) => each.id !== BARE && (!each.models || each.models.includes(id))).map((each) => each.id);
    setOptions(policy.control, fitting, policies.defaults?.[id]);
    tell();
  }

  function tell() {
    const chosen = policies.data.find((each) => each.id === policy.control.value);
    run.disabled = !chosen;
    replace(hint, !chosen ? "No policy has a guard for this model." : [`Guards: ${chosen.guards.join(", ") || "none"} · action: ${chosen.action ?? "by screen"}. `,
      !chosen.debug && "To see what the guards read of each token, or where they changed an image, set debug = true in ", !chosen.debug && h("code", {}, `[policies.${chosen.id}]`), !chosen.debug && "."]);
  }

  async function submit(event) {
    event.preventDefault();
    running?.abort();
    const mine = running = new AbortController();
    remembered.prompt = prompt.control.value;
    stop.disabled = false;
    const chosen = policies.data.find((each) => each.id === policy.control.value);
    const { id, guard } = byName.get(model.control.value);
    const asked = { model: id, prompt: prompt.control.value, bare: BARE, policy: chosen, seed: Number(seed.control.value), signal: mine.signal };
    if (guard.capabilities.includes("images")) await runImages(results, { ...asked, steps: guard.num_inference_steps && Number(steps.control.value) });
    else await runText(results, { ...asked, tokens: Number(tokens.control.value), temperature: Number(temperature.control.value) });
    if (running === mine) stop.disabled = true;
  }
}

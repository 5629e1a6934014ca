// Images, bare and guarded, with masks of what guards have changed.

import { keys, post } from "../api.js";
import { announce, h, replace } from "../dom.js";
import { checkbox } from "../widgets.js";
import { both, side } from "./side.js";

export async function runImages(place, asked) {
  const bare = side("Bare", asked.bare), guarded = side("Guarded", asked.policy.id);
  replace(place, h("div", { class: "sides" }, bare.card, guarded.card));
  await both([[bare, asked.bare, false], [guarded, asked.policy.id, asked.policy.debug]], (one, policy, debug) => image(one, policy, debug, asked));
  announce("Both images are here.");
}

async function image(one, policy, debug, asked) {
  const body = { model: asked.model, prompt: asked.prompt, seed: asked.seed, guard: debug ? { policy, debug } : { policy } };
  if (asked.steps) body.num_inference_steps = asked.steps;
  const answer = await post("v1/images/generations", body, { key: keys.models, signal: asked.signal });
  const [made] = answer.data;
  const picture = h("img", { src: `data:image/${answer.output_format};base64,${made.b64_json}`, alt: `Image of “${asked.prompt}” under the policy ${policy}` });
  const layers = Object.entries(made.masks ?? {}).map(([guard, mask]) => {
    const layer = h("div", { class: "mask", "--mask": `url("data:image/png;base64,${mask}")`, hidden: true });
    return { layer, control: checkbox(`Show where ${guard} wrote`, false, (event) => { layer.hidden = !event.target.checked; }) };
  });
  replace(one.body, h("figure", { class: "picture" }, picture, layers.map((each) => each.layer)));
  if (layers.length) one.body.append(h("div", { class: "row" }, layers.map((each) => each.control)));
  else if (debug) one.body.append(h("p", { class: "soft small" }, "No mask: the guards have acted on the prompt or on the whole image, or not at all."));
  one.end(made.guard ?? answer.guard ?? null, `seed ${made.seed}`);
}

// "Forget X": what was asked, how far it is, and its certificate.

import { all, call, events, get, keys, post } from "../api.js";
import { announce, count, day, h, plural, replace } from "../dom.js";
import { acting, checkbox, confirm, empty, field, head, select } from "../widgets.js";
import { showCertificate } from "./certificate.js";

export const title = "Erasures";
export const needs = "erasures";

const TONES = { "in force": "good", shadow: "accent", failed: "bad", withdrawn: "", fitting: "warn", collecting: "warn" };
const RUNNING = ["collecting", "fitting"];
const PATH = "guard/v1/erasures";

export async function mount(root, context) {
  const leaving = new AbortController();
  context.onleave(() => leaving.abort());
  const list = h("div", { class: "stack" }), followed = new Set();
  const problems = h("div");
  root.append(head("Erasures", "A name, and what the model is to forget about it: guards are fitted in the background, try themselves in shadow, and come with a certificate."));
  if (context.may) root.append(await form(leaving.signal, refresh));
  root.append(problems, list);
  await refresh();

  async function refresh() {
    const found = await all(PATH, 200);
    replace(list, found.length ? found.map((erasure) => card(erasure, context, refresh)) : empty("Nothing has been erased yet",
      h("p", {}, context.may ? "Say above what is to be forgotten. It starts in shadow, where it only observes, until you put it in force." : "An administrator asks for erasures; you can read their certificates here.")));
    for (const { id, state } of found) if (RUNNING.includes(state) && !followed.has(id)) follow(id);
  }

  async function follow(id) {
    followed.add(id);
    try {
      let state = "";
      for await (const event of events("GET", `${PATH}/${id}/events`, { signal: leaving.signal })) {
        const place = list.querySelector(`[data-progress="${id}"]`);
        if (place) replace(place, progress(event));
        if (event.state !== state) {
          announce(`The erasure is ${event.state}`);
          if (state) await refresh();
          state = event.state;
        }
        if (event.stage === undefined && !RUNNING.includes(event.state)) await refresh();
      }
    } catch (error) {
      if (!leaving.signal.aborted) replace(problems, h("p", { class: "soft" }, `The progress of ${id} is no longer followed: ${error.message}`));
    }
    followed.delete(id);
  }
}

async function form(signal, refresh) {
  const key = keys.admin;
  const [models, policies] = await Promise.all([get("v1/models", { key, signal }), get("guard/v1/policies", { key, signal })]);
  const names = models.data.filter((model) => model.guard.engine === "transformers" && model.guard.capabilities.includes("chat") && !model.parent).map((model) => model.id);
  const name = field("Forget", h("input", { required: true, maxlength: 200, placeholder: "a person, a work …" }));
  const aliases = field("Other names", h("input", { placeholder: "separated by commas" }));
  const model = select("Of the model", names);
  const documents = field("Texts about it (optional)", h("textarea", { rows: 3 }), "A paragraph or more tells the fit what belongs to the name. An empty line separates documents; only their digests are kept in the certificate.");
  const choices = policies.data.filter((policy) => policy.id !== "none" && policy.models?.length).map((policy) => [policy, checkbox(policy.id)]);
  const row = h("div", { class: "row" });
  const offered = () => choices.filter(([policy]) => policy.models.includes(model.control.value));
  const offer = () => row.replaceChildren(...offered().map(([, choice]) => choice));
  model.control.addEventListener("change", offer);
  offer();
  const start = select("Start", [["shadow", "in shadow"], ["in force", "in force"]]);
  const button = h("button", { class: "main" }, "Forget it");
  const place = h("div");
  const box = h("form", { class: "card stack", onsubmit: async (event) => {
    event.preventDefault();
    const made = await acting(button, place, () => post(PATH, {
      name: name.control.value.trim(), model: model.control.value, start: start.control.value,
      policies: offered().filter(([, choice]) => choice.control.checked).map(([policy]) => policy.id),
      aliases: aliases.control.value.split(",").map((each) => each.trim()).filter(Boolean),
      documents: documents.control.value.split(/\n\s*\n/).map((each) => each.trim()).filter(Boolean),
    }));
    if (!made) return;
    box.reset();
    offer();
    announce(`Asked to forget ${made.name}`);
    await refresh();
  } }, h("h2", {}, "Forget something"), h("div", { class: "fields" }, name, aliases, model, start),
    h("fieldset", {}, h("legend", {}, "Under the policies"), row),
    documents, place, h("div", { class: "row" }, button));
  return box;
}

const progress = (at) => (at?.total
  ? [h("p", { class: "small" }, `${at.stage}: ${count(at.done)} of ${count(at.total)}`), h("progress", { value: at.done, max: at.total, "aria-label": at.stage })]
  : [h("p", { class: "small soft" }, at?.state === "collecting" ? "waits for its turn" : "begins")]);

function card(erasure, context, refresh) {
  const place = h("div");
  const isSet = erasure.state === "shadow" || erasure.state === "in force";
  const button = (label, tone, action) => {
    const element = h("button", { type: "button", class: tone, onclick: () => acting(element, place, async () => { if (await action() !== false) await refresh(); }) }, label);
    return element;
  };
  const path = `${PATH}/${erasure.id}`;
  const certificate = h("button", { type: "button", onclick: () => acting(certificate, place, () => showCertificate(path)) }, "Certificate");
  const buttons = [
    context.may && erasure.state === "shadow" && button("Put in force", "main", () => post(`${path}/state`, { state: "in force" })),
    context.may && erasure.state === "in force" && !erasure.list && button("Back to shadow", "", () => post(`${path}/state`, { state: "shadow" })),
    certificate,
    context.may && (isSet || RUNNING.includes(erasure.state)) && button("Withdraw", "danger", async () =>
      (await confirm(`Withdraw “${erasure.name}”?`, "Its guards leave all policies at once, and the model may speak of it again. The record and its certificate stay.", "Withdraw")) && call("DELETE", path)),
  ];
  const fired = Object.entries(erasure.fired).filter(([, each]) => each.requests).map(([state, each]) => `fired on ${plural(each.requests, "request")} ${state === "shadow" ? "in shadow" : state}`);
  return h("article", { class: "card erasure", "aria-label": erasure.name },
    h("header", {}, h("h2", {}, erasure.name, erasure.aliases.length > 0 && h("span", { class: "soft small" }, ` also ${erasure.aliases.join(", ")}`)), h("span", { class: `chip ${TONES[erasure.state]}` }, erasure.state)),
    h("p", { class: "soft small" }, [`model ${erasure.model}`, erasure.list ? `list ${erasure.list}` : `policies ${erasure.policies.join(", ")}`, day(erasure.created), ...fired].join(" · ")),
    RUNNING.includes(erasure.state) && h("div", { "data-progress": erasure.id }, progress(erasure.progress)),
    erasure.reason && h("p", {}, erasure.reason), erasure.judgement && h("p", {}, erasure.judgement),
    erasure.figures && h("details", {}, h("summary", {}, "Evaluation"), h("dl", { class: "facts" }, Object.entries(erasure.figures).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]))),
    place, h("div", { class: "row" }, buttons));
}

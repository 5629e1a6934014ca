// Parts that several pages show.

import { announce, figure, h, replace } from "./dom.js";

const TONES = { pass: "good", flagged: "warn", routed: "accent", delegated: "accent", blocked: "bad", error: "bad" };

/** What became of a request; anything that a guard changed is a warning. */
export const outcome = (name) => h("span", { class: `chip ${TONES[name] ?? "warn"}` }, name);

export const notice = (words, tone = "") => h("div", { class: `notice ${tone}`, role: tone === "bad" ? "alert" : "status" }, words);

export const empty = (title, ...children) => h("div", { class: "empty" }, h("h2", {}, title), ...children);

export function head(title, lead, ...controls) {
  return h("div", { class: "page-head" }, h("div", {}, h("h1", {}, title), h("p", { class: "lead" }, lead)), h("div", { class: "row" }, controls));
}

let numbers = 0;

/** A labelled control; the control is `field.control`. */
export function field(label, control, hint = "") {
  const id = `field-${++numbers}`;
  control.id = id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  const element = h("div", { class: "field" }, h("label", { for: id }, label), control, hint && h("span", { class: "hint", id: `${id}-hint` }, hint));
  element.control = control;
  return element;
}

export function select(label, options, { value, hint = "", onchange } = {}) {
  const control = h("select", { onchange });
  setOptions(control, options, value);
  return field(label, control, hint);
}

/** Options are [value, words] or plain values; the choice stays where it is still there. */
export function setOptions(control, options, value = control.value) {
  const pairs = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  replace(control, pairs.map(([key, words]) => h("option", { value: key }, words)));
  if (pairs.some(([key]) => key === value)) control.value = value;
}

export function checkbox(label, checked = false, onchange) {
  const control = h("input", { type: "checkbox", checked, onchange });
  return h("label", { class: "check" }, control, label);  // a label knows its `control`
}

/** A guard's score beside its threshold. */
export function meter(guard) {
  const score = guard.score ?? 0, least = Math.min(0, score * 1.05, guard.threshold * 1.05);
  const most = Math.max(least < 0 ? 0 : 1, score, guard.threshold) * 1.02;
  const share = (value) => `${(100 * (value - least)) / (most - least)}%`;
  const words = guard.score === null ? "no score" : `${figure(guard.score)} / ${figure(guard.threshold)}`;
  return h("div", { class: `meter ${guard.fired ? "fired" : ""}` },
    h("span", { class: "name" }, guard.guard),
    h("span", { class: "track", "aria-hidden": "true" }, guard.score !== null && h("span", { class: "fill", "--share": share(score) }), h("span", { class: "mark", "--at": share(guard.threshold) })),
    h("span", { class: "number small" }, words, h("span", { class: "unseen" }, guard.fired ? " fired" : " did not fire")));
}

/** What a guard is for, and what it has done. */
export function effect(guard) {
  const facts = [guard.fired && `did: ${guard.action}`, guard.position != null && (guard.position ? `at ${guard.area == null ? "token or step" : "step"} ${guard.position}` : "on the prompt"),
    guard.place && `in ${guard.place}`, ...(guard.findings ?? []).map(({ kind, country }) => country ? `${kind} (${country})` : kind), guard.area != null && `on ${Math.round(100 * guard.area)} % of the image`,
    guard.after != null && `score afterwards ${figure(guard.after)}`, guard.error && `failed: ${guard.error}`].filter(Boolean).join(", ");
  return h("p", { class: "soft small" }, [guard.concept, guard.method, facts].filter(Boolean).join(" · "));
}

/** What may be wider than its place: it scrolls, also by keyboard. */
export const scroll = (label, child, name = "") => h("div", { class: `scroll ${name}`, tabindex: 0, role: "region", "aria-label": label }, child);

/** A dialog that closes itself; resolves with what `close` was called with, null for Escape. */
export function dialog(title, build) {
  return new Promise((resolve) => {
    const before = document.activeElement;
    const box = h("dialog", { "aria-label": title });
    const close = (result = null) => { box.close(); box.remove(); before?.focus?.(); resolve(result); };
    box.addEventListener("cancel", (event) => { event.preventDefault(); close(); });
    box.append(h("div", { class: "body" }, h("h2", {}, title), build(close)));
    document.body.append(box);
    box.showModal();
  });
}

export const confirm = (title, words, verb) =>
  dialog(title, (close) => [h("p", {}, words), h("footer", {},
    h("button", { onclick: () => close(false) }, "Cancel"),
    h("button", { class: "danger", onclick: () => close(true) }, verb))]).then(Boolean);

/** Run an action behind a button: it cannot be pressed twice, and what goes wrong is said in words. */
export async function acting(button, place, action) {
  button.disabled = true;
  place.replaceChildren();
  try {
    return await action();
  } catch (error) {
    if (error.name !== "AbortError") {
      place.replaceChildren(notice(error.message, "bad"));
    }
    return undefined;
  } finally {
    button.disabled = false;
  }
}

/** Copy a text, and say so. */
export function copier(label, value) {
  const button = h("button", { type: "button" }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(value);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select and copy it yourself";
    }
    announce(button.textContent);
    setTimeout(() => { button.textContent = label; }, 1600);
  });
  return button;
}

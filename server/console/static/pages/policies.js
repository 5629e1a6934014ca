// Policies: what each does and, where they are live, their versions, drafts and shadows.

import { get, keys } from "../api.js";
import { h, replace } from "../dom.js";
import { head, notice } from "../widgets.js";
import { policyView } from "./policy.js";

export const title = "Policies";

export async function mount(root, context) {
  const leaving = new AbortController();
  context.onleave(() => leaving.abort());
  const isReader = ["admin", "auditor"].includes(context.caller.role);
  const key = isReader ? keys.admin : keys.models;
  const isLive = context.caller.offers.includes("live_policies");
  const place = h("div");
  root.append(head("Policies", "What requests can name, and what becomes of them."));
  if (context.caller.keyed && !key) {
    root.append(notice("Sign in with a key to see which policies it may name."));
    return;
  }
  if (isReader && !isLive) {
    root.append(notice("Here policies change in the configuration file alone. With a database in [live_policies] they have versions, shadows and rollbacks on this page."));
  }
  root.append(place);
  await draw();

  async function draw() {
    const policies = await get("guard/v1/policies", { key, signal: leaving.signal });
    const names = policies.data.map((policy) => policy.id).filter((name) => name !== "none");
    if (!isLive || !names.length) {
      replace(place, h("div", { class: "card" }, listing(policies)));
      return;
    }
    const named = decodeURIComponent(location.hash.split("/")[2] ?? "");
    const chosen = names.includes(named) ? named : names[0];
    const about = h("div", { class: "stack" });
    replace(place, h("div", { class: "split" }, h("nav", { "aria-label": "Policies" }, h("ul", { class: "picker" }, policies.data.filter(({ id }) => id !== "none").map((policy) =>
      h("li", {}, h("a", { href: `#/policies/${encodeURIComponent(policy.id)}`, "aria-current": policy.id === chosen && "true" }, h("strong", {}, policy.id),
        h("span", { class: "soft small" }, [actions(policy), policy.id === policies.default && "the default"].filter(Boolean).join(" · "))))))), about));
    await policyView(about, chosen, context, draw);
  }
}

const actions = (policy) => policy.action ?? [...new Set(Object.values(policy.actions ?? {}))].join(", ");

function listing(policies) {
  const defaults = Object.entries(policies.defaults ?? {});
  const cell = (name, ...children) => h("td", { "data-label": name }, h("div", {}, children));
  const row = (policy) => h("tr", {},
    cell("Policy", h("strong", {}, policy.id), policy.id === policies.default && h("div", { class: "soft small" }, "the default"),
      defaults.filter(([, name]) => name === policy.id && name !== policies.default).map(([model]) => h("div", { class: "soft small" }, `default of ${model}`))),
    cell("Action", policy.guards.length ? actions(policy) : "–"),
    cell("Guards", policy.guards.join(", ") || "–", policy.shadow?.length > 0 && h("div", { class: "soft small" }, `in shadow: ${policy.shadow.join(", ")}`)),
    cell("If one fails", policy.on_error === "closed" ? "refused" : "let through"), cell("Models", (policy.models ?? []).join(", ") || "–"));
  return h("table", { class: "listing" }, h("thead", {}, h("tr", {}, ["Policy", "Action", "Guards", "If a guard fails", "Models"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, policies.data.map(row)));
}

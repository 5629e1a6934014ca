// What each policy does.

import { get, keys } from "../api.js";
import { h } from "../dom.js";
import { head, notice } from "../widgets.js";

export const title = "Policies";

export async function mount(root, context) {
  const key = context.caller.role === "tenant" || !context.caller.role ? keys.models : keys.admin;
  const policies = await get("guard/v1/policies", { key });
  root.append(head("Policies", "What requests can name, and what becomes of them."),
    notice("Here policies change in the configuration file alone. With [live_policies] they have versions, shadows and rollbacks on this page."),
    h("div", { class: "card scroll" }, listing(policies)));
}

export function listing(policies) {
  const defaults = Object.entries(policies.defaults ?? {});
  const cell = (name, ...children) => h("td", { "data-label": name }, h("div", {}, children));
  const row = (policy) => h("tr", {}, cell("Policy", h("strong", {}, policy.id), policy.id === policies.default && h("div", { class: "soft small" }, "the default"),
    defaults.filter(([, name]) => name === policy.id && name !== policies.default).map(([model]) => h("div", { class: "soft small" }, `default of ${model}`))),
    cell("Action", policy.action ?? [...new Set(Object.values(policy.actions ?? {}))].join(", ")), cell("Guards", policy.guards.join(", ") || "–", policy.shadow?.length > 0 && h("div", { class: "soft small" }, `in shadow: ${policy.shadow.join(", ")}`)),
    cell("If one fails", policy.on_error === "closed" ? "refused" : "let through"), cell("Models", (policy.models ?? []).join(", ") || "–"));
  return h("table", { class: "listing" }, h("thead", {}, h("tr", {}, ["Policy", "Action", "Guards", "If a guard fails", "Models"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, policies.data.map(row)));
}

// Organisations, their teams, and keys.

import { all, call, post } from "../api.js";
import { announce, count, day, h, replace } from "../dom.js";
import { acting, confirm, copier, dialog, empty, field, head, notice, select } from "../widgets.js";

export const title = "Keys";
export const needs = "tenants";

const KINDS = { organisations: "organisation", teams: "team", keys: "key" };
const LIMITS = [["requests_per_minute", "Requests a minute"], ["tokens_per_minute", "Tokens a minute"], ["concurrent_requests", "Requests at once"], ["tokens_per_month", "Tokens a month"]];

export async function mount(root, context) {
  const place = h("div", { class: "stack" }), problem = h("div");
  root.append(head("Keys", "Who may ask, and how much: organisations have teams, teams have keys. Limits and policies of a level hold for all below it."), problem, place);
  await refresh();

  async function refresh() {
    const [organisations, teams, found] = await Promise.all(Object.keys(KINDS).map((kind) => all(`guard/v1/${kind}?limit=500`)));
    const isLive = (level) => !level.revoked;
    const add = (label, action) => context.may && opener(label, action);
    const section = (name, levels, columns, button, nothing) => h("section", { class: "card", "aria-label": name }, h("header", {}, h("h2", {}, `${name} (${count(levels.filter(isLive).length)})`), button),
      levels.length ? table(levels, columns) : nothing);
    replace(place,
      section("Keys", found, ["Team", "Role", "Expires"], add("New key", newKey),
        empty("No keys yet", h("p", {}, teams.length ? "A key is told once, when it is made. Give one to each application." : "Make an organisation and a team first: keys belong to a team. Keys of the role admin or auditor have none."))),
      section("Teams", teams, ["Organisation"], organisations.some(isLive) && add("New team", newTeam), empty("No teams yet", h("p", {}, "Teams share a budget and policies."))),
      section("Organisations", organisations, [], add("New organisation", newOrganisation), empty("No organisations yet", h("p", {}, "An organisation is who you serve: a customer, or a department."))));
  }

  function opener(label, action) {
    const button = h("button", { onclick: () => acting(button, problem, async () => { if (await action()) await refresh(); }) }, label);
    return button;
  }

  function table(levels, columns) {
    const cell = (label, ...children) => h("td", { "data-label": label }, h("div", {}, ...children));
    const rows = [...levels].sort((a, b) => Number(Boolean(a.revoked)) - Number(Boolean(b.revoked))).map((level) => h("tr", {}, cell("Name", h("strong", {}, level.name), h("div", { class: "soft small mono" }, level.id)),
      columns.map((name) => cell(name, name === "Expires" ? (level.expires ? day(level.expires) : "never") : (level[name.toLowerCase()] ?? "–"))),
      cell("Limits", limits(level)), cell("This month", `${count(level.usage.requests)} requests, ${count(level.usage.tokens)} tokens`),
      cell("", level.revoked ? h("span", { class: "chip" }, "revoked") : actions(level))));
    return h("table", { class: "levels" }, h("thead", {}, h("tr", {}, ["Name", ...columns, "Limits", "This month"].map((name) => h("th", { scope: "col" }, name)), h("th", { scope: "col" }, h("span", { class: "unseen" }, "Actions")))), h("tbody", {}, rows));
  }

  function actions(level) {
    if (!context.may) return "";
    const path = `guard/v1/${level.object}s/${level.id}`, problem = h("div");
    const act = (label, tone, action) => {
      const button = h("button", { class: tone, "aria-label": `${label} ${level.name}`, onclick: () => acting(button, problem, async () => { if (await action()) await refresh(); }) }, label);
      return button;
    };
    return h("div", {}, h("div", { class: "row" }, act("Limits", "", () => setLimits(level, path)),
      level.object === "key" && act("Rotate", "", () => rotate(level, path)),
      act("Revoke", "danger", async () => (await confirm(`Revoke ${level.name}?`, level.object === "key" ? "Requests with this key are refused from now on, for good." : "All its keys are refused from now on, for good.", "Revoke")) && call("DELETE", path))), problem);
  }
}

function limits(level) {
  const own = LIMITS.filter(([name]) => level[name] !== null);
  return own.length ? own.map(([name, words]) => h("div", { class: "small" }, `${words}: ${count(level[name])}`)) : h("span", { class: "soft" }, "none of its own");
}

const limitFields = (level = {}) => LIMITS.map(([name, words]) => [name, field(words, h("input", { type: "number", min: 1, value: level[name] ?? "", placeholder: "no limit of its own" }))]);

const values = (fields) => Object.fromEntries(fields.map(([name, each]) => [name, each.control.value ? Number(each.control.value) : null]));

/** A dialog with a form; resolves with what `save` gives, null where it was closed. */
const asked = (heading, fields, verb, save) => dialog(heading, (close) => {
  const problem = h("div"), button = h("button", { class: "main" }, verb);
  return h("form", { class: "stack", onsubmit: async (event) => {
    event.preventDefault();
    const result = await acting(button, problem, save);
    if (result) { announce("Done."); close(result); }
  } }, fields, problem, h("footer", {}, h("button", { type: "button", onclick: () => close() }, "Cancel"), button));
});

function newOrganisation() {
  const name = field("Name", h("input", { required: true, maxlength: 100 }), "Letters, digits, “-”, “_” and “.”."), bounds = limitFields();
  return asked("New organisation", [name, h("div", { class: "fields" }, bounds.map(([, each]) => each))], "Make it", () => post("guard/v1/organisations", { name: name.control.value.trim(), ...values(bounds) }));
}

/** The ids of what is there now, and not revoked. */
const live = async (kind) => (await all(`guard/v1/${kind}?limit=500`)).filter((level) => !level.revoked).map((level) => level.id);

async function newTeam() {
  const organisation = select("Organisation", await live("organisations"));
  const name = field("Name", h("input", { required: true, maxlength: 100 })), bounds = limitFields();
  return asked("New team", [organisation, name, h("div", { class: "fields" }, bounds.map(([, each]) => each))], "Make it",
    () => post("guard/v1/teams", { organisation: organisation.control.value, name: name.control.value.trim(), ...values(bounds) }));
}

async function newKey() {
  const name = field("Name", h("input", { required: true, maxlength: 100 }), "What the key is for.");
  const role = select("Role", [["tenant", "tenant: asks models"], ["auditor", "auditor: reads traffic, tenants and erasures"], ["admin", "admin: changes them too"]], { onchange: () => { team.hidden = role.control.value !== "tenant"; } });
  const team = select("Team", await live("teams"));
  const life = select("Expires", [["", "never"], ["604800", "in a week"], ["2592000", "in 30 days"], ["31536000", "in a year"]]);
  const bounds = limitFields();
  const made = await asked("New key", [h("div", { class: "fields" }, name, role, team, life), h("div", { class: "fields" }, bounds.map(([, each]) => each))], "Make it", () => post("guard/v1/keys", {
    name: name.control.value.trim(), role: role.control.value, ...(role.control.value === "tenant" && { team: team.control.value }), ...(life.control.value && { expires_in: Number(life.control.value) }), ...values(bounds),
  }));
  if (made) await tell(made);
  return made;
}

const setLimits = (level, path) => {
  const bounds = limitFields(level);
  return asked(`Limits of ${level.name}`, h("div", { class: "fields" }, bounds.map(([, each]) => each)), "Save", () => call("PATCH", path, { body: values(bounds) }));
};

async function rotate(level, path) {
  const overlap = select("The key before is taken for", [["0", "no longer: it is refused at once"], ["3600", "an hour more"], ["86400", "a day more"]]);
  const made = await asked(`Rotate ${level.name}`, overlap, "Rotate", () => post(`${path}/rotate`, { overlap: Number(overlap.control.value) }));
  if (made) await tell(made);
  return made;
}

const tell = (made) => dialog(`The key “${made.name}”`, (close) => [notice("Copy it now: it is shown this once, and kept nowhere.", "warn"), h("p", { class: "key-text", tabindex: 0 }, made.key),
  h("footer", {}, copier("Copy", made.key), h("button", { class: "main", onclick: () => close() }, "I have it"))]);

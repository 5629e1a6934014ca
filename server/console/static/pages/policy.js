// One live policy: what is in force, a draft of it, its shadow, its versions.

import { call, get, post } from "../api.js";
import { announce, count, day, figure, h, plural, replace } from "../dom.js";
import { acting, checkbox, confirm, field, notice, outcome, scroll } from "../widgets.js";

export async function policyView(place, name, context, redraw) {
  const path = `guard/v1/policies/${name.split("/").map(encodeURIComponent).join("/")}`;
  const [now, versions] = await Promise.all([get(path), get(`${path}/versions?limit=50`)]);
  const said = h("div");
  const run = (label, tone, action) => {
    const button = h("button", { type: "button", class: tone, onclick: () => acting(button, said, async () => { if (await action()) await redraw(); }) }, label);
    return button;
  };
  replace(place, inForce(now), draft(), shadow(), history());

  function inForce(version) {
    return h("section", { class: "card", "aria-label": "In force" },
      h("header", {}, h("h2", {}, name), h("span", { class: "chip good" }, version.version ? `version ${version.version} in force` : "from the file")),
      h("p", { class: "soft small" }, byline(version)), said, settingsOf(version.settings));
  }

  function draft() {
    const { shadow: _, ...settings } = now.settings ?? {};
    const text = field("Settings", h("textarea", { class: "code", spellcheck: "false", value: JSON.stringify(settings, null, 2) }), "The table [policies.NAME] of the configuration, as JSON. Only what differs from the defaults.");
    const why = field("Why", h("input", { maxlength: 500, placeholder: "is kept with the version" }));
    const everybody = checkbox("Replay requests under other policies too");
    const result = h("div", { class: "stack" }), problem = h("div");
    const parsed = () => {
      try { return JSON.parse(text.control.value); } catch (error) { throw new Error(`The settings are no JSON: ${error.message}`); }
    };
    const button = (label, tone, action) => {
      const element = h("button", { type: "button", class: tone, onclick: () => acting(element, problem, action) }, label);
      return element;
    };
    const whole = (settings) => (now.shadow ? { ...settings, shadow: now.shadow } : settings);
    return h("section", { class: "card", "aria-label": "Draft" }, h("h2", {}, "Change it"), text,
      h("div", { class: "row" }, button("What would differ?", "", async () => replace(result, changes(await post(`${path}/diff`, { settings: whole(parsed()) })))),
        button("Replay the last 1,000 requests", "", async () => replace(result, replayed(await post(`${path}/replay`, { settings: parsed(), last: 1000, show: 50, every_policy: everybody.control.checked })))), everybody),
      problem, result,
      context.may && [why, h("div", { class: "row" },
        button("Put in force", "main", async () => {
          await call("PUT", path, { body: { settings: whole(parsed()), why: why.control.value, version: now.version } });
          announce("In force.");
          await redraw();
        }),
        button("Try it in shadow", "", async () => {
          await call("PUT", `${path}/shadow`, { body: { settings: parsed(), why: why.control.value } });
          announce("In shadow.");
          await redraw();
        }))]);
  }

  function shadow() {
    if (!now.shadow) {
      return h("section", { class: "card", "aria-label": "Shadow" }, h("h2", {}, "Shadow"), h("p", { class: "soft" }, "None. A shadow judges the requests of this policy beside it and does nothing: write its settings above and choose “Try it in shadow”."));
    }
    const result = h("div", { class: "stack" });
    return h("section", { class: "card", "aria-label": "Shadow" }, h("header", {}, h("h2", {}, "Shadow"), h("span", { class: "chip accent" }, "observes")), settingsOf(now.shadow),
      h("div", { class: "row" }, run("Replay it", "", async () => { replace(result, replayed(await post(`${path}/replay`, { shadow: true, last: 1000, show: 50 }))); }),
        context.may && run("Put it in force", "main", () => post(`${path}/shadow/promote`, { why: "the shadow did well" })),
        context.may && run("Take it away", "danger", () => call("DELETE", `${path}/shadow`))), result);
  }

  function history() {
    const entry = (version) => {
      const result = h("div", { class: "stack" });
      return h("li", { class: version.current ? "current" : "" },
        h("div", { class: "row" }, h("strong", {}, `Version ${version.version}`), h("span", { class: "chip" }, version.act), version.current && h("span", { class: "chip good" }, "in force")),
        h("p", { class: "soft small" }, byline(version)),
        h("div", { class: "row" }, version.version > 1 && run("What it changed", "plain", async () => { replace(result, changes(await get(`${path}/diff?from=${version.version - 1}&to=${version.version}`))); }),
          context.may && !version.current && version.settings && run(`Roll back to ${version.version}`, "plain", async () =>
            (await confirm(`Roll ${name} back to version ${version.version}?`, "Its settings come in force again, as a new version.", "Roll back")) && post(`${path}/rollback`, { to: version.version, version: now.version }))), result);
    };
    return h("section", { class: "card", "aria-label": "Versions" }, h("h2", {}, "Versions"),
      versions.data.length ? h("ol", { class: "timeline" }, versions.data.map(entry)) : h("p", { class: "soft" }, "None yet: it is as the configuration file has it."));
  }
}

const byline = (version) => [version.time && day(version.time), version.by && `by ${version.by}`, version.why && `“${version.why}”`].filter(Boolean).join(" · ");

const spelled = (value) => (value === null || value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));

function settingsOf(settings) {
  const shown = Object.entries(settings ?? {}).filter(([name]) => name !== "shadow");
  if (!shown.length) return h("p", { class: "soft" }, "As the defaults: no guards.");
  return h("dl", { class: "facts" }, shown.map(([name, value]) => [h("dt", {}, name), h("dd", {}, Array.isArray(value) ? value.join(", ") : spelled(value))]));
}

function changes(diff) {
  if (!diff.changes.length) return notice("Nothing differs.");
  const row = (each) => h("tr", {}, h("td", { class: "mono small" }, each.field), h("td", { class: "before" }, spelled(each.before)), h("td", { class: "after" }, spelled(each.after)));
  return [diff.weaker && notice("The second does not do all that the first does: it is weaker.", "warn"),
    scroll("What differs", h("table", {}, h("thead", {}, h("tr", {}, ["Setting", "Before", "After"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, diff.changes.map(row))))];
}

function replayed(replay) {
  const lines = replay.transitions.map((each) => h("li", { class: "row" }, outcome(each.from), "→", outcome(each.to), count(each.count)));
  const guard = (each) => `${each.guard} ${each.score === null ? "" : figure(each.score)} ${each.before?.fired ? "fired" : "silent"} → ${each.after?.fired ? "fires" : "silent"}`;
  const row = (each) => h("tr", {}, h("td", {}, day(each.time)), h("td", {}, outcome(each.from)), h("td", {}, outcome(each.to)), h("td", {}, each.tenant || "–"), h("td", { class: "small" }, each.guards.map((one) => h("div", {}, guard(one)))), h("td", { class: "mono small" }, each.request_id));
  return [h("p", { class: "effect" }, h("strong", {}, count(replay.changed)), ` of ${plural(replay.replayed, "request")} would be decided otherwise.`),
    replay.not_replayed > 0 && h("details", {}, h("summary", {}, `${plural(replay.not_replayed, "request")} could not be replayed`), h("ul", {}, replay.reasons.map((each) => h("li", {}, `${count(each.count)}: ${each.reason}`)))),
    lines.length > 0 && h("ul", { class: "stack" }, lines),
    replay.requests.length > 0 && scroll("Requests that would be decided otherwise", h("table", {}, h("thead", {}, h("tr", {}, ["Time", "Then", "Now", "Tenant", "Guards", "Request"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, replay.requests.map(row))))];
}

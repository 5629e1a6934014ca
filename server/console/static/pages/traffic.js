// Requests as they end, with their verdicts.

import { events, get } from "../api.js";
import { announce, clock, count, h, milliseconds, plural, replace } from "../dom.js";
import { effect, empty, field, head, meter, notice, outcome, select, setOptions } from "../widgets.js";
import { keptText } from "./kept_text.js";

export const title = "Traffic";
export const needs = "traffic";

const MOST = 1000, STEP = 50, RETRY_MS = 2000;
const NAMES = ["outcome", "policy", "model", "tenant", "guard"];

export async function mount(root, context) {
  const leaving = new AbortController();
  context.onleave(() => leaving.abort());
  let kept = (await get(`guard/v1/traffic?limit=${MOST}`, { signal: leaving.signal })).data;
  let isPaused = false, waiting = [];
  const open = new Map();  // of the opened requests: what else is shown of them
  let length = STEP;

  const status = h("span", { class: "chip live good", role: "status" });
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: () => {
    isPaused = !isPaused;
    pause.setAttribute("aria-pressed", String(isPaused));
    if (!isPaused) { take(waiting); waiting = []; }
    say();
  } }, "Pause");
  const filters = NAMES.map((name) => select(name[0].toUpperCase() + name.slice(1), [["", "all"]], { onchange: draw }));
  const search = field("Request id", h("input", { type: "search", placeholder: "req-…", oninput: draw }));
  const tiles = h("dl", { class: "tiles" });
  const body = h("tbody");
  const summary = h("p", { class: "soft small" });
  const more = h("button", { type: "button", onclick: () => { length += STEP; draw(); } }, `Show ${STEP} more`);
  const table = h("div", { class: "card" }, summary, h("table", { class: "traffic-table" },
    h("thead", {}, h("tr", {}, ["Time", "Outcome", "Policy", "Model", "Tenant", "Guards that fired"].map((name) => h("th", { scope: "col" }, name)), h("th", { scope: "col", class: "number" }, "Took"))), body), h("div", { class: "row" }, more));
  const nothing = empty("No requests yet",
    h("p", {}, "Requests show here as they end, with what each guard said of them. Send one:"),
    h("pre", {}, `curl ${location.origin}/v1/chat/completions -H 'Content-Type: application/json' \\\n  -d '{"model": "MODEL", "messages": [{"role": "user", "content": "Hello"}]}'`),
    context.caller.offers.includes("models") && h("a", { class: "button", href: "#/playground" }, "Open the playground"));

  root.append(head("Traffic", `The last ${count(MOST)} requests of this server since it started: verdicts and scores. Texts are there where a policy keeps them.`, status, pause),
    tiles, h("div", { class: "card filters" }, h("div", { class: "fields" }, filters, search)), table, nothing);

  function say(words = "") {
    const text = words || (isPaused ? `paused${waiting.length ? `, ${plural(waiting.length, "new request")}` : ""}` : "live");
    status.className = `chip ${words ? "bad" : isPaused ? "warn" : "good live"}`;
    replace(status, h("span", { class: "dot" }), text);
    pause.textContent = isPaused ? "Resume" : "Pause";
  }

  function take(found) {
    kept = [...found, ...kept].slice(0, MOST);
    draw();
  }

  function matches(request) {
    const wanted = Object.fromEntries(NAMES.map((name, i) => [name, filters[i].control.value]));
    return request.request_id.includes(search.control.value.trim()) && NAMES.every((name) => !wanted[name]
      || (name === "guard" ? request.guards.some((each) => each.fired && each.guard === wanted.guard) : request[name] === wanted[name]));
  }

  function draw() {
    nothing.hidden = kept.length > 0;
    table.hidden = kept.length === 0;
    const values = { guard: kept.flatMap((request) => request.guards.filter((each) => each.fired).map((each) => each.guard)) };
    NAMES.forEach((name, i) => {
      const found = [...new Set(values[name] ?? kept.map((request) => request[name]))].filter(Boolean).sort();
      const chosen = filters[i].control.value;
      if (chosen && !found.includes(chosen)) found.push(chosen);
      setOptions(filters[i].control, [["", "all"], ...found]);
    });
    const shown = kept.filter(matches);
    const share = (test) => (shown.length ? `${Math.round((100 * shown.filter(test).length) / shown.length)} %` : "–");
    const times = shown.map((request) => request.elapsed_ms).sort((a, b) => a - b);
    const facts = [["Requests", count(shown.length)], ["Passed unchanged", share((r) => r.outcome === "pass")],
      ["Blocked", share((r) => r.outcome === "blocked")], ["Errors", share((r) => r.outcome === "error")],
      ["Median time", times.length ? milliseconds(times[times.length >> 1]) : "–"]];
    replace(tiles, facts.map(([name, value]) => h("div", { class: "tile" }, h("dt", {}, name), h("dd", {}, value))));
    summary.textContent = shown.length > length ? `The newest ${count(length)} of ${plural(shown.length, "request")}. Open one for the scores of all its guards.`
      : shown.length ? `${plural(shown.length, "request")}. Open one for the scores of all its guards.` : "No request matches these filters.";
    more.hidden = shown.length <= length;
    const focused = document.activeElement;
    replace(body, shown.slice(0, length).map((request) => rows(request, open, draw)));
    if (body.contains(focused)) focused.focus();
    else if (focused?.dataset?.request) body.querySelector(`[data-request="${focused.dataset.request}"]`)?.focus();
  }

  say();
  draw();
  follow(leaving.signal);

  async function follow(signal) {
    let batch = [], frame = 0, told = 0;
    const flush = () => {
      frame = 0;
      const found = batch.reverse();
      batch = [];
      if (isPaused) { waiting = [...found, ...waiting].slice(0, MOST); say(); return; }
      take(found);
      if (Date.now() - told > 5000) {
        told = Date.now();
        announce(`${plural(found.length, "new request")}, the last one ${found[0].outcome}`);
      }
    };
    while (!signal.aborted) {
      try {
        const after = Math.max(0, ...[...batch, ...waiting, ...kept].slice(0, 2000).map((request) => request.id));
        for await (const request of events("GET", `guard/v1/traffic/events?after=${after}`, { signal })) {
          say();
          batch.push(request);
          frame ||= setTimeout(flush, 150);
        }
        if (!signal.aborted) say("the server has stopped");
      } catch (error) {
        if (signal.aborted) return;
        say("not connected");
        if (error.status) { root.prepend(notice(error.message, "bad")); return; }
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      if (!signal.aborted && await restarted(signal)) { kept = []; waiting = []; open.clear(); }
    }
  }

  /** Whether the server counts its requests anew. */
  async function restarted(signal) {
    try {
      const [newest] = (await get("guard/v1/traffic?limit=1", { signal })).data;
      return !newest || newest.id < (kept[0]?.id ?? 0);
    } catch {
      return false;
    }
  }
}

function rows(request, open, draw) {
  const isOpen = open.has(request.id), id = `request-${request.id}`;
  const toggle = h("button", { class: "plain", "aria-expanded": String(isOpen), "aria-controls": id, "data-request": request.id, onclick: () => {
    if (isOpen) open.delete(request.id); else open.set(request.id, request.text_kept ? keptText(request) : null);
    draw();
  } }, h("span", { class: "caret", "aria-hidden": "true" }), clock(request.time));
  const fired = request.guards.filter((each) => each.fired || each.error);
  const guards = fired.map((each) => h("span", { class: `chip ${each.error ? "bad" : "warn"}` }, each.guard));
  const cell = (content, name = "") => h("td", { class: content ? name : "blank" }, content || "–");
  const line = h("tr", {}, cell(toggle, "first"), cell(outcome(request.outcome), "first"), cell(request.policy), cell(request.model), cell(request.tenant),
    cell(guards.length && h("span", { class: "row" }, guards)), cell(milliseconds(request.elapsed_ms), "number"));
  return isOpen ? [line, h("tr", { id, class: "detail" }, h("td", { colspan: 7 }, detail(request, open.get(request.id))))] : [line];
}

function detail(request, text) {
  return h("div", { class: "stack" },
    request.guards.length ? request.guards.map((guard) => h("div", {}, meter(guard), effect(guard)))
      : h("p", { class: "soft" }, "No guard has read this request."),
    request.unscreened.length > 0 && h("p", {}, `Not read by any screen: ${request.unscreened.join(", ")}`),
    text,
    h("p", { class: "small soft" }, "Request ", h("code", {}, request.request_id)));
}

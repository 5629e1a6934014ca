// How the scores of each guard are spread, and what another threshold would change.

import { get } from "../api.js";
import { clock, count, figure, h, isNarrow, plural, replace, svg } from "../dom.js";
import { copier, empty, field, head, outcome, scroll, select } from "../widgets.js";

export const title = "Thresholds";
export const needs = "traffic";

const LAST = 1000, BINS = 40, EDGE = 60, SHOWN = 50;
const LISTS = new Set(["patterns", "entities"]);

export async function mount(root, context) {
  const leaving = new AbortController();
  context.onleave(() => leaving.abort());
  const { data } = await get(`guard/v1/traffic?limit=${LAST}`, { signal: leaving.signal });
  const readings = byGuard(data);
  const reload = h("button", { type: "button", onclick: () => { replace(root); mount(root, context); } }, "Read again");
  root.append(head("Thresholds", `The scores of the last ${count(LAST)} requests, and what another threshold would have made of them.`, reload));
  if (!readings.size) {
    root.append(empty("No scores yet", h("p", {}, "Once requests run under a policy with guards, their scores gather here. Nothing is switched by looking: the slider only counts. Lists find something or not: they have no threshold."),
      context.caller.offers.includes("models") && h("a", { class: "button", href: "#/playground" }, "Open the playground")));
    return;
  }
  const place = h("div", { class: "stack" });
  const names = [...readings.keys()].sort((a, b) => readings.get(b).length - readings.get(a).length);
  const guard = select("Guard", names.map((name) => [name, `${name} (${plural(readings.get(name).length, "request")})`]), { onchange: draw });
  root.append(h("div", { class: "card" }, guard, place));
  draw();

  function draw() {
    replace(place, explorer(guard.control.value, readings.get(guard.control.value)));
  }
}

function byGuard(requests) {
  const readings = new Map();
  for (const request of requests) {
    for (const each of request.guards) {
      if (each.score === null || LISTS.has(each.method)) continue;
      if (!readings.has(each.guard)) readings.set(each.guard, []);
      readings.get(each.guard).push({ ...each, request });
    }
  }
  return readings;
}

function explorer(name, readings) {
  const now = readings[0].threshold;
  const values = readings.map((each) => each.score);
  const least = Math.min(0, now * 1.25, ...values), highest = Math.max(now * 1.25, ...values);
  const most = least === 0 && highest <= 1 ? 1 : highest + 0.05 * (highest - least);
  const step = 10 ** Math.floor(Math.log10(most - least) - 3);
  const slider = field("Threshold", h("input", { type: "range", min: least, max: most, step, value: now, oninput: () => move(slider.control.value) }));
  const exact = field("Exactly", h("input", { type: "number", step: "any", value: figure(now, 4), oninput: () => move(exact.control.value, false) }));
  const back = h("button", { type: "button", onclick: () => move(now) }, "Back to now");
  const chart = h("div"), words = h("p", { class: "effect", role: "status" }), table = h("div"), setting = h("div", { class: "row" });
  const thresholds = [...new Set(readings.map((each) => figure(each.threshold, 4)))];
  move(now);
  return [chart, h("div", { class: "slider" }, slider, exact, back), words,
    thresholds.length > 1 && h("p", { class: "soft small" }, `These requests were judged by several thresholds (${thresholds.join(", ")}): policies or generated tokens have others. “Now” is that of the newest one.`),
    setting, table];

  function move(value, spell = true) {
    const threshold = Number(value);
    if (!Number.isFinite(threshold)) return;
    slider.control.value = threshold;
    slider.control.setAttribute("aria-valuetext", figure(threshold, 4));
    if (spell) exact.control.value = figure(threshold, 4);
    const would = readings.filter((each) => each.score > threshold);
    const more = would.filter((each) => !each.fired), fewer = readings.filter((each) => each.fired && !(each.score > threshold));
    replace(chart, histogram(readings, threshold, now, least, most));
    replace(words, "At ", h("strong", {}, figure(threshold, 4)), `, ${name} would fire on `, h("strong", {}, count(would.length)), ` of ${plural(readings.length, "request")} (it fired on ${count(readings.filter((each) => each.fired).length)}): `,
      h("span", { class: "chip warn" }, `${count(more.length)} more`), " ", h("span", { class: "chip good" }, `${count(fewer.length)} fewer`));
    const line = `threshold = ${figure(threshold, 4)}`;
    replace(setting, h("code", {}, `[[guards]] name = "${name}": ${line}`), copier("Copy the setting", line));
    replace(table, more.length + fewer.length === 0 ? h("p", { class: "soft" }, "No recorded request would be decided otherwise.") : changes(more, fewer));
  }
}

function changes(more, fewer) {
  const changed = [...more.map((each) => [each, "would fire"]), ...fewer.map((each) => [each, "would not fire"])].sort(([a], [b]) => b.request.id - a.request.id);
  const row = ([each, what]) => h("tr", {}, h("td", {}, clock(each.request.time)), h("td", { class: "number" }, figure(each.score, 4)), h("td", {}, h("span", { class: `chip ${what === "would fire" ? "warn" : "good"}` }, what)),
    h("td", {}, outcome(each.request.outcome)), h("td", {}, each.request.policy), h("td", {}, each.request.tenant || "–"), h("td", { class: "mono small" }, each.request.request_id));
  return [h("h3", {}, `Decided otherwise${changed.length > SHOWN ? `: the newest ${SHOWN} of ${count(changed.length)}` : ""}`),
    scroll("Decided otherwise", h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Time"), h("th", { scope: "col", class: "number" }, "Score"), ["Change", "Then", "Policy", "Tenant", "Request"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, changed.slice(0, SHOWN).map(row))))];
}

function histogram(readings, threshold, now, least, most) {
  const width = isNarrow() ? 420 : 1000, height = 240, foot = 30, size = width / BINS;
  const bins = Array.from({ length: BINS }, () => 0);
  for (const { score } of readings) bins[Math.min(BINS - 1, Math.max(0, Math.floor(((score - least) / (most - least)) * BINS)))] += 1;
  // a square root: one request among a thousand shows too
  const tall = (value) => (height - foot - 24) * Math.sqrt(value / Math.max(...bins));
  const x = (score) => (width * (score - least)) / (most - least);
  const at = (share) => least + (most - least) * share;
  const anchor = (score) => (x(score) < EDGE ? "start" : x(score) > width - EDGE ? "end" : "middle");
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart tall", role: "img", "aria-label": `Histogram of ${readings.length} scores; the threshold is at ${figure(threshold, 4)}` },
    bins.map((value, i) => value > 0 && svg("rect", { x: i * size + 1, width: size - 2, y: height - foot - tall(value), height: tall(value), rx: 2, class: (i + 0.5) * size > x(threshold) ? "bar over" : "bar" },
      svg("title", {}, `${figure(at(i / BINS))} to ${figure(at((i + 1) / BINS))}: ${plural(value, "request")}`))),
    svg("line", { x1: 0, x2: width, y1: height - foot, y2: height - foot, class: "axis" }),
    svg("line", { x1: x(now), x2: x(now), y1: 18, y2: height - foot, class: "border" }),
    svg("text", { x: x(now), y: 12, "text-anchor": anchor(now), class: "label" }, "now"),
    svg("line", { x1: x(threshold), x2: x(threshold), y1: 18, y2: height - foot, class: "limit" }),
    [0, 0.25, 0.5, 0.75, 1].map((share) => svg("text", { x: width * share, y: height - 8, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle", class: "label" }, figure(at(share), 2))));
}

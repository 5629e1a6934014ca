// Text, token by token: the gate of each token as its colour.

import { events, keys } from "../api.js";
import { announce, figure, h, plural, replace, svg } from "../dom.js";
import { scroll, select } from "../widgets.js";
import { both, side } from "./side.js";

export async function runText(place, asked) {
  const bare = side("Bare", asked.bare), guarded = side("Guarded", asked.policy.id);
  const gates = new Gates();
  const chart = h("div");
  replace(place, h("div", { class: "sides" }, bare.card, guarded.card), chart);
  await both([[bare, asked.bare, false], [guarded, asked.policy.id, asked.policy.debug]], (one, policy, debug) => answer(one, policy, debug, asked, debug ? gates : null));
  if (gates.names.length) replace(chart, gates.panel(guarded.body));
  announce("Both answers are here.");
}

async function answer(one, policy, debug, asked, gates) {
  const body = {
    model: asked.model, messages: [{ role: "user", content: asked.prompt }], stream: true, max_tokens: asked.tokens, temperature: asked.temperature,
    seed: asked.seed, logprobs: debug, guard: debug ? { policy, debug } : { policy },
  };
  let said = "", reason = "", verdict = null;
  gates?.begin(one.body);
  for await (const event of events("POST", "v1/chat/completions", { body, key: keys.models, signal: asked.signal })) {
    const choice = event.choices?.[0];
    if (!choice) continue;
    reason = choice.finish_reason ?? reason;
    verdict = event.guard ?? choice.guard ?? verdict;
    said += choice.delta.content ?? "";
    if (gates) gates.add(choice);
    else one.body.textContent = said;
  }
  gates?.settle(verdict);
  if (!said && reason !== "content_filter") one.body.append(h("p", { class: "soft" }, "(an empty answer)"));
  if (reason === "content_filter") one.body.append(h("p", { class: "cut" }, "The policy has ended the answer here."));
  one.end(verdict, reason === "length" ? "cut at the most tokens" : "");
}

/** The tokens of an answer, and of its prompt, with the scores that guards gave them. */
class Gates {
  constructor() {
    this.names = [];
    this.prompt = [];
    this.tokens = [];
    this.thresholds = {};
  }

  begin(place) {
    this.place = place;
  }

  add(choice) {
    const named = choice.logprobs?.content ?? [];
    for (const { token } of named) this.push(token);
    // text without tokens is the policy's own message
    if (!named.length && choice.delta.content) this.push(choice.delta.content, true);
    for (const { position, scores, token } of choice.gates ?? []) {
      for (const name of Object.keys(scores)) if (!this.names.includes(name)) this.names.push(name);
      if (position === 0) this.prompt.push({ text: token, scores });
      else if (this.tokens[position - 1]) Object.assign(this.tokens[position - 1], { scores });
    }
    this.chosen ??= this.names[0];
    for (const token of this.tokens) this.paint(token);
  }

  push(text, isMessage = false) {
    const span = h("span", { class: isMessage ? "token message" : "token" }, text);
    this.tokens.push({ text, span, isMessage });
    this.place.append(span);
  }

  settle(verdict) {
    for (const guard of verdict?.guards ?? []) this.thresholds[guard.guard] = guard.threshold;
    for (const token of this.tokens) this.paint(token);
  }

  paint(token) {
    const score = token.scores?.[this.chosen];
    if (!token.span || score === undefined) return;
    const level = levelOf(score, this.thresholds[this.chosen] ?? 0.5);
    token.span.className = `token level-${level}`;
    token.span.title = `${this.chosen}: ${figure(score)}`;
  }

  panel(answer) {
    const place = h("div", { class: "stack" });
    const drawn = () => {
      for (const token of this.tokens) this.paint(token);
      replace(place, this.draw());
    };
    const guard = select("Colour by the guard", this.names, { onchange: () => { this.chosen = guard.control.value; drawn(); } });
    drawn();
    return h("section", { class: "card", "aria-label": "What the guard has read" },
      h("header", {}, h("h2", {}, "What the guard has read"), this.names.length > 1 && guard), place);
  }

  draw() {
    const threshold = this.thresholds[this.chosen] ?? 0.5;
    const read = [...this.prompt.map((each) => ({ ...each, of: "prompt" })), ...this.tokens.map((each) => ({ ...each, of: "answer" }))]
      .map((each) => ({ text: each.text, of: each.of, score: each.scores?.[this.chosen] }));
    const over = read.filter((each) => each.score > threshold);
    const words = over.length
      ? `${plural(over.length, "token")} of ${read.length} over the threshold of ${figure(threshold)}, the first one “${over[0].text.trim()}” in the ${over[0].of}.`
      : `No single token is over the threshold of ${figure(threshold)}.`;
    const first = this.prompt.map((each) => {
      const span = h("span", { class: "token" }, each.text);
      this.paint({ ...each, span });
      return span;
    });
    const legend = ["far below", "below", "near", "over", "far over"].map((name, level) => h("span", { class: `token level-${level}` }, name));
    return [h("p", {}, words, " A guard compares the mean of its largest token scores with its threshold."),
      h("div", { class: "parts small soft", "aria-hidden": "true" }, [["prompt", this.prompt], ["answer", this.tokens]].map(([name, part]) => h("span", { "--tokens": part.length }, part.length > 0 && name))), gateChart(read, threshold),
      h("p", { class: "row small", "aria-hidden": "true" }, h("span", { class: "soft" }, "Score beside the threshold:"), legend),
      h("details", {}, h("summary", {}, "The prompt, as the model reads it"), h("p", { class: "answer" }, first)),
      h("details", {}, h("summary", {}, "All scores as a table"), scroll("Scores", h("table", {}, h("thead", {}, h("tr", {}, ["Token", "Of the", "Score"].map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, read.map((each) => h("tr", {}, h("td", { class: "mono" }, JSON.stringify(each.text)), h("td", {}, each.of), h("td", {}, each.score === undefined ? "not read" : figure(each.score, 4)))))), "table-short"))];
  }
}

const levelOf = (score, threshold) => [0.25, 0.75, 1, 1.5].filter((bound) => score > bound * threshold).length;

function gateChart(read, threshold) {
  const width = 1000, height = 150, foot = 20;
  const most = Math.max(threshold * 1.25, ...read.map((each) => each.score ?? 0));
  const y = (score) => (height - foot) * (1 - Math.max(0, score) / most);
  const step = width / read.length;
  const border = read.filter((each) => each.of === "prompt").length * step;
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", preserveAspectRatio: "none", "aria-label": "The score of each token, and the threshold" },
    read.map((each, i) => each.score !== undefined && svg("rect", { x: i * step + step * 0.1, width: step * 0.8, y: y(each.score), height: Math.max(1, height - foot - y(each.score)), class: `bar level-${levelOf(each.score, threshold)}` },
      svg("title", {}, `${each.text} ${figure(each.score)}`))),
    svg("line", { x1: 0, x2: width, y1: y(threshold), y2: y(threshold), class: "limit" }),
    border > 0 && svg("line", { x1: border, x2: border, y1: 0, y2: height, class: "border" }),
    svg("line", { x1: 0, x2: width, y1: height - foot, y2: height - foot, class: "axis" }));
}

// One side of the playground: what was asked, what came, and what the guards said.

import { h, milliseconds, replace } from "../dom.js";
import { effect, meter, notice, outcome } from "../widgets.js";

export function side(title, policy) {
  const state = h("span", { class: "row" }), body = h("div", { class: "answer" }), foot = h("div", { class: "stack" });
  const card = h("article", { class: "card side-card", "aria-label": title }, h("header", {}, h("h2", {}, title, h("span", { class: "soft" }, ` policy ${policy}`)), state), body, foot);
  const start = performance.now();
  return {
    card, body, foot,
    wait(words) { replace(state, h("span", { class: "chip" }, words)); },
    /** The end: a verdict where there is one. */
    end(guard, words = "") {
      replace(state, guard && outcome(guard.outcome), h("span", { class: "soft small" }, [words, milliseconds(performance.now() - start)].filter(Boolean).join(" · ")));
      if (guard?.guards?.length) replace(foot, h("h3", {}, "Scores"), guard.guards.map((each) => h("div", {}, meter(each), effect(each))));
    },
    fail(error) {
      const stopped = error.name === "AbortError";
      this.end(error.guard ?? null, stopped ? "stopped" : "");
      if (!stopped) body.append(notice(error.message, error.code?.startsWith("content") ? "warn" : "bad"));
    },
  };
}

/** Run both sides at once, each on its own; both have ended when it returns. */
export const both = (sides, run) => Promise.all(sides.map(async ([one, policy, debug]) => {
  try {
    one.wait("running …");
    await run(one, policy, debug);
  } catch (error) {
    one.fail(error);
  }
}));

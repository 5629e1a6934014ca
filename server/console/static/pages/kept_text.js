// What a request said, shown to whoever asks for it: the server notes who has read it.

import { get } from "../api.js";
import { announce, h, replace } from "../dom.js";
import { acting } from "../widgets.js";

export function keptText(request) {
  const place = h("div", { class: "stack" }), problem = h("div");
  const button = h("button", { type: "button", onclick: () => acting(button, problem, async () => {
    const { texts, not_text: others } = await get(`guard/v1/traffic/${request.id}/text`);
    replace(place, texts.length ? texts.map(said) : h("p", { class: "soft" }, "The request has no text."),
      others.length > 0 && h("p", { class: "small soft" }, `Not text, and not shown: ${others.join(", ")}`));
    button.remove();
    announce("The text is here.");
  }) }, "Show the text");
  replace(place, h("p", { class: "small soft" }, "The policy keeps the text of this request. Who reads it stands in the audit log."), button);
  return h("section", { class: "stack", "aria-label": "Text of the request" }, place, problem);
}

const said = ({ place, path, text }) => h("div", { class: "said" },
  h("p", { class: "small" }, h("span", { class: "chip accent" }, place), " ", h("code", { class: "soft" }, path)), h("p", { class: "answer" }, text));

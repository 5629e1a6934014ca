// The certificate of an erasure, to read here or to take along.

import { get, text } from "../api.js";
import { day, h, save } from "../dom.js";
import { dialog, scroll } from "../widgets.js";

export async function showCertificate(path) {
  const [certificate, page] = await Promise.all([get(`${path}/certificate?format=json`), text(`${path}/certificate?format=html`, { accept: "text/html" })]);
  const { asked } = certificate;
  const facts = [["State", certificate.state], ["Asked", `${asked.name}${asked.aliases.length ? `, ${asked.aliases.join(", ")}` : ""}`], ["Model", asked.model],
    ["Fingerprint", certificate.model?.fingerprint], ["Judgement", certificate.judgement], ["Reason", certificate.reason], ["Issued", day(certificate.issued)], ["Digest", certificate.digest]];
  const shown = facts.filter(([, value]) => value);
  const table = (label, names, rows) => scroll(label, h("table", {}, h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", { class: "small" }, cell)))))));
  const part = (name, names, rows) => rows.length > 0 && [h("h3", {}, name), table(name, names, rows)];
  await dialog(`Certificate of “${asked.name}”`, (close) => [
    h("dl", { class: "facts" }, shown.map(([name, value]) => [h("dt", {}, name), h("dd", { class: name === "Digest" || name === "Fingerprint" ? "mono" : "" }, value)])),
    part("States", ["State", "Since"], certificate.history.map((step) => [step.state, day(step.time)])),
    part("Guards", ["Guard", "Concept", "SHA-256 of the artifact"], certificate.guards.map((each) => [each.guard, each.concept, each.artifact])),
    part("Evaluation", ["Figure", "Value"], Object.entries(certificate.figures)),
    h("p", { class: "soft small" }, "Its digest is in the audit log: guard certificate checks one against the other."),
    h("footer", {}, h("button", { onclick: () => save(`${certificate.erasure}.json`, JSON.stringify(certificate, null, 2), "application/json") }, "Save as JSON"),
      h("button", { onclick: () => save(`${certificate.erasure}.html`, page, "text/html") }, "Save as a page"),
      h("button", { class: "main", onclick: () => close() }, "Close")),
  ]);
}

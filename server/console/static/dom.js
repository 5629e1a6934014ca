// Elements out of data. Text is always text: nothing here, or anywhere else, makes HTML of a string.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, listeners ("on..."), custom properties ("--...") and children. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function replace(parent, ...children) {
  parent.replaceChildren(...children.flat(3).filter(Boolean));
  return parent;
}

/** Say something to who listens to the page and does not see it. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

export const figure = (value, digits = 3) =>
  value === null || value === undefined ? "–" : Number(value).toFixed(digits).replace(/\.?0+$/, "") || "0";

export const count = (value) => Number(value).toLocaleString("en");

export const isNarrow = () => matchMedia("(max-width: 720px)").matches;

export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

export function clock(time) {
  const moment = new Date(time);
  const text = moment.toLocaleTimeString("en-GB");
  return h("time", { datetime: moment.toISOString(), title: moment.toLocaleString("en-GB") }, text);
}

export const day = (time) => (time ? new Date(time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }) : "–");

export function milliseconds(value) {
  return value >= 1000 ? `${(value / 1000).toFixed(1)} s` : `${Math.round(value)} ms`;
}

/** Save a text as a file. */
export function save(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

// The frame of the console: who is signed in, and which page is open.

import { Failure, get, keys } from "./api.js";
import { announce, h, replace } from "./dom.js";
import { field, notice } from "./widgets.js";
import * as erasures from "./pages/erasures.js";
import * as playground from "./pages/playground.js";
import * as policies from "./pages/policies.js";
import * as scores from "./pages/scores.js";
import * as tenants from "./pages/tenants.js";
import * as traffic from "./pages/traffic.js";

const PAGES = { traffic, playground, scores, policies, erasures, keys: tenants };
const main = document.getElementById("main");
const nav = document.getElementById("nav");
let caller = null;
let leave = () => {};

/** The pages that this caller can use: each says what it needs of the server. */
const open = () => Object.entries(PAGES).filter(([, page]) => !page.needs || caller.offers.includes(page.needs));

async function start() {
  try {
    caller = await get("guard/v1/me");
  } catch (error) {
    // a server that is away, or busy, has not refused the key
    if (error.status !== 401) return replace(main, notice(error.message, "bad"));
    keys.admin = "";
    caller = await get("guard/v1/me");
    return signIn(error.message);
  }
  if (!caller.role && (caller.administered || caller.keyed)) return signIn();
  return show();
}

function signIn(problem = "") {
  leave();
  replace(nav);
  const key = field("Key", h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true }),
    "It stays in this tab until you close it or sign out, and is never part of an address.");
  const place = h("div", {}, problem && notice(problem, "bad"));
  const form = h("form", { class: "card stack sign-in", onsubmit: submit },
    h("h1", {}, "Sign in"),
    h("p", { class: "soft" }, caller?.administered
      ? "With the administrator's key, or a key of the role admin or auditor."
      : "With an API key of this server."),
    key, place, h("button", { class: "main" }, "Sign in"),
    !caller?.keyed && h("button", { type: "button", class: "plain", onclick: () => show() }, "Open what needs no key"));
  async function submit(event) {
    event.preventDefault();
    keys.admin = key.control.value.trim();
    try {
      caller = await get("guard/v1/me");
      if (!caller.role) throw new Failure("This server knows no such key.");
      if (caller.role === "tenant") keys.models = keys.admin;
      await show();
    } catch (error) {
      keys.admin = "";
      replace(place, notice(error.message, "bad"));
      key.control.select();
    }
  }
  replace(document.getElementById("caller"));
  replace(main, form);
  key.control.focus();
}

function signOut() {
  keys.admin = "";
  keys.models = "";
  leave();
  leave = () => {};
  start();
}

function show() {
  const about = caller.role
    ? [h("span", { class: "about soft" }, "Signed in as"), h("span", { class: "row" }, h("strong", { class: "about" }, caller.name), h("span", { class: "chip accent" }, caller.role)), h("button", { onclick: signOut }, "Sign out")]
    : [h("span", { class: "about soft" }, caller.administered ? "Without a key you see what any client sees." : "This server has no keys: it is open to all that reach it."),
       caller.administered && h("button", { onclick: () => signIn() }, "Sign in")];
  replace(document.getElementById("caller"), about);
  return route();
}

async function route() {
  if (!caller) return;
  const pages = Object.fromEntries(open());
  const named = location.hash.slice(2).split("/")[0];
  const name = named in pages ? named : Object.keys(pages)[0];
  leave();
  const page = pages[name];
  replace(nav, open().map(([key, each]) =>
    h("li", {}, h("a", { href: `#/${key}`, "aria-current": key === name && "page" }, each.title))));
  nav.parentElement.scrollLeft = nav.querySelector("[aria-current]").offsetLeft - 60;
  document.title = `${page.title} · inference-guard`;
  const root = h("div", { class: `page ${name}` });
  replace(main, root);
  const cleanups = [];
  leave = () => cleanups.splice(0).forEach((each) => each());
  const context = { caller, onleave: (cleanup) => cleanups.push(cleanup), may: caller.role === "admin" };
  try {
    await page.mount(root, context);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) { keys.admin = ""; signIn(error.message); return; }
    root.append(notice(error.message, "bad"));
  }
}

window.addEventListener("hashchange", () => {
  route();
  announce(document.title);
  main.focus();
});
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
start().catch((error) => replace(main, notice(error.message, "bad")));

// The door, the two views, and which of them is shown.

import { Refused, forget, get, remember, takeFromAddress, token } from "./api.js";
import { h, show } from "./dom.js";
import { MachineView } from "./machine.js";
import { NowView } from "./now.js";

const element = (id) => document.getElementById(id);
const views = {};
let shown = null;

/** Says something in the bar; a refused token leads back to the door. */
function say(message) {
  element("status").replaceChildren(...(message ? [message] : []));
}

function problem(error) {
  if (error.name === "AbortError") return;
  if (error instanceof Refused && error.status === 401) {
    leave("The token is not the right one.");
    return;
  }
  say(h("span", { class: "mark bad" }, h("span", { "aria-hidden": "true" }, "▲ "), error instanceof TypeError ? "The service cannot be reached." : error.message));
}

function leave(message = "") {
  shown?.stop();
  shown = null;
  forget();
  for (const name of Object.keys(views)) delete views[name];
  show(element("view"));
  say();
  element("tabs").hidden = true;
  element("leave").hidden = true;
  element("door").hidden = false;
  element("door-problem").textContent = message;
  element("token").value = "";
  element("token").focus();
}

function open(name) {
  if (shown === views[name]) return;
  shown?.stop();
  shown = views[name];
  say();
  for (const tab of element("tabs").querySelectorAll("button")) {
    if (tab.dataset.view === name) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  show(element("view"), shown.node);
  document.title = `${name === "now" ? "Now" : "Time machine"} · Shapefold`;
  shown.start();
}

async function enter() {
  try {
    const about = await get("/v1/journals");
    const context = { say, problem, openAt: (event) => { open("machine"); views.machine.goTo(String(event)); } };
    views.machine = new MachineView(about, context);
    if (about.live) views.now = new NowView(about, context);
    element("door").hidden = true;
    element("tabs").hidden = !about.live;
    element("leave").hidden = false;
    open(about.live ? "now" : "machine");
  } catch (error) {
    if (error instanceof Refused && error.status === 401) leave(token() ? "The token is not the right one." : "");
    else problem(error);
  }
}

element("door").addEventListener("submit", (event) => {
  event.preventDefault();
  remember(element("token").value);
  enter();
});
element("leave").addEventListener("click", () => leave());
element("tabs").addEventListener("click", (event) => {
  const name = event.target.dataset.view;
  if (name) open(name);
});

takeFromAddress();
if (token()) enter();
else leave();

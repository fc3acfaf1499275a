// Goes through the dashboard as a person would, and prints what it shows: one JSON object a line. Run by tests/it/admin.
//
//   node dashboard.mjs '{"program", "url", "token", "view", "screenshots", "name", "width", "scheme", "keyboard", …}'

import { join } from "node:path";
import { Browser } from "./devtools.mjs";

const wanted = JSON.parse(process.argv[2]);
const HEIGHT = 900;
/** Milliseconds for the first reading of a million events by a build without optimisation. */
const READING_MAX = 300_000;
const browser = new Browser(wanted.program);

const say = (step, value) => console.log(JSON.stringify({ step, value }));
const picture = (step) => browser.screenshot(join(wanted.screenshots, `${wanted.name}-${wanted.width}-${wanted.scheme}-${step}.png`), wanted.width);
const shownEvent = "document.querySelector('#at-event')?.innerText.replaceAll(',', '')";
const focused = () => browser.value("(document.activeElement.innerText || document.activeElement.getAttribute('aria-label') || document.activeElement.id).split('\\n')[0]");

/** Presses Tab until that element has the focus. */
async function tabTo(selector) {
  for (let pressed = 0; pressed < 400; pressed += 1) {
    if (await browser.value(`document.activeElement.matches(${JSON.stringify(selector)})`)) return pressed;
    await browser.key("Tab");
  }
  throw new Error(`${selector} cannot be reached with Tab`);
}

async function press(selector) {
  if (!wanted.keyboard) {
    await browser.click(selector);
    return;
  }
  await tabTo(selector);
  await browser.key("Enter");
}

/** What a person at the keyboard needs to see where they are. */
async function focusIsSeen() {
  const outline = await browser.value("getComputedStyle(document.activeElement).outlineStyle + ' ' + getComputedStyle(document.activeElement).outlineWidth");
  if (!outline.startsWith("solid") || outline.endsWith(" 0px")) throw new Error(`the focus on ${await focused()} is not seen: ${outline}`);
}

async function enter() {
  await browser.open(wanted.width, HEIGHT, wanted.scheme);
  await browser.go(wanted.url);
  await browser.until("document.querySelector('#door') !== null && !document.querySelector('#door').hidden", "the door");
  await browser.type("not the token");
  await browser.key("Enter");
  await browser.until("document.querySelector('#door-problem').innerText !== ''", "a refusal");
  say("refused", await browser.text("#door-problem"));
  // The refusal is in the browser's own log.
  browser.problems = browser.problems.filter((problem) => !problem.includes("401"));
  if (wanted.view === "many") await browser.value(`(${watch})()`);
  await browser.type(wanted.token);
  await browser.key("Enter");
}

async function goTo(place) {
  await browser.value("document.querySelector('#place').value = ''");
  if (wanted.keyboard) await tabTo("#place");
  else await browser.value("document.querySelector('#place').focus()");
  await browser.type(place);
  await browser.key("Enter");
}

const arrived = (event) => browser.until(`${shownEvent} === ${JSON.stringify(String(event))}`, `event ${event}`);

async function moment(step) {
  say(step, {
    event: await browser.value(shownEvent),
    gap: await browser.text(".huge small"),
    moment: await browser.text(".headline .lead"),
    holders: await browser.text("#blockers-title + *"),
    why: await browser.text("#why-title + *"),
    state: await browser.text("#state-title + *"),
  });
}

async function machine() {
  await browser.until(`${shownEvent} !== undefined`, "a moment");
  await browser.until("document.querySelectorAll('.long-list .row').length > 0", "events");
  await moment("end");
  say("stories", await browser.text("#stories-title + *"));
  say("owners", await browser.text("#machine-owners-title + *"));
  await picture("end");
  // Through time: by event, by place, by slider.
  await goTo("3");
  await arrived(3);
  await press("[aria-label='The next event']");
  await arrived(4);
  await press("[aria-label='The event before']");
  await arrived(3);
  if (wanted.keyboard) {
    await tabTo("#moment-slider");
    await focusIsSeen();
    await browser.key("End");
    await arrived(wanted.last);
    await browser.key("Home");
    await arrived(wanted.first);
    await browser.key("End");
    await arrived(wanted.last);
    const before = await browser.value("document.querySelector('#moment-slider').value");
    await browser.key("ArrowLeft");
    await browser.until(`document.querySelector('#moment-slider').value < ${before}`, "a step back");
    say("slider", await browser.value("document.querySelector('#moment-slider').getAttribute('aria-valuetext')"));
  }
  // To what was unusual, and what that was because of.
  if (await browser.value("document.querySelector('.story-jump') !== null")) {
    await press(".story-jump");
    await arrived(wanted.anomaly);
    await moment("anomaly");
    // The list may still show the moment before.
    const number = Number(wanted.anomaly).toLocaleString("en-US");
    await browser.until(
      `document.querySelector('.long-list .current')?.innerText.startsWith(${JSON.stringify(number)})`,
      "its place among the events",
    );
    say("current", await browser.text(".long-list .current"));
    await picture("anomaly");
  }
  // Two moments beside each other.
  await goTo(String(wanted.before));
  await arrived(wanted.before);
  await press("#mark");
  await goTo("end");
  await arrived(wanted.last);
  await browser.until("document.querySelector('.compare')?.innerText.includes('B: event ' + document.querySelector('#at-event').innerText)", "a comparison");
  say("compare", await browser.text(".compare"));
  await picture("compare");
  if (await browser.value("document.querySelector('#blockers-title ~ * .stacks .link') !== null")) {
    await press(".stacks tbody .link");
    await browser.until("document.querySelector('dialog .chain') !== null", "the life of a shape");
    say("shape", await browser.text("dialog"));
    await picture("shape");
    await browser.key("Escape");
    await browser.until("document.querySelector('dialog') === null", "the dialog to close");
  }
  await press("#verify-title ~ button");
  await browser.until("document.querySelector('#verify-title ~ div .lead') !== null", "a verdict");
  say("verify", await browser.text("#verify-title ~ div"));
  if (wanted.file) {
    // Another journal, handed in.
    const { root } = await browser.call("DOM.getDocument");
    const { nodeId } = await browser.call("DOM.querySelector", { nodeId: root.nodeId, selector: "#file" });
    await browser.call("DOM.setFileInputFiles", { nodeId, files: [wanted.file] });
    await browser.until("document.querySelector('#journal')?.selectedOptions[0]?.innerText === 'handed-in.sfx'", "the journal that was handed in");
    await browser.until(`${shownEvent} === ${JSON.stringify(String(wanted.fileLast))}`, "its end");
    await moment("handed in");
  }
}

async function live() {
  await browser.until("document.querySelector('#holders-title + * p, #holders-title + * table') !== null", "what is now");
  await browser.until(`document.querySelector('#all-title ~ div tbody tr') !== null`, "a list of shapes");
  await browser.until("document.querySelectorAll('.events li').length > 0 || true");
  say("headline", await browser.text(".headline"));
  say("shapes", await browser.text("#all-title ~ div table"));
  say("owner", await browser.text("#owner-title + *"));
  say("stream", await browser.text("#stream-title + *"));
  say("census", await browser.text("#shapes-title + *"));
  await press(".check button");
  await browser.until("document.querySelector('.check .mark') !== null", "a comparison");
  say("check", await browser.text(".check div"));
  console.log(JSON.stringify({ step: "ready" }));
  // The test writes now; its events come by themselves.
  await browser.until("document.querySelector('.events')?.innerText.includes('TxnRouted')", "a transaction among the events");
  say("events", await browser.text(".events"));
  await picture("now");
  await press("#all-title ~ div tbody .link");
  await browser.until("document.querySelector('dialog .chain') !== null", "the life of a shape");
  say("shape", await browser.text("dialog"));
  await browser.key("Escape");
  await press("#tab-machine");
  await browser.until(`${shownEvent} !== undefined`, "a moment");
  await moment("machine");
  await picture("machine");
}

/** Runs in the page: counts questions under way, and how long anything keeps it from answering. */
function watch() {
  window.seen = { underWay: 0, most: 0, longest: 0 };
  const real = window.fetch.bind(window);
  window.fetch = async (...all) => {
    window.seen.underWay += 1;
    window.seen.most = Math.max(window.seen.most, window.seen.underWay);
    try {
      return await real(...all);
    } finally {
      window.seen.underWay -= 1;
    }
  };
  const tasks = (list) => list.getEntries().forEach((one) => (window.seen.longest = Math.max(window.seen.longest, one.duration)));
  new PerformanceObserver(tasks).observe({ type: "longtask" });
}

/** A list of a million events and a table of 300,000 shapes must not become that many elements. */
async function many() {
  if (wanted.reads) {
    await browser.until("document.body.innerText.includes('Reading the journal: event')", "how far the reading is", READING_MAX);
    say("reading", await browser.text("#status"));
  }
  await browser.until(`${shownEvent} === ${JSON.stringify(String(wanted.last))}`, "the end", READING_MAX);
  await browser.until("document.querySelectorAll('.long-list .row').length > 0", "events");
  await picture("end");
  const elements = () => browser.value("document.querySelectorAll('*').length");
  let most = await elements();
  for (const share of [0, 0.3, 0.6, 1]) {
    await browser.value(`(() => { const list = document.querySelector('.long-list'); list.scrollTop = (list.scrollHeight - list.clientHeight) * ${share}; })()`);
    await browser.until("document.querySelectorAll('.long-list .row').length > 0 && document.querySelector('.long-list .faint') === null", "events there");
    most = Math.max(most, await elements());
  }
  await browser.click("[data-key='holders-next']");
  await browser.until("document.querySelectorAll('.stacks tbody tr').length > 10", "more of them");
  most = Math.max(most, await elements());
  await goTo("end");
  await arrived(wanted.last);
  await moment("many");
  // Dragged from one end to the other and back to the middle, a frame for each of 200 places.
  await browser.value(`(async () => {
    const slider = document.querySelector('#moment-slider');
    for (let step = 0; step <= 200; step += 1) {
      slider.value = step <= 150 ? (step / 150) * slider.max : slider.max * (1 - (step - 150) / 100);
      slider.dispatchEvent(new Event('input', { bubbles: true }));
      await new Promise((done) => requestAnimationFrame(done));
    }
  })()`);
  const middle = Math.round((wanted.first + wanted.last) / 2);
  await goTo(String(middle));
  await arrived(middle);
  await browser.until("window.seen.underWay === 0", "nothing more to be asked");
  most = Math.max(most, await elements());
  await moment("middle");
  await picture("middle");
  say("elements", most);
  say("under way", await browser.value("window.seen.most"));
  say("longest task", await browser.value("Math.round(window.seen.longest)"));
}

try {
  await enter();
  await { machine, live, many }[wanted.view]();
  say("width", await browser.value("[document.documentElement.scrollWidth, innerWidth]"));
  say("problems", browser.problems);
  say("done", true);
} finally {
  await browser.close();
}

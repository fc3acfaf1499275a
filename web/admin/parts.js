// What both views show: figures, holders, cohorts, causes.

import { exact, h } from "./dom.js";
import { bytes, commas, exactBytes, iso, moment, plural, span } from "./format.js";

/** A name and its value; `note` in small below. */
export const figure = (name, value, note, more) =>
  h("div", { class: "figure", ...more }, h("dt", {}, name), h("dd", {}, value, note ? h("small", {}, note) : null));

export const figures = (...list) => h("dl", { class: "figures" }, list);

export const section = (title, id, ...children) =>
  h("section", { class: "card", "aria-labelledby": id }, h("h2", { id }, title), children);

/** Words with a sign, so that the colour is not all there is. */
export const good = (text) => h("span", { class: "mark good" }, h("span", { "aria-hidden": "true" }, "✓ "), text);
export const bad = (text) => h("span", { class: "mark bad" }, h("span", { "aria-hidden": "true" }, "▲ "), text);

/** Counts as bars: the share is seen, the number is read. */
export function bars(counts, names) {
  const all = Object.values(counts).reduce((sum, count) => sum + count, 0);
  return h(
    "ul",
    { class: "bars" },
    Object.entries(names).map(([name, words]) =>
      h(
        "li",
        {},
        h("span", {}, words),
        h("meter", { min: 0, max: Math.max(1, all), value: counts[name], "aria-hidden": "true" }),
        h("b", {}, commas(counts[name])),
      ),
    ),
  );
}

export const LIVES = { Registered: "waiting for their rows", Snapshotting: "reading their rows", Live: "live", Invalidated: "being removed" };
export const WRITERS = { ready: "at work", starting: "starting", ending: "ending", none: "none" };

const cell = (label, ...content) => h("td", { "data-label": label }, content);

/** A table of who holds the log. `onShape(handle)` opens one. */
export function holders(list, onShape) {
  if (list.length === 0) return h("p", { class: "faint" }, "Nobody owes anything.");
  return h(
    "table",
    { class: "stacks" },
    h("thead", {}, h("tr", {}, ["Shape", "Table", "Holds", "Owes", "Idle for", "Who pays", "Last exit"].map((name) => h("th", { scope: "col" }, name)))),
    h(
      "tbody",
      {},
      list.map((one) =>
        h(
          "tr",
          {},
          cell("Shape", h("button", { type: "button", class: "link mono", "data-key": `holder-${one.shape}`, onclick: () => onShape(one.shape) }, one.shape)),
          cell("Table", String(one.table)),
          cell("Holds", exact(bytes(one.bytes), exactBytes(one.bytes))),
          cell("Owes", exact(plural(one.owed, "transaction"), `since transaction ${one.oldest}, commit ${one.lsn}`)),
          cell("Idle for", exact(one.idle, `since ${one.since}`)),
          cell("Who pays", one.nobody ? bad("nobody") : one.payer),
          cell("Last exit", one.last_exit ? exact(one.last_exit.cause, `writer ${one.last_exit.incarnation} at event ${one.last_exit.event}, ${one.last_exit.at}`) : "–"),
        ),
      ),
    ),
  );
}

/** Shapes that stopped at the same transaction. */
export function cohort(one, onEvent) {
  const list = (counts) => Object.entries(counts).map(([name, count]) => `${name}: ${commas(count)}`).join(", ");
  return h(
    "div",
    { class: "callout" },
    h("p", { class: "lead" }, bad(`${plural(one.shapes, "shape")} stopped at the same transaction and have no writer`)),
    figures(
      figure("Transaction", commas(one.oldest), `commit ${one.lsn}, xid ${one.xid}`),
      figure("They hold", bytes(one.bytes), exactBytes(one.bytes)),
      figure("Tables", list(one.tables), "oid: shapes"),
      figure("Last exits", list(one.exits)),
      figure("Flushed nothing ever", commas(one.flushed_nothing), one.flushed_nothing_named.slice(0, 3).join(", ")),
      one.first_exit
        ? figure("First exit", h("button", { type: "button", class: "link", onclick: () => onEvent(one.first_exit.event) }, `event ${commas(one.first_exit.event)}`), moment(one.first_exit.at))
        : null,
    ),
  );
}

/** An event that can be gone to. */
export const link = (one, onEvent, before = "") =>
  h(
    "li",
    {},
    h("button", { type: "button", class: "link mono", "data-key": `event-${one.event}`, onclick: () => onEvent(one.event) }, commas(one.event)),
    h("time", { datetime: one.at, title: one.at }, moment(one.at)),
    h("span", {}, before, one.text),
  );

/** From an effect to its cause. */
export const chain = (found, onEvent) => [
  h("ol", { class: "chain" }, found.links.map((one, index) => link(one, onEvent, index === 0 ? "" : h("b", {}, "because ")))),
  h("p", { class: "faint" }, `${found.end[0].toUpperCase()}${found.end.slice(1)}.`),
];

/** Why a shape owes. */
export function owing(one, onEvent, onShape) {
  return [
    h(
      "p",
      {},
      "Shape ",
      onShape ? h("button", { type: "button", class: "link mono", onclick: () => onShape(one.shape) }, one.shape) : h("span", { class: "mono" }, one.shape),
      ` owes ${plural(one.owed, "transaction")}, the oldest is ${commas(one.oldest)}. No progress for ${one.idle}. Next step by `,
      one.nobody ? bad("nobody") : one.payer,
      ".",
    ),
    one.routed ? h("ol", { class: "chain" }, link(one.routed, onEvent)) : null,
    one.exit ? chain(one.exit, onEvent) : null,
    one.exit && one.nobody ? h("p", {}, bad("Nothing was decided upon that exit: no restart, no removal (F2).")) : null,
  ];
}

/** Why a shape stands as it stands. */
export function reason(found, onEvent) {
  switch (found.is) {
    case "settled":
      return h("p", {}, good("It lives and owes nothing."));
    case "owing":
      return owing(found.owing, onEvent);
    case "ended":
      return chain(found.chain, onEvent);
    default:
      return h("p", {}, "The journal does not say how it ended.");
  }
}

/** The life of a shape and why it stands as it stands, in a dialog over the view. */
export function shapeDialog(called, { life, why, onEvent }) {
  const body = h("div", { "aria-live": "polite" }, h("p", { class: "faint" }, "Reading its life …"));
  const dialog = h(
    "dialog",
    { "aria-label": `Shape ${called}`, onclose: () => dialog.remove() },
    h("div", { class: "dialog-head" }, h("h2", {}, "Shape ", h("span", { class: "mono" }, called)), h("button", { type: "button", onclick: () => dialog.close() }, "Close")),
    body,
  );
  document.body.append(dialog);
  dialog.showModal();
  const go = (event) => {
    dialog.close();
    onEvent(event);
  };
  Promise.all([why(), life()])
    .then(([because, story]) => {
      body.replaceChildren(
        h("h3", {}, "Why it stands where it stands"),
        ...[reason(because, go)].flat(Infinity).filter(Boolean),
        h("h3", {}, "Its life"),
        h("ol", { class: "chain" }, story.lines.map((one) => link(one, go))),
      );
      if (story.lines_count > story.lines.length) {
        body.append(h("p", { class: "faint" }, `and ${commas(story.lines_count - story.lines.length)} more: shapefold journal shape`));
      }
    })
    .catch((error) => body.replaceChildren(h("p", { class: "problem" }, error.message)));
}

export const since = (us, now) => `${span(Math.max(0, now - us))}`;
export { iso };

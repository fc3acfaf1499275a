// A list of any length with as many rows as can be seen: a million events are a hundred elements.

import { h, show } from "./dom.js";

const ROW_HEIGHT = 30;
/** Browsers do not make elements taller than some 30 million pixels. */
const HEIGHT_MAX = 6_000_000;
const PAGE = 100;
const PAGES_KEPT_MAX = 24;

/**
 * Rows `first..=last` of something that is numbered without gaps. `fetchPage(after, limit)` gives the rows behind a number;
 * `row(item)` makes an element of one.
 */
export class LongList {
  constructor({ label, fetchPage, row, onProblem }) {
    this.fetchPage = fetchPage;
    this.row = row;
    this.onProblem = onProblem;
    this.pages = new Map();
    this.first = 1;
    this.last = 0;
    this.current = null;
    this.rows = h("ol", { class: "rows" });
    this.spacer = h("div", { class: "spacer" }, this.rows);
    this.node = h("div", { class: "long-list", tabindex: "0", role: "region", "aria-label": label }, this.spacer);
    this.node.addEventListener("scroll", () => this.schedule());
    new ResizeObserver(() => this.schedule()).observe(this.node);
  }

  get count() {
    return Math.max(0, this.last - this.first + 1);
  }

  get height() {
    return Math.min(HEIGHT_MAX, this.count * ROW_HEIGHT);
  }

  reset(first, last) {
    if (first !== this.first || last < this.last) this.pages.clear();
    this.first = first;
    this.last = last;
    this.spacer.style.height = `${this.height}px`;
    this.schedule();
  }

  /** Marks a row, and brings it to where it can be seen. */
  goTo(number) {
    this.current = number;
    const index = Math.min(this.count - 1, Math.max(0, number - this.first));
    const [top, visible] = this.window();
    if (index < top + 1 || index > top + visible - 2) {
      const wanted = Math.max(0, index - Math.floor(visible / 2));
      const most = Math.max(1, this.count - visible);
      this.node.scrollTop = (Math.min(wanted, most) / most) * Math.max(0, this.height - this.node.clientHeight);
    }
    this.schedule();
  }

  /** The first row that can be seen, and how many can. */
  window() {
    const visible = Math.max(1, Math.ceil(this.node.clientHeight / ROW_HEIGHT));
    const scrollable = Math.max(1, this.height - this.node.clientHeight);
    const most = Math.max(0, this.count - visible);
    return [Math.round((this.node.scrollTop / scrollable) * most), visible + 1];
  }

  schedule() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.draw();
    });
  }

  draw() {
    const [top, visible] = this.window();
    const items = [];
    for (let index = top; index < Math.min(this.count, top + visible); index += 1) {
      const number = this.first + index;
      items.push(this.item(number));
    }
    this.rows.style.transform = `translateY(${Math.min(this.node.scrollTop, Math.max(0, this.height - visible * ROW_HEIGHT))}px)`;
    show(this.rows, items);
  }

  item(number) {
    const page = Math.floor((number - this.first) / PAGE);
    const found = this.pages.get(page);
    if (found === undefined) this.load(page);
    const item = Array.isArray(found) ? found.find((one) => one.id === number) : undefined;
    const current = number === this.current;
    const content = item ? this.row(item) : h("span", { class: "faint" }, `${number}  ${found === undefined || found === null ? "…" : "not in the journal"}`);
    return h("li", { class: current ? "current" : null, "aria-current": current ? "true" : null }, content);
  }

  async load(page) {
    this.pages.set(page, null);
    if (this.pages.size > PAGES_KEPT_MAX) this.pages.delete(this.pages.keys().next().value);
    try {
      this.pages.set(page, await this.fetchPage(this.first + page * PAGE - 1, PAGE));
    } catch (error) {
      this.pages.delete(page);
      this.onProblem(error);
    }
    this.schedule();
  }
}

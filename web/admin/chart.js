// Lines over time. The service sends at most 240 stretches, whatever the length of the history.

import { s, show } from "./dom.js";
import { bytes, commas, iso, moment, tick } from "./format.js";

const LEFT = 64;
const RIGHT = 12;
const TOP = 30;
const GAP_HEIGHT = 132;
const OWING_HEIGHT = 44;
const BAND_HEIGHT = 20;
const SPACE = 14;
/** A lane's name stands above its highest line. */
const NAME_HEIGHT = 28;

const round = (number) => Math.round(number * 10) / 10;

/** A step line that stays where it was until the next value, closed at the base. */
function area(values, xs, until, base, height, top) {
  if (values.length === 0) return "";
  let path = `M${round(xs[0])},${base}`;
  values.forEach((value, index) => {
    const y = round(base - (value / top) * height);
    path += `V${y}H${round(index + 1 < xs.length ? xs[index + 1] : until)}`;
  });
  return `${path}V${base}Z`;
}

/** The smallest 1, 2 or 5 times a power of ten that is not below. */
function nice(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

/**
 * A chart of the gap and of the shapes that owe. `at` is a moment to mark, `marked` one to compare with, `stories` what was
 * unusual, `owners` who owned it; `onPick(micros)` where somebody points.
 */
export class Chart {
  constructor(label, onPick) {
    this.label = label;
    this.onPick = onPick;
    this.node = s("svg", { class: onPick ? "chart picks" : "chart", role: "img", "aria-label": label });
    this.data = null;
    this.width = 0;
    new ResizeObserver(() => {
      const width = Math.floor(this.node.getBoundingClientRect().width);
      if (width > 0 && width !== this.width) {
        this.width = width;
        this.draw();
      }
    }).observe(this.node);
    if (onPick) {
      const pick = (event) => {
        if (event.buttons !== 1 || !this.data) return;
        event.preventDefault();
        onPick(this.momentAt(event.clientX - this.node.getBoundingClientRect().left));
      };
      this.node.addEventListener("pointerdown", (event) => {
        this.node.setPointerCapture(event.pointerId);
        pick(event);
      });
      this.node.addEventListener("pointermove", pick);
    }
  }

  set(data) {
    this.data = data;
    this.draw();
  }

  /** Moves the marks and nothing else. */
  mark(at, marked) {
    if (!this.data) return;
    this.data.at = at;
    this.data.marked = marked;
    this.drawMarks();
  }

  momentAt(x) {
    const { from, until } = this.range();
    const share = Math.min(1, Math.max(0, (x - LEFT) / (this.width - LEFT - RIGHT)));
    return Math.round(from + share * (until - from));
  }

  range() {
    const { series, from, until } = this.data;
    const first = from ?? series.at_us[0] ?? 0;
    const last = Math.max(until ?? series.until_us, first + 1);
    return { from: first, until: last };
  }

  x(micros) {
    const { from, until } = this.range();
    return LEFT + ((micros - from) / (until - from)) * (this.width - LEFT - RIGHT);
  }

  draw() {
    if (!this.data || this.width === 0) return;
    const { series, owners = [], stories } = this.data;
    const xs = series.at_us.map((at) => this.x(at));
    const edge = this.x(Math.max(series.until_us, this.range().until));
    const highest = Math.max(0, ...series.gap_bytes);
    const most = Math.max(0, ...series.owing);
    const gapBase = TOP + GAP_HEIGHT;
    const owingBase = gapBase + SPACE + NAME_HEIGHT + OWING_HEIGHT;
    let bottom = owingBase;
    const parts = [
      s("text", { x: 0, y: 12, class: "lane" }, "WAL gap"),
      this.scale(gapBase, GAP_HEIGHT, nice(highest), bytes, highest === 0 ? 0 : 2),
      s("path", { class: "gap", d: area(series.gap_bytes, xs, edge, gapBase, GAP_HEIGHT, nice(highest)) }),
      s("text", { x: 0, y: gapBase + SPACE + 10, class: "lane" }, "Shapes that owe"),
      this.scale(owingBase, OWING_HEIGHT, nice(most), commas, most === 0 ? 0 : 1),
      s("path", { class: "owing", d: area(series.owing, xs, edge, owingBase, OWING_HEIGHT, nice(most)) }),
    ];
    if (owners.length > 0) {
      bottom += SPACE;
      parts.push(s("text", { x: 0, y: bottom + 14, class: "lane" }, "Owner"), this.owners(owners, bottom));
      bottom += BAND_HEIGHT;
    }
    if (stories) {
      bottom += 6;
      parts.push(s("text", { x: 0, y: bottom + 14, class: "lane" }, "Unusual"), this.stories(stories, bottom));
      bottom += BAND_HEIGHT;
    }
    this.bottom = bottom;
    parts.push(this.times(bottom + 16));
    this.marks = s("g", {});
    const height = bottom + 22;
    this.node.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    this.node.setAttribute("height", height);
    const last = series.gap_bytes.at(-1) ?? 0;
    this.node.setAttribute(
      "aria-label",
      `${this.label}: the WAL gap is ${commas(last)} bytes at the end and ${commas(highest)} bytes at its widest; at most ${commas(most)} shapes owe`,
    );
    show(this.node, parts, this.marks);
    this.drawMarks();
  }

  scale(base, height, top, words, parts) {
    const lines = [];
    for (let part = 0; part <= parts; part += 1) {
      const y = base - (parts === 0 ? 0 : (height * part) / parts);
      lines.push(
        s("line", { class: "rule", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y }),
        s("text", { class: "tick end", x: LEFT - 6, y: y + 4 }, part === 0 ? "0" : words((top * part) / parts)),
      );
    }
    return lines;
  }

  times(y) {
    const { from, until } = this.range();
    const count = Math.max(1, Math.floor((this.width - LEFT - RIGHT) / 130));
    let before = "";
    return Array.from({ length: count + 1 }, (_, index) => {
      const at = from + ((until - from) * index) / count;
      const place = index === 0 ? "start" : index === count ? "end" : "middle";
      const words = tick(at, until - from);
      if (words === before) return null;
      before = words;
      return s("text", { class: `tick ${place}`, x: this.x(at), y }, words);
    });
  }

  owners(owners, top) {
    return owners.map((owner, index) => {
      const from = Math.max(LEFT, this.x(owner.from_us));
      const until = Math.max(from + 2, this.x(index + 1 < owners.length ? Math.max(owner.until_us, owners[index + 1].from_us) : this.range().until));
      const width = until - from;
      const words = `epoch ${owner.epoch}${owner.late ? ", overlap" : ""}`;
      return s(
        "g",
        {},
        s("rect", { class: `owner ${index % 2 === 0 ? "even" : "odd"}${owner.late ? " late" : ""}`, x: from, y: top, width, height: BAND_HEIGHT, rx: 2 }),
        s("title", {}, `${words}: ${moment(owner.from)} to ${moment(owner.until)}, ${owner.end}`),
        width > words.length * 7 ? s("text", { class: "tick start", x: from + 4, y: top + 14 }, words) : null,
      );
    });
  }

  stories(stories, top) {
    return stories.map((story) => {
      const from = this.x(story.from_us);
      const width = Math.max(4, this.x(story.until_us) - from);
      return s(
        "g",
        { class: "story" },
        s("rect", { x: Math.min(from, this.width - RIGHT - 4), y: top + 4, width, height: BAND_HEIGHT - 8, rx: 2 }),
        s("title", {}, `${moment(story.from)}: ${story.first.text}`),
      );
    });
  }

  drawMarks() {
    if (!this.marks) return;
    const line = (at, name, letter) => {
      const x = Math.min(this.width - RIGHT, Math.max(LEFT, this.x(at)));
      return [
        s("line", { class: name, x1: x, x2: x, y1: TOP - 10, y2: this.bottom }),
        letter ? s("text", { class: `tick middle ${name}`, x, y: TOP - 14 }, letter) : null,
        s("title", {}, iso(at)),
      ];
    };
    const { at, marked } = this.data;
    show(this.marks, marked === undefined || marked === null ? null : line(marked, "mark-a", "A"), at === undefined || at === null ? null : line(at, "mark-b", marked === undefined || marked === null ? "" : "B"));
  }
}

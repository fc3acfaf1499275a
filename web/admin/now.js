// What is happening now.

import { follow, get, post } from "./api.js";
import { Chart } from "./chart.js";
import { exact, h, show } from "./dom.js";
import { bytes, clock, commas, exactBytes, moment, plural, span } from "./format.js";
import { LIVES, WRITERS, bad, bars, figure, figures, good, holders, section, shapeDialog } from "./parts.js";

const LOOK_EVERY = 1000;
const EVENTS_MAX = 200;
const PAGE = 50;

export class NowView {
  constructor(_about, context) {
    this.context = context;
    this.headline = h("div", { class: "headline", "aria-live": "off" });
    this.chart = new Chart("The WAL gap since the service began", null);
    this.holders = h("div", {});
    this.standing = h("div", { class: "cards" });
    this.checked = h("div", { "aria-live": "polite" });
    this.events = h("ol", { class: "events", tabindex: "0", "aria-label": "Events as they come" });
    this.shapes = h("div", {});
    this.paused = false;
    this.after = [0];
    this.node = h(
      "div",
      { class: "view" },
      this.headline,
      section("The WAL gap since this process began", "gap-title", this.chart.node),
      section("Who holds the log", "holders-title", this.holders),
      this.standing,
      this.eventSection(),
      this.shapeSection(),
    );
  }

  start() {
    this.stopped = new AbortController();
    this.look();
    this.listen(this.stopped.signal);
    this.page();
  }

  stop() {
    this.stopped?.abort();
    clearTimeout(this.timer);
  }

  async look() {
    const { signal } = this.stopped;
    try {
      const found = await get("/v1/now", {}, signal);
      if (signal.aborted) return;
      this.draw(found);
      this.context.say(this.statusOf(found));
    } catch (error) {
      this.context.problem(error);
    }
    if (!signal.aborted) this.timer = setTimeout(() => this.look(), LOOK_EVERY);
  }

  statusOf({ status }) {
    if (status.is === "active") return good("active");
    return bad(status.reason ? `${status.is}: ${status.reason}` : status.is);
  }

  draw({ now, behind }) {
    if (!now) {
      show(this.headline, h("p", { class: "lead" }, "This process does not own the data directory yet."), h("p", {}, "Its journal is shown once it does."));
      return;
    }
    const held = now.owing > 0;
    show(
      this.headline,
      h("p", { class: "huge" }, bytes(now.gap_bytes), h("small", {}, `${exactBytes(now.gap_bytes)} of write-ahead log are kept for us`)),
      h(
        "p",
        { class: "lead" },
        held
          ? `${plural(now.owing, "shape")} of ${commas(now.shapes)} ${now.owing === 1 ? "owes" : "owe"} ${plural(now.window, "transaction")}${now.still_since_us ? `; nothing was flushed by all for ${span(Math.max(0, now.at_us - now.still_since_us))}` : ""}`
          : good(`${plural(now.shapes, "shape")}, nobody owes anything`),
      ),
    );
    this.chart.set({ series: now.series });
    show(
      this.holders,
      holders(now.holders, (shape) => this.openShape(shape)),
      now.owing > now.holders.length ? h("p", { class: "faint" }, `and ${commas(now.owing - now.holders.length)} more; the time machine shows all of them`) : null,
    );
    show(this.standing, this.cards(now, behind));
  }

  cards(now, behind) {
    const { owner, stream, slot, census } = now;
    return [
      section("Owner", "owner-title", figures(
        figure("Phase", owner.phase === "Active" ? good("Active") : bad(owner.phase), `epoch ${owner.epoch}`),
        figure("Process", `${owner.pid} on ${owner.host}`, `version ${owner.version}, boot ${owner.boot_id.slice(0, 8)}`),
        figure("Event", commas(now.event), moment(now.at)),
        figure("Journal", behind === 0 ? "up to date" : `${commas(behind)} events behind`, "this page against what is durable"),
      )),
      section("Stream and slot", "stream-title", figures(
        figure("Phase", stream.phase === "Streaming" ? good("Streaming") : bad(stream.phase), `connection ${stream.connection}, timeline ${stream.timeline}`),
        figure("Acknowledged", h("span", { class: "mono" }, now.acked), `received ${now.received}`),
        figure("Slot", slot ? slot.name : "–", slot ? `confirmed ${slot.confirmed} when it was seen` : "not seen by this process yet"),
        figure("Routing", stream.routing_lag_us === null ? "–" : span(stream.routing_lag_us), "from the newest commit to its decision"),
      )),
      section("Shapes", "shapes-title", bars(census.lives, LIVES), h("p", { class: "faint" }, `${plural(census.tables, "table")}`)),
      section("Writers", "writers-title", bars(census.writers, WRITERS), this.checkBox()),
    ];
  }

  checkBox() {
    return h("div", { class: "check" }, h("button", { type: "button", "data-key": "check", onclick: () => this.check() }, "Compare views with the journal"), this.checked);
  }

  async check() {
    show(this.checked, h("p", { class: "faint" }, "Comparing …"));
    try {
      const found = await post("/v1/check");
      const words = found.well
        ? good(`${plural(found.shapes, "shape")} compared: the engine's views equal the journal's fold after event ${commas(found.engine.event)}.`)
        : bad(`They differ: ${found.drifted.join(", ") || "the figures of the engine and of the journal"}. Acknowledgements stop; restart the service.`);
      show(this.checked, h("p", {}, words));
    } catch (error) {
      show(this.checked);
      this.context.problem(error);
    }
  }

  openShape(shape) {
    shapeDialog(shape, {
      life: () => get(`/v1/shape/${shape}`),
      why: () => get(`/v1/why/${shape}`),
      onEvent: (event) => this.context.openAt(event),
    });
  }

  // ---- events ----------------------------------------------------------------------------------

  eventSection() {
    const pause = h("button", { type: "button", "aria-pressed": "false" }, "Pause");
    pause.addEventListener("click", () => {
      this.paused = !this.paused;
      pause.setAttribute("aria-pressed", String(this.paused));
      pause.textContent = this.paused ? "Go on" : "Pause";
    });
    const wanted = h("input", { type: "search", id: "event-filter", placeholder: "ShapeInvalidated, a handle …", autocomplete: "off" });
    wanted.addEventListener("input", () => {
      this.wanted = wanted.value.trim().toLowerCase();
    });
    this.wanted = "";
    return section(
      "Events as they come",
      "events-title",
      h("div", { class: "tools" }, h("label", { for: "event-filter" }, "Only with"), wanted, pause),
      this.events,
    );
  }

  async listen(signal) {
    while (!signal.aborted) {
      try {
        await follow("/v1/events/live", { after: this.seen }, (batch) => this.take(batch), signal);
      } catch (error) {
        this.context.problem(error);
      }
      await new Promise((done) => setTimeout(done, LOOK_EVERY));
    }
  }

  take({ missed, events }) {
    this.seen = events.at(-1)?.id ?? this.seen;
    if (this.paused) return;
    const matches = (one) => this.wanted === "" || `${one.kind} ${one.shape ?? ""} ${one.text}`.toLowerCase().includes(this.wanted);
    const rows = events.filter(matches).map((one) =>
      h("li", {}, h("span", { class: "mono faint" }, commas(one.id)), h("time", { datetime: one.at, title: one.at }, clock(one.at)), h("b", {}, one.kind), h("span", {}, one.text)),
    );
    if (missed > 0) rows.unshift(h("li", { class: "faint" }, `${plural(missed, "event")} passed too fast to show`));
    this.events.prepend(...rows.reverse().slice(0, EVENTS_MAX));
    while (this.events.childElementCount > EVENTS_MAX) this.events.lastElementChild.remove();
  }

  // ---- shapes ----------------------------------------------------------------------------------

  shapeSection() {
    const changed = () => {
      this.after = [0];
      this.page();
    };
    this.life = h("select", { id: "shape-life", onchange: changed }, h("option", { value: "" }, "any"), Object.entries(LIVES).map(([name, words]) => h("option", { value: name }, words)));
    this.owingOnly = h("input", { type: "checkbox", id: "shape-owing", onchange: changed });
    this.part = h("input", { type: "search", id: "shape-part", placeholder: "part of a handle", autocomplete: "off", onchange: changed });
    return section(
      "All shapes",
      "all-title",
      h("div", { class: "tools" }, h("label", { for: "shape-life" }, "Phase"), this.life, h("label", { for: "shape-part" }, "Handle"), this.part, h("span", { class: "together" }, this.owingOnly, h("label", { for: "shape-owing" }, "owing only"))),
      this.shapes,
    );
  }

  async page() {
    try {
      const question = { after: this.after.at(-1), limit: PAGE, life: this.life.value, owing: this.owingOnly.checked, shape: this.part.value };
      this.drawShapes(await get("/v1/shapes", question, this.stopped.signal));
    } catch (error) {
      this.context.problem(error);
    }
  }

  drawShapes(found) {
    const cell = (label, ...content) => h("td", { "data-label": label }, content);
    const turn = (label, key, disabled, go) => h("button", { type: "button", "data-key": key, disabled, onclick: () => { go(); this.page(); } }, label);
    show(
      this.shapes,
      h(
        "table",
        { class: "stacks" },
        h("thead", {}, h("tr", {}, ["Shape", "Table", "Phase", "Writer", "Owes", "Created"].map((name) => h("th", { scope: "col" }, name)))),
        h(
          "tbody",
          {},
          found.shapes.map((one) =>
            h(
              "tr",
              {},
              cell("Shape", h("button", { type: "button", class: "link mono", "data-key": `shape-${one.shape}`, onclick: () => this.openShape(one.shape) }, one.shape)),
              cell("Table", String(one.table)),
              cell("Phase", one.invalidated ? bad(`removed: ${one.invalidated.cause}`) : LIVES[one.life]),
              cell("Writer", one.writer),
              cell("Owes", one.owed === 0 ? "nothing" : plural(one.owed, "transaction")),
              cell("Created", exact(moment(one.created_at), one.created_at)),
            ),
          ),
        ),
      ),
      h(
        "div",
        { class: "tools" },
        h("span", { class: "faint" }, found.shapes.length === 0 ? `none on this page, of ${commas(found.count)}` : `${plural(found.shapes.length, "shape")} of ${commas(found.count)}`),
        turn("First", "page-first", this.after.length === 1, () => { this.after = [0]; }),
        turn("Previous", "page-previous", this.after.length === 1, () => this.after.pop()),
        turn("Next", "page-next", found.next === null, () => this.after.push(found.next)),
      ),
    );
  }
}

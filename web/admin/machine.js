// The time machine: any moment of a history, what caused it, and what is different from another.

import { Refused, get, latest, post } from "./api.js";
import { Chart } from "./chart.js";
import { exact, h, show } from "./dom.js";
import { bytes, commas, exactBytes, iso, moment, plural, span } from "./format.js";
import { LongList } from "./list.js";
import { LIVES, WRITERS, bad, bars, chain, cohort, figure, figures, good, holders, owing, section, shapeDialog } from "./parts.js";

const STEPS = 2000;
const HOLDERS_PAGE = 100;
/** Milliseconds between two looks at how far a long reading is. */
const PROGRESS_EVERY = 700;

export class MachineView {
  constructor(about, context) {
    this.about = about;
    this.context = context;
    this.journal = "own";
    this.marked = null;
    this.build();
    this.look = latest(
      (at) => get("/v1/moment", { at, journal: this.journal }),
      (found) => this.arrive(found),
      (error) => this.trouble(error),
    );
    this.compare = latest(
      () => get("/v1/diff", { before: this.marked.event, at: this.now.state.event, journal: this.journal }),
      (found) => this.drawDiff(found),
      (error) => this.trouble(error),
    );
  }

  build() {
    this.chart = new Chart("The history", (at) => this.goTo(iso(at)));
    this.slider = h("input", {
      type: "range", id: "moment-slider", min: 0, max: STEPS, step: 1, value: STEPS, "aria-label": "Moment in the history",
      oninput: () => this.slide(),
    });
    this.place = h("input", { type: "text", id: "place", size: 28, autocomplete: "off", spellcheck: "false", placeholder: "event, time or LSN", "aria-describedby": "place-help" });
    this.headline = h("div", { class: "headline", "aria-live": "polite" });
    this.standing = h("div", {});
    this.blockers = h("div", {});
    this.cause = h("div", {});
    this.stories = h("div", {});
    this.difference = h("div", { "aria-live": "polite" });
    this.owners = h("div", {});
    this.verdict = h("div", { "aria-live": "polite" });
    this.list = new LongList({
      label: "All events",
      fetchPage: async (after, limit) => (await get("/v1/events", { after, limit, journal: this.journal })).events,
      row: (one) => this.row(one),
      onProblem: (error) => this.trouble(error),
    });
    this.node = h(
      "div",
      { class: "view" },
      this.sourceBar(),
      h("section", { class: "card travel", "aria-label": "Travel" }, this.chart.node, h("div", { class: "slider" }, this.slider), this.controls()),
      this.headline,
      section("What was unusual", "stories-title", this.stories),
      section("Who holds the log", "blockers-title", this.blockers),
      section("Why the acknowledgement stands where it stands", "why-title", this.cause),
      section("Compare two moments", "compare-title", this.compareBar(), this.difference),
      h("div", { class: "cards" }, section("The state", "state-title", this.standing), section("Owners", "machine-owners-title", this.owners)),
      section("Events", "list-title", this.list.node),
      section("Is all well?", "verify-title", h("button", { type: "button", onclick: () => this.verify() }, "Check every invariant"), this.verdict),
    );
    this.dropping();
  }

  // ---- which journal ---------------------------------------------------------------------------

  sourceBar() {
    this.chosen = h("select", { id: "journal", onchange: () => this.choose(this.chosen.value) });
    const file = h("input", { type: "file", id: "file", class: "hidden-file", accept: ".sfx,.sfj", onchange: () => file.files[0] && this.handIn(file.files[0]) });
    return h(
      "div",
      { class: "tools source" },
      h("label", { for: "journal" }, "Journal"),
      this.chosen,
      h("label", { for: "file", class: "button" }, "Open an exported file …"),
      file,
      h("button", { type: "button", id: "refresh", onclick: () => this.load() }, "Read what is new"),
      h("span", { class: "faint drop-hint" }, "or drop one anywhere on this page"),
    );
  }

  dropping() {
    this.node.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.node.classList.add("dropping");
    });
    this.node.addEventListener("dragleave", () => this.node.classList.remove("dropping"));
    this.node.addEventListener("drop", (event) => {
      event.preventDefault();
      this.node.classList.remove("dropping");
      if (event.dataTransfer.files[0]) this.handIn(event.dataTransfer.files[0]);
    });
  }

  async handIn(file) {
    if (file.size > this.about.bytes_max) {
      this.trouble(new Refused(413, `the file is larger than ${exactBytes(this.about.bytes_max)}`));
      return;
    }
    this.context.say(h("span", {}, `Handing in ${file.name} …`));
    try {
      const { journal } = await post("/v1/journals", file);
      this.names ??= new Map();
      this.names.set(journal, file.name);
      await this.choose(journal);
    } catch (error) {
      this.trouble(error);
    }
  }

  async choose(journal) {
    this.journal = journal;
    this.marked = null;
    this.list.reset(1, 0);
    show(this.verdict);
    await this.load("end");
  }

  async journals() {
    const { journals } = await get("/v1/journals");
    show(
      this.chosen,
      journals.map((one) => h("option", { value: one.journal }, one.live ? "this service" : this.names?.get(one.journal) ?? one.name)),
    );
    if (!journals.some((one) => one.journal === this.journal)) this.journal = "own";
    this.chosen.value = this.journal;
    this.node.querySelector("#refresh").hidden = !journals.find((one) => one.journal === this.journal)?.live;
  }

  start() {
    this.load(this.wanted ?? (this.now ? null : "end"));
    this.wanted = null;
  }

  stop() {}

  trouble(error) {
    this.context.problem(error);
  }

  /** The whole history at a glance; then a moment of it. */
  async load(at) {
    this.context.say(h("span", {}, "Reading the journal …"));
    const watching = this.watchReading();
    try {
      await this.journals();
      this.track = await get("/v1/timeline", { journal: this.journal });
      if (this.watching === watching) this.watching = null;
      this.context.say(h("span", {}, `${plural(this.track.last - (this.track.first ?? 1) + 1, "event")}`));
      this.list.reset(this.track.first ?? 1, this.track.last);
      this.chart.set({
        series: this.track.series, from: this.track.first_us, until: this.track.last_us, owners: this.track.owners,
        stories: this.track.stories, at: this.now?.state.at_us, marked: this.marked?.at_us,
      });
      this.drawStories();
      this.drawOwners();
      if (at) this.look(at);
    } catch (error) {
      this.trouble(error);
    } finally {
      clearInterval(watching);
      if (this.watching === watching) this.watching = null;
    }
  }

  /** Says how far the first reading of a long journal is, until somebody ends it. */
  watchReading() {
    const journal = this.journal;
    const watching = setInterval(async () => {
      const { event, last } = await get("/v1/progress", { journal }).catch(() => ({}));
      // The answer may have come meanwhile, or another journal been chosen.
      if (!last || this.journal !== journal || this.watching !== watching) return;
      this.context.say(h(
        "span",
        {},
        h("progress", { value: event, max: last, "aria-label": "How far the journal is read" }),
        ` Reading the journal: event ${commas(event)} of ${commas(last)}`,
      ));
    }, PROGRESS_EVERY);
    this.watching = watching;
    return watching;
  }

  // ---- travelling ------------------------------------------------------------------------------

  controls() {
    const step = (label, title, go) => h("button", { type: "button", title, "aria-label": title, onclick: go }, label);
    return h(
      "div",
      { class: "tools controls" },
      step("First", "The first event", () => this.goTo(String(this.track.first))),
      step("‹ Event", "The event before", () => this.goTo(String(Math.max(this.track.first, this.now.state.event - 1)))),
      step("Event ›", "The next event", () => this.goTo(String(Math.min(this.track.last, this.now.state.event + 1)))),
      step("Newest", "The newest event", () => this.goTo("end")),
      h(
        "form",
        { class: "together", onsubmit: (event) => { event.preventDefault(); if (this.place.value.trim()) this.goTo(this.place.value.trim()); } },
        h("label", { for: "place" }, "Go to"),
        this.place,
        h("button", { type: "submit" }, "Go"),
      ),
      h("span", { id: "place-help", class: "faint" }, "424 · 2026-03-20 02:09 · 02:09:30 · 1/F827A8C8"),
    );
  }

  slide() {
    const { first_us: first, last_us: last } = this.track;
    const at = Math.round(first + ((last - first) * Number(this.slider.value)) / STEPS);
    this.slider.setAttribute("aria-valuetext", moment(iso(at)));
    this.chart.mark(at, this.marked?.at_us);
    this.sliding = true;
    const ends = { 0: String(this.track.first), [STEPS]: "end" };
    this.look(ends[this.slider.value] ?? iso(at));
  }

  goTo(at) {
    if (!this.node.isConnected) {
      this.wanted = at;
      return;
    }
    this.sliding = false;
    this.look(at);
  }

  arrive(found) {
    this.now = found;
    const { state } = found;
    if (!this.sliding) {
      const { first_us: first, last_us: last } = this.track;
      this.slider.value = last > first ? Math.round(((state.at_us - first) / (last - first)) * STEPS) : STEPS;
    }
    this.sliding = false;
    this.slider.setAttribute("aria-valuetext", `event ${state.event}, ${moment(state.at)}`);
    this.chart.mark(state.at_us, this.marked?.at_us);
    if (state.event > this.list.last) this.list.reset(this.list.first, state.event);
    this.list.goTo(state.event);
    this.drawMoment(found);
    if (this.marked) this.compare();
    else this.drawCompareHint();
  }

  // ---- a moment --------------------------------------------------------------------------------

  drawMoment({ state, event, holding, why }) {
    const go = (id) => this.goTo(String(id));
    const open = (shape) => this.openShape(shape);
    show(
      this.headline,
      h("p", { class: "huge" }, bytes(state.gap_bytes), h("small", {}, `WAL gap, ${exactBytes(state.gap_bytes)}`)),
      h(
        "div",
        {},
        h("p", { class: "lead" }, "After event ", h("b", { id: "at-event" }, commas(state.event)), ", ", h("time", { datetime: state.at, title: state.at }, moment(state.at)), " UTC"),
        event ? h("p", {}, h("b", {}, event.kind), " – ", event.text, event.because ? [" – ", h("button", { type: "button", class: "link", "data-key": "because", onclick: () => this.drawChain(event.id) }, `because of event ${commas(event.because)}`)] : null) : h("p", { class: "faint" }, "before the first event that is kept"),
        h("div", { id: "because", "aria-live": "polite" }),
      ),
    );
    show(
      this.blockers,
      h(
        "p",
        { class: "lead" },
        holding.owing === 0
          ? good(`none of ${plural(holding.shapes, "shape")} owes anything`)
          : [`${commas(holding.owing)} of ${plural(holding.shapes, "shape")} owe; `, holding.nobody > 0 ? bad(`for ${commas(holding.nobody)} of them nobody will pay`) : good("somebody works for each of them")],
      ),
      holding.cohorts.map((one) => cohort(one, go)),
      holding.owing > 0 ? holders(holding.holders, open) : null,
      this.pages(holding),
    );
    const first = why.first;
    show(
      this.cause,
      first
        ? [
            h("p", {}, `Everything before ${why.boundary} is flushed by all. The acknowledgement, now ${why.acked}, cannot pass transaction ${commas(why.oldest.oldest)} (commit ${why.oldest.lsn}), which ${plural(why.oldest.shapes, "shape")} ${why.oldest.shapes === 1 ? "owes" : "owe"}. The first of them:`),
            owing(first, go, open),
          ]
        : h("p", {}, good("Nobody owes anything: the acknowledgement follows what Postgres sends.")),
    );
    this.drawState(state);
  }

  async drawChain(event) {
    try {
      const found = await get(`/v1/chain/${event}`, { journal: this.journal });
      show(this.headline.querySelector("#because"), chain(found, (id) => this.goTo(String(id))));
    } catch (error) {
      this.trouble(error);
    }
  }

  pages(holding) {
    if (holding.owing <= holding.holders.length && holding.offset === 0) return null;
    const turn = async (offset) => {
      try {
        const found = await get("/v1/holding", { at: this.now.state.event, offset, limit: HOLDERS_PAGE, journal: this.journal });
        this.drawMoment({ ...this.now, holding: found });
      } catch (error) {
        this.trouble(error);
      }
    };
    const { offset } = holding;
    return h(
      "div",
      { class: "tools" },
      h("span", { class: "faint" }, `${commas(offset + 1)} to ${commas(offset + holding.holders.length)} of ${commas(holding.owing)}, the longest-owing first`),
      h("button", { type: "button", "data-key": "holders-previous", disabled: offset === 0, onclick: () => turn(Math.max(0, offset - HOLDERS_PAGE)) }, "Previous"),
      h("button", { type: "button", "data-key": "holders-next", disabled: offset + holding.holders.length >= holding.owing, onclick: () => turn(offset === 0 && holding.holders.length < HOLDERS_PAGE ? holding.holders.length : offset + HOLDERS_PAGE) }, "Next"),
    );
  }

  drawState(state) {
    const { owner, stream } = state;
    show(
      this.standing,
      figures(
        figure("Owner", owner.phase === "Active" ? good("Active") : owner.phase, `epoch ${owner.epoch}, process ${owner.pid} on ${owner.host}, version ${owner.version}`),
        figure("Stream", stream.phase, `connection ${stream.connection}`),
        figure("Received", h("span", { class: "mono" }, stream.received), `routed ${stream.routed}`),
        figure("Flushed by all", h("span", { class: "mono" }, stream.boundary)),
        figure("Acknowledged", h("span", { class: "mono" }, stream.acked)),
        figure("Window", plural(state.window, "transaction"), `owed by ${commas(state.owing)} of ${plural(state.shapes, "shape")}`),
      ),
      h("h3", {}, "Shapes"),
      bars(state.census.lives, LIVES),
      h("h3", {}, "Writers"),
      bars(state.census.writers, WRITERS),
    );
  }

  drawStories() {
    const { stories, stories_count: count } = this.track;
    if (count === 0) {
      show(this.stories, h("p", {}, good("nothing")));
      return;
    }
    show(
      this.stories,
      h(
        "ol",
        { class: "stories" },
        stories.map((story, index) =>
          h(
            "li",
            {},
            h(
              "button",
              { type: "button", class: "story-jump", "data-key": `story-${index}`, onclick: () => this.goTo(String(story.first.event)) },
              h("time", { datetime: story.from }, moment(story.from)),
              h("b", {}, story.kinds.map((kind) => `${commas(kind.count)} ${kind.kind}`).join(", ")),
              h("span", { class: "faint" }, [
                story.lasted === "0 s" ? null : `${story.lasted}${story.open ? ", and it goes on" : ""}`,
                `${plural(story.shapes, "shape")} concerned`,
                story.invalidated > 0 ? `${commas(story.invalidated)} lost for their clients` : null,
                story.gap_bytes > 0 ? `gap up to ${bytes(story.gap_bytes)}` : null,
              ].filter(Boolean).join(" · ")),
            ),
            h("details", {}, h("summary", {}, "What happened"), h("ol", { class: "chain" }, story.examples.map((one) => h("li", {}, h("button", { type: "button", class: "link mono", onclick: () => this.goTo(String(one.event)) }, commas(one.event)), h("time", { datetime: one.at, title: one.at }, moment(one.at)), h("span", {}, one.text))))),
          ),
        ),
      ),
      count > stories.length ? h("p", { class: "faint" }, `and ${commas(count - stories.length)} more`) : null,
    );
  }

  drawOwners() {
    const { owners, owners_count: count, overlap } = this.track;
    show(
      this.owners,
      h("p", {}, overlap ? bad("two owners were at work at once") : good("never two owners at once")),
      h(
        "ol",
        { class: "tenures" },
        owners.slice(-12).reverse().map((one) =>
          h(
            "li",
            {},
            h("button", { type: "button", class: "link", onclick: () => this.goTo(String(one.event)) }, `epoch ${one.epoch}`),
            h("span", {}, `${moment(one.from)} to ${moment(one.until)} · `, one.process ? `process ${one.process.pid} on ${one.process.host}, version ${one.process.version}` : "process unknown"),
            h("span", { class: "faint" }, one.late ? bad(`${one.end}; it wrote ${commas(one.late.count)} events beside epoch ${one.late.beside}`) : one.end),
          ),
        ),
      ),
      count > 12 ? h("p", { class: "faint" }, `the newest 12 of ${commas(count)}`) : null,
    );
  }

  row(one) {
    return h(
      "button",
      { type: "button", class: "row", "data-key": `row-${one.id}`, onclick: () => this.goTo(String(one.id)) },
      h("span", { class: "mono" }, commas(one.id)),
      h("time", { datetime: one.at, title: one.at }, moment(one.at)),
      h("b", {}, one.kind),
      h("span", {}, one.text),
    );
  }

  openShape(shape) {
    shapeDialog(shape, {
      life: () => get(`/v1/shape/${shape}`, { journal: this.journal }),
      why: () => get(`/v1/why/${shape}`, { journal: this.journal, at: this.now.state.event }),
      onEvent: (event) => this.goTo(String(event)),
    });
  }

  // ---- two moments -----------------------------------------------------------------------------

  compareBar() {
    return h(
      "div",
      { class: "tools" },
      h("button", { type: "button", id: "mark", onclick: () => this.mark() }, "Keep this moment as A"),
      h("button", { type: "button", id: "unmark", onclick: () => this.unmark() }, "Forget A"),
    );
  }

  mark() {
    this.marked = { event: this.now.state.event, at_us: this.now.state.at_us, at: this.now.state.at };
    this.chart.mark(this.now.state.at_us, this.marked.at_us);
    this.compare();
  }

  unmark() {
    this.marked = null;
    this.chart.mark(this.now.state.at_us, null);
    this.drawCompareHint();
  }

  drawCompareHint() {
    this.node.querySelector("#unmark").disabled = true;
    show(this.difference, h("p", { class: "faint" }, "Keep a moment as A and travel on: what is different is shown here."));
  }

  drawDiff(found) {
    this.node.querySelector("#unmark").disabled = false;
    const { before, after } = found;
    const signed = (delta, words) => (delta === 0 ? "unchanged" : `${delta > 0 ? "+" : "−"}${words(Math.abs(delta))}`);
    const line = (name, a, b, change) => h("tr", {}, h("th", { scope: "row" }, name), h("td", { "data-label": "A" }, a), h("td", { "data-label": "B" }, b), h("td", { "data-label": "Change" }, change));
    const number = (name, key) => line(name, commas(before[key]), commas(after[key]), signed(after[key] - before[key], commas));
    const group = (name, change) => (change.before === 0 && change.after === 0 ? null : line(name, commas(change.before), commas(change.after), moves(change)));
    const words = [["stayed", "stayed"], ["removed", "removed"], ["moved", "moved on"], ["joined", "joined"], ["created", "created"]];
    const moves = (change) => words.filter(([key]) => change[key] > 0).map(([key, word]) => `${commas(change[key])} ${word}`).join(", ");
    show(
      this.difference,
      h("p", { class: "lead" }, `B is ${found.elapsed} after A`, found.gap_rate ? `; the gap ${found.gap_rate > 0 ? "grows" : "shrinks"} by ${bytes(Math.round(Math.abs(found.gap_rate)))} a second` : ""),
      h(
        "table",
        { class: "compare" },
        h("thead", {}, h("tr", {}, h("th", {}), h("th", { scope: "col" }, `A: event ${commas(before.event)}`), h("th", { scope: "col" }, `B: event ${commas(after.event)}`), h("th", { scope: "col" }, "Change"))),
        h(
          "tbody",
          {},
          line("Time", exact(moment(before.at), before.at), exact(moment(after.at), after.at), span(found.elapsed_us)),
          line("WAL gap", exact(bytes(before.gap_bytes), exactBytes(before.gap_bytes)), exact(bytes(after.gap_bytes), exactBytes(after.gap_bytes)), signed(after.gap_bytes - before.gap_bytes, exactBytes)),
          line("Received", before.received, after.received, ""),
          line("Acknowledged", before.acked, after.acked, before.acked === after.acked ? "unchanged" : ""),
          number("Shapes", "shapes"),
          number("Owing", "owing"),
          number("Epoch", "epoch"),
          found.stuck.map((one) => group(`Stuck at transaction ${commas(one.oldest)}`, one.change)),
          group("Owing, somebody works on it", found.owing),
          group("Owing nothing", found.settled),
        ),
      ),
    );
  }

  // ---- all well? -------------------------------------------------------------------------------

  async verify() {
    show(this.verdict, h("p", { class: "faint" }, "Checking …"));
    try {
      const found = await get("/v1/verify", { journal: this.journal });
      const well = found.broken === 0 && found.damaged === 0;
      const words = `${plural(found.events, "event")}, ${plural(found.damaged, "damaged place")}, ${plural(found.broken, "broken invariant")}`;
      show(
        this.verdict,
        h("p", { class: "lead" }, well ? good(words) : bad(words)),
        found.damage.map((text) => h("p", { class: "mono" }, text)),
        h("ol", { class: "chain" }, found.violations.map((one) => h("li", {}, h("button", { type: "button", class: "link mono", onclick: () => this.goTo(String(one.event)) }, commas(one.event)), h("b", {}, one.invariant), h("span", {}, one.detail)))),
        found.broken > found.violations.length ? h("p", { class: "faint" }, `and ${commas(found.broken - found.violations.length)} more`) : null,
        found.unchecked > 0 ? h("p", { class: "faint" }, `${plural(found.unchecked, "event")} were not checked: what comes before them is retired or damaged`) : null,
      );
    } catch (error) {
      show(this.verdict);
      this.trouble(error);
    }
  }
}

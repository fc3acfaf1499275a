// A client of GET /v1/shape in plain JavaScript: initial rows, then the log, then one long-poll
// after the other. No library and no build step, so that the protocol can be read here.

const LOG_LINES_MAX = 200;
const RETRY_MS = 400;

const SHAPES = [
  { title: "orders", query: { table: "orders" }, key: "id" },
  { title: "open orders", query: { table: "orders", where: "status = $1", "params[1]": "open" }, key: "id" },
  { title: "stock", query: { table: "stock" }, key: "item" },
];

const element = (id) => document.getElementById(id);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let serviceUrl = "";
const followers = [];

function log(text, kind = "") {
  const list = element("log");
  const line = document.createElement("li");
  line.className = kind;
  line.textContent = `${new Date().toLocaleTimeString()}  ${text}`;
  list.prepend(line);
  while (list.childElementCount > LOG_LINES_MAX) list.lastElementChild.remove();
}

function showState() {
  const down = followers.filter((follower) => follower.down).length;
  const live = followers.every((follower) => follower.live);
  const state = element("state");
  state.dataset.kind = down ? "down" : live ? "live" : "";
  state.textContent = down ? "service down, reconnecting" : live ? "live" : "catching up";
}

class Follower {
  constructor({ title, query, key }) {
    Object.assign(this, { title, query, key });
    this.rows = new Map();
    this.messages = 0;
    this.refetches = 0;
    this.down = false;
    this.restart();
    this.build();
  }

  restart(handle = null) {
    this.handle = handle;
    this.offset = "-1";
    this.cursor = null;
    this.live = false;
    this.rows.clear();
  }

  build() {
    this.panel = document.createElement("section");
    this.panel.className = "panel";
    const heading = document.createElement("h2");
    heading.textContent = this.title;
    const code = document.createElement("code");
    code.textContent = `GET /v1/shape?${decodeURIComponent(new URLSearchParams(this.query)).replaceAll("+", " ")}`;
    const facts = document.createElement("dl");
    facts.className = "facts";
    this.facts = {};
    for (const name of ["rows", "messages", "offset", "handle", "refetches"]) {
      const term = document.createElement("dt");
      term.textContent = name;
      this.facts[name] = document.createElement("dd");
      facts.append(term, this.facts[name]);
    }
    const box = document.createElement("div");
    box.className = "rows";
    box.tabIndex = 0;
    this.table = document.createElement("table");
    box.append(this.table);
    this.panel.append(heading, code, facts, box);
    element("shapes").append(this.panel);
  }

  url() {
    const parameters = new URLSearchParams(this.query);
    parameters.set("offset", this.offset);
    if (this.handle) parameters.set("handle", this.handle);
    if (this.live) {
      parameters.set("live", "true");
      if (this.cursor) parameters.set("cursor", this.cursor);
    }
    return `${serviceUrl}/v1/shape?${parameters}`;
  }

  async follow() {
    for (;;) {
      try {
        await this.step();
        if (this.down) {
          this.down = false;
          log(`${this.title}: connected again, goes on from ${this.offset}`, "good");
        }
      } catch (error) {
        if (!this.down) log(`${this.title}: ${error.message}; keeps offset ${this.offset} and tries again`, "event");
        this.down = true;
        showState();
        await pause(RETRY_MS);
      }
      showState();
    }
  }

  async step() {
    const response = await fetch(this.url(), { cache: "no-store" });
    if (response.status === 409) {
      this.refetches += 1;
      log(`${this.title}: 409 must-refetch`, "event");
      this.restart(response.headers.get("electric-handle"));
      return;
    }
    if (!response.ok) throw new Error(`status ${response.status}`);
    const messages = await response.json();
    const touched = new Map();
    let upToDate = false;
    for (const message of messages) {
      if (message.headers.control === "up-to-date") upToDate = true;
      if (message.headers.operation) this.apply(message, touched);
    }
    this.handle = response.headers.get("electric-handle");
    this.offset = response.headers.get("electric-offset");
    this.cursor = response.headers.get("electric-cursor");
    this.live = upToDate;
    this.render(touched);
  }

  apply({ key, value, headers }, touched) {
    this.messages += 1;
    if (headers.operation === "delete") this.rows.delete(key);
    else this.rows.set(key, { ...this.rows.get(key), ...value });
    if (headers.lsn) {
      touched.set(key, headers.operation);
      log(`${this.title}  ${headers.operation.padEnd(6)} ${headers.lsn}_${headers.op_position}  ${JSON.stringify(value)}`);
    }
  }

  render(touched) {
    Object.entries({
      rows: this.rows.size, messages: this.messages, offset: this.offset, handle: this.handle, refetches: this.refetches,
    }).forEach(([name, value]) => { this.facts[name].textContent = value; });
    const rows = [...this.rows].sort(([, a], [, b]) =>
      String(b[this.key]).localeCompare(String(a[this.key]), undefined, { numeric: true }));
    const columns = rows.length ? Object.keys(rows[0][1]).sort((a, b) => (b === this.key) - (a === this.key)) : [];
    const head = document.createElement("thead");
    head.append(line(columns, "th"));
    const body = document.createElement("tbody");
    for (const [key, row] of rows) {
      const tr = line(columns.map((column) => row[column]), "td");
      tr.className = touched.get(key) ?? "";
      body.append(tr);
    }
    this.table.replaceChildren(head, body);
  }
}

function line(values, tag) {
  const tr = document.createElement("tr");
  for (const value of values) {
    const cell = document.createElement(tag);
    cell.textContent = value === null || value === undefined ? "NULL" : value;
    tr.append(cell);
  }
  return tr;
}

async function readService() {
  const service = await (await fetch("/service.json")).json();
  serviceUrl = service.url;
  element("pid").textContent = service.pid ?? "–";
}

element("kill").addEventListener("click", async () => {
  element("kill").disabled = true;
  log("you killed the service with signal 9", "event");
  await fetch("/kill", { method: "POST", headers: { "x-shapefold-demo": "1" } }).catch(() => {});
  await pause(3000);
  element("kill").disabled = false;
});

await readService();
setInterval(() => readService().catch(() => {}), 1000);
for (const shape of SHAPES) followers.push(new Follower(shape));
followers.forEach((follower) => follower.follow());

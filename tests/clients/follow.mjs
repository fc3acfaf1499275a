// Follows shapes with the official client and prints what it sees as lines of JSON.
//
// usage: node follow.mjs '{"url": "...", "clients": [{"name", "kind": "stream"|"shape", "params", "options"}]}'
//
// A line of JSON on standard input asks for a part of the rows: {"client", "snapshot": {where, params, ...}}.
//
// {"client", "event": "change", "operation", "key", "value"}   a change message (kind stream)
// {"client", "event": "rows", "rows", "handle", "offset"}      all rows, whenever up to date
// {"client", "event": "subset", "rows"}                        the rows of a part that was asked for
// {"client", "event": "must-refetch"}                          the service sent the client away
// {"client", "event": "overlap"}                               it reads the log twice at once (option noOverlap)
// {"client", "event": "error", "message"}                      the client gave up
//
// All values are printed as Postgres would print them, so that they can be compared with SQL.

import { createInterface } from "node:readline";

import { isChangeMessage, isControlMessage, Shape, ShapeStream } from "@electric-sql/client";

const { url, clients } = JSON.parse(process.argv[2]);

function text(value) {
  if (value === null || value === undefined) return null;
  if (typeof value === "boolean") return value ? "t" : "f";
  if (typeof value === "object") return JSON.stringify(value);
  return String(value);
}

const row = (value) => Object.fromEntries(Object.entries(value).map(([name, item]) => [name, text(item)]));

function print(client, event, rest = {}) {
  process.stdout.write(`${JSON.stringify({ client, event, ...rest })}\n`);
}

// A fetch that tells of a live request that begins before the one before it is over.
function watchOverlap(name) {
  let open = 0;
  return async (input, init) => {
    if (!new URL(input).searchParams.has("live")) return fetch(input, init);
    open += 1;
    if (open > 1) print(name, "overlap");
    let over = false;
    const end = () => {
      if (!over) open -= 1;
      over = true;
    };
    init?.signal?.addEventListener("abort", end);
    try {
      const answer = await fetch(input, init);
      const body = answer.body.pipeThrough(new TransformStream({ flush: end }));
      return new Response(body, answer);
    } catch (error) {
      end();
      throw error;
    }
  };
}

const streams = new Map();

function follow({ name, kind, params, options }) {
  const fail = (error) => print(name, "error", { message: String(error?.message ?? error) });
  const { noOverlap, ...rest } = options;
  const watched = noOverlap ? { fetchClient: watchOverlap(name) } : {};
  const stream = new ShapeStream({ url, params, onError: fail, ...watched, ...rest });
  streams.set(name, stream);
  const position = () => ({ handle: stream.shapeHandle, offset: stream.lastOffset });
  if (kind === "shape") {
    const shape = new Shape(stream);
    shape.subscribe(({ rows }) => print(name, "rows", { rows: rows.map(row), ...position() }));
    stream.subscribe((messages) => {
      if (messages.some((message) => message.headers.control === "must-refetch")) print(name, "must-refetch");
    });
    return;
  }
  const rows = new Map();
  // Of shapes with subqueries: which conditions of a row hold, and which disjuncts need which of them.
  const tagged = new Map();
  const holds = ({ tags, active }) =>
    tags.some((tag) => tag.every((slot, position) => slot === "" || active[position]));
  const turn = (patterns, to) => {
    for (const [key, conditions] of tagged) {
      for (const { pos, value } of patterns) {
        if (conditions.tags.some((tag) => tag[pos] === value)) conditions.active[pos] = to;
      }
      if (!holds(conditions)) {
        tagged.delete(key);
        rows.delete(key);
      }
    }
  };
  stream.subscribe((messages) => {
    for (const message of messages) {
      if (message.headers.event) {
        turn(message.headers.patterns, message.headers.event === "move-in");
      } else if (isChangeMessage(message)) {
        const { operation, tags, active_conditions: active } = message.headers;
        if (operation === "delete") tagged.delete(message.key);
        else if (tags) tagged.set(message.key, { tags: tags.map((tag) => tag.split("/")), active });
        if (operation === "delete") rows.delete(message.key);
        else rows.set(message.key, { ...rows.get(message.key), ...row(message.value) });
        print(name, "change", { operation, key: message.key, value: row(message.value) });
      } else if (isControlMessage(message) && message.headers.control === "must-refetch") {
        rows.clear();
        tagged.clear();
        print(name, "must-refetch");
      } else if (isControlMessage(message) && ["up-to-date", "subset-end"].includes(message.headers.control)) {
        print(name, "rows", { rows: [...rows.values()], ...position() });
      }
    }
  }, fail);
}

for (const client of clients) follow(client);
// The parent closes our standard input when it is done, and also when it dies.
const commands = createInterface({ input: process.stdin });
commands.on("line", async (line) => {
  const { client, snapshot } = JSON.parse(line);
  try {
    const { data } = await streams.get(client).requestSnapshot(snapshot);
    print(client, "subset", { rows: data.map((message) => row(message.value)) });
  } catch (error) {
    print(client, "error", { message: String(error?.message ?? error) });
  }
});
commands.on("close", () => process.exit(0));

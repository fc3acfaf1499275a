// Options of the official client: column mapper, backoff, error handler, abort, pause.

import { Shape, ShapeStream, snakeCamelMapper } from "@electric-sql/client";

import { command, show, specification } from "./bridge.mjs";

const { url, secret } = specification;

function follow(name, options) {
  const stream = new ShapeStream({ url, ...options, params: { table: "things", secret, ...options.params } });
  const shape = new Shape(stream);
  shape.subscribe(({ rows }) => show("rows", { name, rows }));
  return stream;
}

// Names of columns in camel case, in rows and in the condition.
follow("mapped", { columnMapper: snakeCamelMapper(), params: { where: "created_by <> 'nobody'" } });

// A network that fails at first.
let failures = 0;
follow("backoff", {
  backoffOptions: { initialDelay: 5, maxDelay: 20, multiplier: 1.5, onFailedAttempt: () => show("failed attempt") },
  fetchClient: async (input, init) => {
    failures += 1;
    if (failures === 1) throw new TypeError("fetch failed");
    if (failures === 2) return new Response("busy", { status: 503, headers: { "retry-after": "0" } });
    return fetch(input, init);
  },
});

// Wrong at first, and put right by the handler.
follow("repaired", {
  params: { secret: "wrong" },
  onError: (error) => {
    show("handled", { status: error.status, text: error.text });
    return { params: { secret } };
  },
});

// Wrong, and left at that.
const lost = new ShapeStream({
  url, params: { table: "no_such_table", secret },
  onError: (error) => show("refused", { status: error.status, errors: error.json?.errors }),
});
lost.subscribe(() => {}, (error) => show("gave up", { message: String(error.message) }));

const aborter = new AbortController();
const aborted = follow("aborted", { signal: aborter.signal });

// What a page or an app tells when it is hidden.
const visibility = { state: "visible", tell: () => {} };
let live = 0;
const paused = follow("paused", {
  runtimeVisibility: {
    getCurrentState: () => visibility.state,
    subscribe: (listener) => {
      visibility.tell = listener;
      return () => {};
    },
  },
  fetchClient: (input, init) => {
    if (new URL(input).searchParams.get("live") === "true") live += 1;
    return fetch(input, init);
  },
});

for (;;) {
  const { command: name } = await command();
  if (name === "abort") {
    aborter.abort();
    show("aborted", { connected: aborted.isConnected() });
  } else if (name === "hide" || name === "show") {
    visibility.state = name === "hide" ? "hidden" : "visible";
    visibility.tell(visibility.state);
    show("visibility", { state: visibility.state, live, connected: paused.isConnected() });
  }
}

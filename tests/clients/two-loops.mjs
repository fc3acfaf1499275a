// What the official client 1.5.28 does when a subset is asked for just after a stream of events that
// lasted less than a second: it reads the log twice at the same time, and keeps a row that was deleted.
//
// There is no service here: every answer is written below, and each is right by itself. The client
// sleeps after a short stream (#requestShapeSSE, `finally`); requestSnapshot pauses and resumes it
// meanwhile, which begins a second loop (#start), and when the sleep is over the first goes on as well.
// Prints one line of JSON: {"live", "rows"}: most live requests at once, and the rows at the end.

import { ShapeStream, isChangeMessage } from "@electric-sql/client";

const schema = JSON.stringify({ id: { type: "int8", pk_index: 0 } });
const head = (offset, extra = {}) => ({
  "electric-handle": "1-1", "electric-offset": offset, "electric-schema": schema, "electric-cursor": "1", ...extra,
});
const upToDate = (lsn) => ({ headers: { control: "up-to-date", global_last_seen_lsn: String(lsn) } });
const change = (operation, id, lsn) => ({
  key: `"public"."items"/"${id}"`, value: { id: String(id) },
  headers: { operation, relation: ["public", "items"], lsn: String(lsn), op_position: 0, txids: [lsn], last: true },
});
const event = (message) => `data: ${JSON.stringify(message)}\n\n`;
const transaction = (operation, id, lsn) => event(change(operation, id, lsn)) + event(upToDate(lsn));

const streams = [];
let open = 0;
let most = 0;
/** A stream of events that this file writes to. */
function stream(signal, offset) {
  open += 1;
  most = Math.max(most, open);
  let controller;
  const body = new ReadableStream({ start: (it) => { controller = it; } });
  const encoder = new TextEncoder();
  let over = false;
  const end = () => { if (!over) open -= 1; over = true; };
  signal?.addEventListener("abort", () => { end(); try { controller.error(new Error("aborted")); } catch {} });
  streams.push({
    offset,
    send: (text) => controller.enqueue(encoder.encode(text)),
    close: () => { end(); controller.close(); },
  });
  for (const wake of waiting.splice(0)) wake();
  return new Response(body, { headers: { ...head(offset), "content-type": "text/event-stream" } });
}
const waiting = [];
async function streamNumber(number) {
  while (streams.length <= number) await new Promise((wake) => waiting.push(wake));
  return streams[number];
}

let snapshotLsn = 11;
async function fetchClient(input, init) {
  const query = new URL(input).searchParams;
  const offset = query.get("offset");
  if ([...query.keys()].some((name) => name.startsWith("subset__"))) {
    const metadata = {
      xmin: String(snapshotLsn + 1), xmax: String(snapshotLsn + 1), xip_list: [], snapshot_mark: snapshotLsn,
      database_lsn: String(snapshotLsn + 1),
    };
    return Response.json({ metadata, data: [] }, { headers: head(offset, { "electric-snapshot": "true" }) });
  }
  if (query.get("live") === "true") return stream(init.signal, offset);
  const at = offset === "now" ? "10_0" : offset;
  return Response.json([upToDate(at.split("_")[0])], { headers: head(at, { "electric-up-to-date": "" }) });
}

const rows = new Set();
const client = new ShapeStream({
  url: "http://localhost/v1/shape", params: { table: "items" }, log: "changes_only", offset: "now", liveSse: true,
  fetchClient,
});
let seen = 0;
const seenWaiting = [];
client.subscribe((messages) => {
  for (const message of messages.filter(isChangeMessage)) {
    if (message.headers.operation === "delete") rows.delete(message.key);
    else rows.add(message.key);
    seen += 1;
  }
  for (const wake of seenWaiting.splice(0)) wake();
});
async function changes(number) {
  while (seen < number) await new Promise((wake) => seenWaiting.push(wake));
}

// The client would sleep for a random time.
const random = Math.random;
Math.random = () => 0.999;
const first = await streamNumber(0);
first.send(transaction("insert", 1, 11));
await changes(1);
first.close();
// The client has to see the end of the stream before it is paused.
await new Promise((done) => setTimeout(done, 50));
await client.requestSnapshot({ where: "id = 0" });
Math.random = random;
// One stream of each loop.
const one = await streamNumber(1);
const other = await streamNumber(2);
// Both loops are sent the same; one of them is a little behind.
one.send(transaction("insert", 2, 12) + transaction("delete", 2, 13));
await changes(3);
other.send(transaction("insert", 2, 12));
await changes(4);
one.send(transaction("insert", 3, 14));
await changes(5);
// The loop behind is stopped by the next subset, and the offset is that of the one ahead.
snapshotLsn = 14;
await client.requestSnapshot({ where: "id = 0" });
process.stdout.write(`${JSON.stringify({ live: most, rows: [...rows].map((key) => key.split("/")[1]) })}\n`);
process.exit(0);

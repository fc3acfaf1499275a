// Two Yjs documents that are kept alike by way of Postgres, with the awareness of both.

import { createServer } from "node:http";

import { ElectricProvider, parseToDecoder } from "@electric-sql/y-electric";
import * as Y from "yjs";
import { Awareness } from "y-protocols/awareness";

import { command, show, specification, sql } from "./bridge.mjs";

// Where the providers send their updates: the part of an application that writes.
const writer = createServer(async (request, response) => {
  const parts = [];
  for await (const part of request) parts.push(part);
  const bytes = `'\\x${Buffer.concat(parts).toString("hex")}'`;
  const client = new URL(request.url, "http://localhost").searchParams.get("client");
  await sql(
    client === null
      ? `INSERT INTO updates (op) VALUES (${bytes})`
      : `INSERT INTO awareness VALUES ('${client}', ${bytes}) ON CONFLICT (client) DO UPDATE SET op = ${bytes}`,
  );
  response.end();
});
await new Promise((listening) => writer.listen(0, "127.0.0.1", listening));
const sendUrl = `http://127.0.0.1:${writer.address().port}/`;

function open(name) {
  const doc = new Y.Doc();
  const awareness = new Awareness(doc);
  const shape = (table) => ({ url: specification.url, params: { table }, parser: parseToDecoder });
  const provider = new ElectricProvider({
    doc,
    documentUpdates: { shape: shape("updates"), sendUrl, getUpdateFromRow: (row) => row.op },
    awarenessUpdates: {
      shape: shape("awareness"), sendUrl: `${sendUrl}?client=${name}`, protocol: awareness,
      getUpdateFromRow: (row) => row.op,
    },
  });
  const text = doc.getText("text");
  const look = () => {
    const others = [...awareness.getStates().values()].map(({ user }) => user).filter(Boolean).sort();
    show("document", { name, text: text.toString(), users: others });
  };
  text.observe(look);
  awareness.on("change", look);
  return { doc, awareness, provider, text };
}

const documents = { one: open("one"), two: open("two") };
for (const { provider } of Object.values(documents)) {
  if (!provider.synced) await new Promise((synced) => provider.once("synced", synced));
}
show("synced");
for (;;) {
  const { command: name, document, ...rest } = await command();
  const { awareness, provider, text } = documents[document];
  if (name === "insert") text.insert(Math.min(rest.at, text.length), rest.text);
  if (name === "user") awareness.setLocalStateField("user", rest.user);
  if (name === "disconnect") provider.disconnect();
  if (name === "connect") provider.connect();
}

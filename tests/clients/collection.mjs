// A TanStack DB collection over a shape, which writes back and waits for its transaction ids.

import { createCollection } from "@tanstack/db";
import { electricCollectionOptions } from "@tanstack/electric-db-collection";

import { command, show, specification, sql } from "./bridge.mjs";

const quote = (value) => (value === null ? "NULL" : `'${String(value).replaceAll("'", "''")}'`);
/** How many handlers were answered by the stream, not by the time that ran out. */
let matched = 0;

const items = createCollection(
  electricCollectionOptions({
    id: "items",
    shapeOptions: { url: specification.url, params: { table: "items" }, parser: { int8: Number } },
    getKey: (item) => item.id,
    syncMode: specification.syncMode,
    onInsert: async ({ transaction }) => {
      const rows = transaction.mutations.map(({ modified: row }) => `(${row.id}, ${quote(row.title)})`);
      return { txid: await sql(`INSERT INTO items (id, title) VALUES ${rows.join(", ")}`), timeout: 20_000 };
    },
    onUpdate: async ({ transaction }) => {
      const txids = [];
      for (const { original, changes } of transaction.mutations) {
        txids.push(await sql(`UPDATE items SET title = ${quote(changes.title)} || '!' WHERE id = ${original.id}`));
      }
      return { txid: txids, timeout: 20_000 };
    },
    onDelete: async ({ transaction }) => {
      const ids = transaction.mutations.map(({ original }) => original.id);
      return { txid: await sql(`DELETE FROM items WHERE id IN (${ids.join(", ")})`), timeout: 20_000 };
    },
  }),
);

const rows = () => [...items.toArray].map(({ id, title }) => ({ id: String(id), title }));
items.subscribeChanges(() => show("rows", { rows: rows() }), { includeInitialState: true });
await items.stateWhenReady();
show("ready", { rows: rows() });

for (;;) {
  const { command: name, ...rest } = await command();
  const transaction = {
    insert: () => items.insert(rest.rows),
    update: () => items.update(rest.ids, (drafts) => drafts.forEach((draft) => { draft.title = rest.title; })),
    delete: () => items.delete(rest.ids),
  }[name]();
  // Before Postgres knows of it.
  show("optimistic", { rows: rows() });
  await transaction.isPersisted.promise;
  matched += 1;
  show("persisted", { matched, rows: rows() });
}

// What the scripts beside this one share: lines of JSON to and from the test that runs them.
//
// to the test:   {"event": name, ...}                 something was seen
//                {"event": "sql", "id", "sql"}        a transaction to run; see sql()
// from the test: {"answer": id, "value"}              the value of that transaction's last row
//                {"command": name, ...}               see command()

import { createInterface } from "node:readline";

export const specification = JSON.parse(process.argv[2]);

export function show(event, rest = {}) {
  process.stdout.write(`${JSON.stringify({ event, ...rest }, (_, value) => (typeof value === "bigint" ? String(value) : value))}\n`);
}

const answers = new Map();
const commands = [];
let waiting;

/** Runs SQL in one transaction; gives its 32-bit transaction id as a number. */
export function sql(text) {
  const id = answers.size + 1;
  const answer = new Promise((resolve) => answers.set(id, resolve));
  show("sql", { id, sql: text });
  return answer.then(Number);
}

/** The next command of the test. */
export async function command() {
  while (commands.length === 0) await new Promise((wake) => (waiting = wake));
  return commands.shift();
}

const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const message = JSON.parse(line);
  if (message.answer !== undefined) answers.get(message.answer)(message.value);
  else {
    commands.push(message);
    waiting?.();
  }
});
// The test closes our standard input when it is done, and also when it dies.
lines.on("close", () => process.exit(0));
process.on("unhandledRejection", (error) => show("unhandled", { message: String(error?.stack ?? error) }));

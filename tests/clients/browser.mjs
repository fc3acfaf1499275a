// Shows page.jsx in a headless Chromium and passes on what it reports.
// The program is $CHROMIUM, or chromium.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { build } from "esbuild";

import { command, show, specification } from "./bridge.mjs";

const bundle = await build({
  entryPoints: ["page.jsx"], bundle: true, write: false, jsx: "automatic", logLevel: "error",
  define: { "process.env.NODE_ENV": '"production"' },
});
const script = bundle.outputFiles[0].text.replaceAll("</script", "<\\/script");
const html = `<!doctype html><meta charset="utf-8"><title>shapes</title><div id="root"></div>
<script>window.SHAPE_URL = ${JSON.stringify(specification.url)};</script><script type="module">${script}</script>`;

let commands;
const server = createServer(async (request, response) => {
  if (request.url === "/commands") {
    response.writeHead(200, { "content-type": "text/event-stream" }).flushHeaders();
    commands = response;
    show("listening");
  } else if (request.url === "/report") {
    const parts = [];
    for await (const part of request) parts.push(part);
    const { event, ...rest } = JSON.parse(Buffer.concat(parts).toString());
    show(event, rest);
    response.end();
  } else if (request.url === "/") {
    response.writeHead(200, { "content-type": "text/html" }).end(html);
  } else {
    response.writeHead(404).end();
  }
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));

const profile = mkdtempSync(join(tmpdir(), "shapefold-browser-"));
const browser = spawn(
  process.env.CHROMIUM ?? "chromium",
  [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", `--user-data-dir=${profile}`, "--remote-debugging-port=0",
    `http://127.0.0.1:${server.address().port}/`,
  ],
  { stdio: "ignore", detached: true },
);
browser.on("error", (error) => show("no browser", { message: String(error) }));
browser.on("exit", (code) => show("browser ended", { code }));
process.on("exit", () => {
  try { process.kill(-browser.pid, "SIGKILL"); } catch { /* It is gone. */ }
  try { rmSync(profile, { recursive: true, force: true, maxRetries: 5 }); } catch { /* Its last files. */ }
});

for (;;) {
  const { command: _, ...shown } = await command();
  commands.write(`data: ${JSON.stringify(shown)}\n\n`);
}

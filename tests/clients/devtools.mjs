// Headless Chromium over its debugging pipe: file descriptors 3 and 4, messages ended by a zero byte. No package and no
// WebSocket is needed for that.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** How long anything that is waited for may take. */
const WAIT_MAX = 30_000;

export class Browser {
  constructor(program) {
    this.profile = mkdtempSync(join(tmpdir(), "shapefold-browser-"));
    this.child = spawn(
      program,
      [
        "--headless=new", "--remote-debugging-pipe", `--user-data-dir=${this.profile}`, "--no-sandbox", "--no-first-run",
        "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars",
        "--force-color-profile=srgb", "--font-render-hinting=none", "about:blank",
      ],
      { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] },
    );
    this.calls = new Map();
    this.number = 0;
    this.problems = [];
    this.waiting = [];
    let buffer = Buffer.alloc(0);
    this.child.stdio[4].on("data", (piece) => {
      buffer = Buffer.concat([buffer, piece]);
      for (let end = buffer.indexOf(0); end >= 0; end = buffer.indexOf(0)) {
        this.take(JSON.parse(buffer.subarray(0, end).toString()));
        buffer = buffer.subarray(end + 1);
      }
    });
    this.child.on("exit", () => {
      for (const { reject } of this.calls.values()) reject(new Error("the browser has ended"));
    });
  }

  take(message) {
    const call = this.calls.get(message.id);
    if (call) {
      this.calls.delete(message.id);
      if (message.error) call.reject(new Error(`${call.method}: ${message.error.message}`));
      else call.resolve(message.result);
    } else if (message.method === "Runtime.exceptionThrown") {
      this.problems.push(message.params.exceptionDetails.exception?.description ?? message.params.exceptionDetails.text);
    } else if (message.method === "Log.entryAdded" && message.params.entry.level === "error") {
      this.problems.push(`${message.params.entry.text} ${message.params.entry.url ?? ""}`);
    }
  }

  call(method, params = {}, session = this.session) {
    this.number += 1;
    const id = this.number;
    const message = JSON.stringify({ id, method, params, sessionId: session });
    return new Promise((resolve, reject) => {
      this.calls.set(id, { method, resolve, reject });
      this.child.stdio[3].write(`${message}\0`);
    });
  }

  /** A page of that size, in light or dark. What it complains about is in `problems`. */
  async open(width, height, scheme) {
    const { targetId } = await this.call("Target.createTarget", { url: "about:blank" }, undefined);
    const { sessionId } = await this.call("Target.attachToTarget", { targetId, flatten: true }, undefined);
    this.session = sessionId;
    for (const domain of ["Page", "Runtime", "Log", "DOM"]) await this.call(`${domain}.enable`);
    await this.resize(width, height);
    await this.call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
  }

  async resize(width, height) {
    await this.call("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: false });
  }

  go(url) {
    return this.call("Page.navigate", { url });
  }

  /** The value of an expression in the page. */
  async value(expression) {
    const { result, exceptionDetails } = await this.call("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    return result.value;
  }

  /** Waits until an expression is true; what it was at last is in the error. */
  async until(expression, what = expression, waitMax = WAIT_MAX) {
    const end = Date.now() + waitMax;
    for (;;) {
      const value = await this.value(expression).catch((error) => error.message);
      if (value === true) return;
      if (Date.now() > end) throw new Error(`waited in vain for ${what}; problems: ${this.problems.join("; ")}`);
      await this.value("new Promise((done) => requestAnimationFrame(() => done(0)))").catch(() => 0);
    }
  }

  text(selector) {
    return this.value(`document.querySelector(${JSON.stringify(selector)})?.innerText ?? null`);
  }

  async click(selector) {
    await this.until(`document.querySelector(${JSON.stringify(selector)}) !== null`, selector);
    await this.value(`document.querySelector(${JSON.stringify(selector)}).click()`);
  }

  async key(key, { code = key, text, shift = false } = {}) {
    const named = { Tab: 9, Enter: 13, Escape: 27, ArrowLeft: 37, ArrowRight: 39, Home: 36, End: 35, PageUp: 33 };
    const params = { key, code, windowsVirtualKeyCode: named[key] ?? 0, modifiers: shift ? 8 : 0, text: text ?? (key === "Enter" ? "\r" : undefined) };
    await this.call("Input.dispatchKeyEvent", { type: params.text ? "keyDown" : "rawKeyDown", ...params });
    await this.call("Input.dispatchKeyEvent", { type: "keyUp", ...params });
  }

  type(text) {
    return this.call("Input.insertText", { text });
  }

  /** The whole page, as it looks in a window as tall as it is. */
  async screenshot(path, width) {
    const height = await this.value("document.documentElement.scrollHeight");
    const before = await this.value("innerHeight");
    await this.resize(width, Math.max(before, height));
    await this.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))");
    const { data } = await this.call("Page.captureScreenshot", { format: "png" });
    await this.resize(width, before);
    writeFileSync(path, Buffer.from(data, "base64"));
  }

  async close() {
    const ended = new Promise((done) => this.child.once("exit", done));
    this.call("Browser.close", {}, undefined).catch(() => 0);
    const timer = setTimeout(() => this.child.kill("SIGKILL"), 5_000);
    await ended;
    clearTimeout(timer);
    rmSync(this.profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

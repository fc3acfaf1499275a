// Asking the admin API. The token lives in this tab only.

const KEY = "shapefold-admin-token";

export const token = () => sessionStorage.getItem(KEY) ?? "";
export const remember = (value) => sessionStorage.setItem(KEY, value);
export const forget = () => sessionStorage.removeItem(KEY);

/** `shapefold journal open` hands its token over behind #, which no server sees; it leaves the address at once. */
export function takeFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    remember(given);
    history.replaceState(null, "", location.pathname);
  }
}

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const headers = () => ({ authorization: `Bearer ${token()}` });

async function answer(response) {
  if (response.ok) return response.json();
  const said = await response.json().catch(() => ({}));
  throw new Refused(response.status, said.error ?? `the service answered ${response.status}`);
}

function address(path, question) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(question ?? {})) {
    if (value !== undefined && value !== null && value !== "" && value !== false) query.set(name, value);
  }
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

/** Asks; a service that answers too many questions already is asked again a few times. */
export async function get(path, question, signal) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await answer(await fetch(address(path, question), { headers: headers(), signal }));
    } catch (error) {
      if (!(error instanceof Refused && error.status === 503 && attempt < 3)) throw error;
      await new Promise((done) => setTimeout(done, 500 * (attempt + 1)));
    }
  }
}

export const post = async (path, body) => answer(await fetch(path, { method: "POST", headers: headers(), body }));

/** Follows server-sent events. EventSource cannot send the token, so the stream is read by hand. */
export async function follow(path, question, onMessage, signal) {
  const response = await fetch(address(path, question), { headers: headers(), signal });
  if (!response.ok) return answer(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return undefined;
    buffer += value;
    for (let end = buffer.indexOf("\n\n"); end >= 0; end = buffer.indexOf("\n\n")) {
      const data = buffer.slice(0, end).split("\n").filter((line) => line.startsWith("data: "));
      buffer = buffer.slice(end + 2);
      if (data.length > 0) onMessage(JSON.parse(data.map((line) => line.slice(6)).join("\n")));
    }
  }
}

/** Runs one question at a time and forgets those that were overtaken: for a slider. */
export function latest(ask, onAnswer, onProblem) {
  let running = false;
  let waiting = null;
  return async function question(...arguments_) {
    if (running) {
      waiting = arguments_;
      return;
    }
    running = true;
    try {
      const found = await ask(...arguments_);
      if (!waiting) onAnswer(found);
    } catch (error) {
      if (!waiting) onProblem(error);
    } finally {
      running = false;
      const next = waiting;
      waiting = null;
      if (next) question(...next);
    }
  };
}

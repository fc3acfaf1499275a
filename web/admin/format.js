// Figures for people. What is exact stands beside or behind what is short.

const grouped = new Intl.NumberFormat("en-US");

export const commas = (number) => grouped.format(number);

const UNITS = ["bytes", "kB", "MB", "GB", "TB", "PB"];

/** Powers of ten, three digits: 1.57 GB. */
export function bytes(number) {
  let unit = 0;
  let value = number;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  if (unit === 0) return number === 1 ? "1 byte" : `${number} bytes`;
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

export const exactBytes = (number) => (number === 1 ? "1 byte" : `${commas(number)} bytes`);

/** The two largest units: 5 h 3 min. */
export function span(micros) {
  const seconds = micros / 1e6;
  if (seconds < 0.001) return `${Math.round(micros)} µs`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([size]) => seconds >= size);
  const [size, unit] = parts[first];
  const [smaller, smallerUnit] = parts[first + 1];
  const rest = Math.floor((seconds % size) / smaller);
  return `${Math.floor(seconds / size)} ${unit}${rest > 0 ? ` ${rest} ${smallerUnit}` : ""}`;
}

/** Microseconds since the Unix epoch as the command line writes them. */
export function iso(micros) {
  const whole = Math.floor(micros / 1000);
  const rest = String(((micros % 1000) + 1000) % 1000).padStart(3, "0");
  return new Date(whole).toISOString().replace("Z", `${rest}Z`);
}

/** `2026-03-20 02:09:30` of the long form. */
export const moment = (text) => text.slice(0, 19).replace("T", " ");

export const clock = (text) => text.slice(11, 19);

/** A label on an axis of time: as short as the stretch allows. */
export function tick(micros, stretch) {
  const text = iso(micros);
  if (stretch > 20 * 86400e6) return text.slice(5, 10);
  if (stretch > 86400e6) return `${text.slice(5, 10)} ${text.slice(11, 16)}`;
  if (stretch > 600e6) return text.slice(11, 16);
  return text.slice(11, 19);
}

export const plural = (count, one, many = `${one}s`) => `${commas(count)} ${count === 1 ? one : many}`;

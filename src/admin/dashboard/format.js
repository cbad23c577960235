// Numbers for people, and elements without HTML text: names come from pods and clients, so they only ever become text nodes.

/** An element with a class and children; strings become text. */
export function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** 1234 -> "1.2k". */
export function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 999.5e6) return fixed(value / 1e9) + "G";
  if (size >= 999.5e3) return fixed(value / 1e6) + "M";
  if (size >= 999.5) return fixed(value / 1e3) + "k";
  return size >= 9.95 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1);
}

const fixed = (value) => value.toFixed(Math.abs(value) >= 9.95 ? 0 : 1);

/** Milliseconds: "3.2 ms", "1.4 s". */
export function millis(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 59_500) return `${(value / 60_000).toFixed(1)} min`;
  if (value >= 999.5) return `${(value / 1_000).toFixed(value >= 9_950 ? 0 : 1)} s`;
  return `${value.toFixed(value >= 9.95 ? 0 : 1)} ms`;
}

export const seconds = (value) => (value === null || value === undefined ? "–" : millis(value * 1_000));

/** Per mille as "81 %". */
export const percent = (value) => (value === null || value === undefined ? "–" : `${Math.round(value / 10)} %`);

/** "1.2 kB". */
export const bytes = (value) => short(value).replace(/([kMG]?)$/, " $1B");

/** "14:03:27" of milliseconds since 1970. */
export const clock = (unixMs) => new Date(unixMs).toTimeString().slice(0, 8);

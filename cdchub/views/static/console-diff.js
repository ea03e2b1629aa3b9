// A change as a person reads it: what became of which row, before and after.

/** @typedef {import("/cdc/client.js").Change} Change */

// Longer values are folded; of longer ones still only the beginning is kept.
const FOLD_CHARS = 120;
const FOLDED_CHARS = 80;
// Before and after share a line if both are no longer.
const SHORT_CHARS = 40;
const VALUE_CHARS_MAX = 10_000;
const COLUMNS_SHOWN = 12;

const numberFormat = new Intl.NumberFormat();
const timeFormat = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

/** A value as SQL would write it, more or less. */
export function valueText(value) {
  if (value === null || value === undefined) return "NULL";
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value !== "object") return String(value);
  const [[kind, inner]] = Object.entries(value);
  if (kind === "$int" || kind === "$real") return String(inner);
  const name = kind === "$blob" ? "BLOB" : "TEXT that is not UTF-8";
  const padding = /=*$/.exec(inner)[0].length;
  return `${name} of ${numberFormat.format((inner.length / 4) * 3 - padding)} bytes: ${inner}`;
}

/**
 * What of a row is worth showing: columns that differ, and how many others there are.
 * @param {Change} change
 */
export function differences({ oldValue, newValue }) {
  const names = [...new Set([...Object.keys(oldValue ?? {}), ...Object.keys(newValue ?? {})])];
  const all = names.map((name) => ({
    name,
    before: oldValue && valueText(oldValue[name]),
    after: newValue && valueText(newValue[name]),
  }));
  const changed = all.filter(({ before, after }) => before !== after);
  return { changed, unchanged: all.length - changed.length };
}

/** @param {Change} change */
export function changeElement(change) {
  const { changed, unchanged } = differences(change);
  const element = document.createElement("li");
  element.className = "change";
  element.dataset.type = change.type;
  element.append(heading(change));
  if (changed.length) element.append(columnList(changed.slice(0, COLUMNS_SHOWN)));
  const rest = changed.slice(COLUMNS_SHOWN);
  if (rest.length) element.append(folded(`${rest.length} more columns`, columnList(rest)));
  if (unchanged) element.append(piece("p", `${unchanged} unchanged`, "soft unchanged"));
  return element;
}

function heading({ type, table, key, lsn, timestamp }) {
  const line = piece("p", "", "what");
  const keys = Object.entries(key).map(
    ([name, value]) => `${name} = ${shortened(valueText(value))}`,
  );
  const time = piece("time", timeFormat.format(timestamp), "soft");
  time.dateTime = new Date(timestamp).toISOString();
  line.append(
    piece("span", type, "type"),
    " ",
    piece("b", table),
    " ",
    piece("code", keys.join(", ")),
    " ",
    piece("span", `LSN ${lsn}`, "soft lsn"),
    " ",
    time,
  );
  return line;
}

function columnList(columns) {
  const list = piece("dl", "", "diff");
  for (const { name, before, after } of columns) {
    const values = document.createElement("dd");
    const isShort = [before, after].every((text) => (text?.length ?? 0) <= SHORT_CHARS);
    values.classList.toggle("short", isShort);
    if (before !== null) values.append(valueElement("del", before));
    if (after !== null) values.append(valueElement("ins", after));
    list.append(piece("dt", name), values);
  }
  return list;
}

/** @param {"del" | "ins"} tag */
function valueElement(tag, text) {
  const element = document.createElement(tag);
  if (text.length <= FOLD_CHARS) element.textContent = text;
  else {
    const kept = text.slice(0, VALUE_CHARS_MAX);
    const cut =
      text.length > kept.length ? `… the first ${numberFormat.format(kept.length)} of them` : "";
    const length = numberFormat.format(text.length);
    const summary = `${text.slice(0, FOLDED_CHARS)}… (${length} characters)`;
    element.append(folded(summary, piece("span", kept + cut, "whole")));
  }
  return element;
}

const shortened = (text) => (text.length > FOLDED_CHARS ? `${text.slice(0, FOLDED_CHARS)}…` : text);

function folded(summary, content) {
  const details = document.createElement("details");
  details.append(piece("summary", summary), content);
  return details;
}

function piece(tag, text, className = "") {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (className) element.className = className;
  return element;
}

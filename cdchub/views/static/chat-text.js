// What becomes of names and messages that anybody may have written: pure functions.

/** @typedef {{text: string, href?: string}} Part a piece of a message, and where it leads if it is a link */

const LINK = /\bhttps?:\/\/[^\s<>"“”]+/gi;
const CLOSING = { ")": "(", "]": "[", "}": "{" };
const PUNCTUATION = ".,;:!?…'’*_~";
// Longer messages are folded, to the lengths behind them.
const LONG_CHARS = 1000;
const LONG_LINES = 15;
const FOLDED_CHARS = 700;
const FOLDED_LINES = 10;
const COLOURS = 8;

const count = (text, letter) => text.split(letter).length - 1;

/** An address without the punctuation of the sentence that it stands in. */
function withoutPunctuation(address) {
  const surplus = {};
  for (const [closing, opening] of Object.entries(CLOSING)) {
    surplus[closing] = count(address, closing) - count(address, opening);
  }
  let end = address.length;
  for (; end > 0; end--) {
    const last = address[end - 1];
    if (last in CLOSING ? surplus[last]-- <= 0 : !PUNCTUATION.includes(last)) break;
  }
  return address.slice(0, end);
}

/** @param {string} text @returns {Part[]} */
export function partsOf(text) {
  const parts = [];
  let end = 0;
  for (const { 0: found, index } of text.matchAll(LINK)) {
    const address = withoutPunctuation(found);
    if (!URL.canParse(address)) continue;
    if (index > end) parts.push({ text: text.slice(end, index) });
    parts.push({ text: address, href: address });
    end = index + address.length;
  }
  if (end < text.length) parts.push({ text: text.slice(end) });
  return parts;
}

/** Parts up to a place; a link that is cut still leads where it did. @param {Part[]} parts */
export function cut(parts, end) {
  const kept = [];
  let begin = 0;
  for (const part of parts) {
    if (begin >= end) break;
    kept.push({ ...part, text: part.text.slice(0, end - begin) });
    begin += part.text.length;
  }
  return kept;
}

/** Where a message is folded, or null where it is short enough to be shown whole. */
export function foldAt(text) {
  if (text.length <= LONG_CHARS && count(text, "\n") < LONG_LINES) return null;
  let end = 0;
  for (let lines = 0; lines < FOLDED_LINES; lines++) {
    const next = text.indexOf("\n", end);
    if (next < 0 || next >= FOLDED_CHARS) {
      // Between words, or at least not within a character that is two units long.
      const space = text.lastIndexOf(" ", FOLDED_CHARS);
      if (space > end && space > FOLDED_CHARS - 80) return space;
      return /[\uD800-\uDBFF]/.test(text[FOLDED_CHARS - 1]) ? FOLDED_CHARS - 1 : FOLDED_CHARS;
    }
    end = next + 1;
  }
  return end - 1;
}

/** A number below `COLOURS` that a name always has; chat.css has a colour for each. */
export function colourOf(name) {
  let hash = 0;
  for (let place = 0; place < name.length; place++) {
    hash = Math.imul(hash ^ name.charCodeAt(place), 0x01000193);
  }
  // The lowest bits of a product know little of the whole.
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  return ((hash ^ (hash >>> 13)) >>> 0) % COLOURS;
}

/** "ann is typing…" @param {string[]} names */
export function typingText(names) {
  if (!names.length) return "";
  if (names.length === 1) return `${names[0]} is typing…`;
  if (names.length === 2) return `${names[0]} and ${names[1]} are typing…`;
  return "Several people are typing…";
}

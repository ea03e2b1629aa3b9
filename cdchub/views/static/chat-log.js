// The messages of the room in front: grouped by author and day, with the place kept while one reads.
import { colourOf, cut, foldAt, partsOf } from "./chat-text.js";

// Messages that are shown at first, and at most while one is at the end.
const SHOWN = 50;
const SHOWN_MAX = 300;
// Whoever writes again within this time needs no new name above it.
const GROUP_MS = 5 * 60_000;
// So near to the end counts as the end.
const END_PX = 40;
const OLDER = "Older messages";

const dayFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "full" });
const timeFormat = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const fullFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const numberFormat = new Intl.NumberFormat();

const $ = (id) => document.getElementById(id);

export class MessageLog {
  /**
   * @param {object} actions
   * @param {() => void} actions.reading called when the end came into view
   * @param {(limit: number) => Promise<boolean>} actions.older fetches older messages; whether there
   *   are more
   */
  constructor({ reading, older }) {
    this.scroller = $("log");
    this.list = $("messages");
    this.olderButton = $("older");
    this.beginning = $("beginning");
    this.jumpButton = $("jump");
    this.actions = { reading, older };
    this.room = null;
    this.shown = new Map(); // key → {element, item}
    this.isPinned = true;
    this.isLoading = false;
    this.scroller.addEventListener("scroll", () => this.scrolled());
    this.jumpButton.addEventListener("click", () => {
      // The button vanishes, and the focus with it.
      this.scroller.focus({ preventScroll: true });
      this.toEnd();
    });
    this.olderButton.addEventListener("click", () => this.loadOlder());
    new ResizeObserver(() => this.isPinned && this.toEnd()).observe(this.scroller);
    const near = { root: this.scroller, rootMargin: "200px 0px 0px" };
    this.observer = new IntersectionObserver((entries) => {
      if (entries.at(-1).isIntersecting) this.loadOlder();
    }, near);
  }

  /** Puts a room in front. @param {import("./chat-rooms.js").Joined} room */
  open(room) {
    this.room = room;
    this.list.replaceChildren();
    this.shown.clear();
    this.isPinned = true;
    this.olderButton.textContent = OLDER;
    this.render();
    // What came while one was elsewhere is read from its beginning.
    const line = this.list.querySelector(".new");
    if (line && line.offsetTop < this.scroller.scrollTop) {
      this.scroller.scrollTop = line.offsetTop - 8;
      this.scrolled();
    }
  }

  /** Shows the room as it is now. */
  render() {
    const { room } = this;
    const { messages } = room.state;
    let start = messages.findIndex(({ messageId }) => messageId === room.first);
    if (start < 0) start = Math.max(0, messages.length - SHOWN);
    if (this.isPinned && messages.length - start > SHOWN_MAX) start = messages.length - SHOWN;
    room.first = messages[start]?.messageId;
    const items = itemsOf(messages, start, room.marker);
    const anchor = this.isPinned ? null : this.anchor();
    this.place(items);
    const isReady = room.isLoaded;
    const isWhole = start === 0 && !room.hasOlder;
    this.olderButton.hidden = !isReady || isWhole;
    this.beginning.hidden = isReady && !isWhole;
    const said = messages.length ? "This is where it begins." : "Nothing has been said here yet.";
    this.beginning.textContent = isReady ? said : "Loading…";
    const kept = anchor && this.shown.get(anchor.key)?.element;
    if (kept) this.scroller.scrollTop += bottomOf(kept) - anchor.bottom;
    else if (this.isPinned) this.toEnd();
    this.setBusy(!isReady || this.isLoading);
    this.showJump();
    // Asked again each time: an observer that sees no move says nothing.
    this.observer.disconnect();
    if (!this.olderButton.hidden) this.observer.observe(this.olderButton);
  }

  /** Screen readers don't read out what is filled in; they do read what is said from then on. */
  setBusy(isBusy) {
    if (isBusy) this.scroller.setAttribute("aria-busy", "true");
    else
      requestAnimationFrame(() => this.scroller.setAttribute("aria-busy", String(this.isLoading)));
  }

  place(items) {
    const keys = new Set(items.map(({ key }) => key));
    for (const [key, { element }] of this.shown) {
      if (!keys.has(key)) {
        element.remove();
        this.shown.delete(key);
      }
    }
    let next = this.list.firstChild;
    for (const item of items) {
      const known = this.shown.get(item.key);
      const element = known && isSame(known.item, item) ? known.element : elementOf(item);
      if (known && element !== known.element) {
        if (next === known.element) next = next.nextSibling;
        known.element.remove();
      }
      this.shown.set(item.key, { element, item });
      if (element === next) next = next.nextSibling;
      else this.list.insertBefore(element, next);
    }
  }

  // The place.

  /** The first message that one can see, and where it ends. */
  anchor() {
    const { top } = this.scroller.getBoundingClientRect();
    // Not a line between messages: those come and go.
    const messages = [...this.list.querySelectorAll(".message")];
    const element = messages.find((each) => bottomOf(each) > top);
    const found = [...this.shown].find(([, shown]) => shown.element === element);
    return found && { key: found[0], bottom: bottomOf(element) };
  }

  toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.scrolled();
  }

  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.isPinned = scrollHeight - scrollTop - clientHeight < END_PX;
    if (this.isPinned) this.actions.reading();
    this.showJump();
  }

  showJump() {
    this.jumpButton.hidden = this.isPinned;
    const unread = this.room?.unread ?? 0;
    const text = unread ? `↓ ${unread} new ${unread === 1 ? "message" : "messages"}` : "↓ Latest";
    if (this.jumpButton.textContent !== text) this.jumpButton.textContent = text;
  }

  async loadOlder() {
    const { room } = this;
    const { messages } = room.state;
    if (this.isLoading || !room.isLoaded) return;
    const start = messages.findIndex(({ messageId }) => messageId === room.first);
    if (start > 0) {
      room.first = messages[Math.max(0, start - SHOWN)].messageId;
      this.isPinned = false;
      this.render();
      this.scrolled();
      return;
    }
    this.isLoading = true;
    this.setBusy(true);
    this.olderButton.textContent = "Loading…";
    try {
      room.hasOlder = await this.actions.older(SHOWN);
      room.first = room.state.messages[0]?.messageId;
      this.olderButton.textContent = OLDER;
    } catch (error) {
      this.olderButton.textContent = `Older messages could not be had: ${error.message} Try again`;
      this.observer.disconnect();
      return;
    } finally {
      this.isLoading = false;
      if (room !== this.room) this.olderButton.textContent = OLDER;
    }
    if (room === this.room) this.render();
  }
}

const bottomOf = (element) => element.getBoundingClientRect().bottom;

// What is shown, in order.

function itemsOf(messages, start, marker) {
  const items = [];
  let previous = messages[start - 1] ?? null;
  let day = null;
  for (const message of messages.slice(start)) {
    const at = message.timestamp ? new Date(message.timestamp) : null;
    const itsDay = at?.toDateString() ?? day;
    const isNewDay = itsDay !== day;
    if (isNewDay) items.push({ key: `day ${message.messageId}`, text: dayFormat.format(at) });
    const isNew = previous !== null && previous.messageId === marker && !message.pending;
    if (isNew) items.push({ key: "new", text: "New messages" });
    const isSoon = at - new Date(previous?.timestamp ?? 0) < GROUP_MS;
    const isFirst = items.length === 0 || isNewDay || isNew;
    const continues = !isFirst && isSoon && previous.userId === message.userId;
    items.push({ key: `message ${message.messageId}`, message, at, continues });
    previous = message;
    day = itsDay;
  }
  return items;
}

function isSame(a, b) {
  if (!a.message) return a.text === b.text;
  const names = ["content", "userId", "timestamp", "pending"];
  return a.continues === b.continues && names.every((name) => a.message[name] === b.message[name]);
}

function elementOf(item) {
  const element = document.createElement("li");
  if (!item.message) {
    element.className = item.key === "new" ? "line new" : "line";
    const words = document.createElement("span");
    words.textContent = item.text;
    element.append(words);
    return element;
  }
  const { message, at, continues } = item;
  element.className = "message";
  element.classList.toggle("first", !continues);
  element.classList.toggle("pending", Boolean(message.pending));
  element.dataset.colour = String(colourOf(message.userId));

  const author = document.createElement("b");
  author.className = "author";
  author.dir = "auto";
  author.textContent = message.userId;
  const head = document.createElement("p");
  // Each message is read out with its author, though only the first shows it.
  head.className = continues ? "head visually-hidden" : "head";
  head.append(author, " ");
  if (at) {
    const time = document.createElement("time");
    time.className = "soft";
    time.dateTime = message.timestamp;
    time.textContent = timeFormat.format(at);
    time.title = fullFormat.format(at);
    head.append(time);
  }
  const body = document.createElement("div");
  body.className = "text";
  body.dir = "auto";
  element.append(head, body);
  fill(element, body, message.content);
  if (message.pending) {
    const note = document.createElement("p");
    note.className = "note soft";
    for (const [when, text] of [
      ["online", "Sending…"],
      ["offline", "Not sent yet: it waits for the connection."],
    ]) {
      const part = document.createElement("span");
      part.className = when;
      part.textContent = text;
      note.append(part);
    }
    element.append(note);
  }
  return element;
}

function fill(element, body, content) {
  const parts = partsOf(content);
  const end = foldAt(content);
  if (end === null) {
    body.append(...parts.map(nodeOf));
    return;
  }
  const toggle = document.createElement("button");
  toggle.type = "button";
  toggle.className = "quiet fold";
  const show = (isWhole) => {
    body.replaceChildren(...(isWhole ? parts : [...cut(parts, end), { text: "…" }]).map(nodeOf));
    toggle.setAttribute("aria-expanded", String(isWhole));
    const length = numberFormat.format([...content].length);
    toggle.textContent = isWhole ? "Show less" : `Show all ${length} characters`;
  };
  toggle.addEventListener("click", () => show(toggle.getAttribute("aria-expanded") === "false"));
  show(false);
  element.append(toggle);
}

/** @param {import("./chat-text.js").Part} part */
function nodeOf({ text, href }) {
  if (href === undefined) return document.createTextNode(text);
  const link = document.createElement("a");
  link.href = href;
  link.rel = "noopener noreferrer";
  link.target = "_blank";
  link.textContent = text;
  return link;
}

// The lists beside the messages: rooms with what is unread in them, and who is here.
import { colourOf } from "./chat-text.js";

const MEMBERS_SHOWN = 100;
const UNREAD_SHOWN = 99;

const $ = (id) => document.getElementById(id);
const numberFormat = new Intl.NumberFormat();

/** Unchanged text is not set again: a screen reader would say it again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** @param {string[]} members @param {string} self */
export function showMembers(members, self) {
  setText($("members-count"), members.length ? numberFormat.format(members.length) : "");
  const lines = members.slice(0, MEMBERS_SHOWN).map((name) => {
    const item = document.createElement("li");
    const text = document.createElement("b");
    text.className = "author";
    text.dir = "auto";
    text.textContent = name;
    item.dataset.colour = String(colourOf(name));
    item.append(text, name === self ? " (you)" : "");
    return item;
  });
  const more = members.length - lines.length;
  if (more > 0) {
    const item = document.createElement("li");
    item.className = "soft";
    item.textContent = `and ${numberFormat.format(more)} more`;
    lines.push(item);
  }
  const list = $("members");
  const isAsBefore =
    list.children.length === lines.length &&
    lines.every((line, index) => line.isEqualNode(list.children[index]));
  if (!isAsBefore) list.replaceChildren(...lines);
}

const shortened = (count) => (count > UNREAD_SHOWN ? `${UNREAD_SHOWN}+` : String(count));

/** @param {HTMLElement} badge a number, and a word that screen readers say */
function showCount(badge, count) {
  badge.hidden = !count;
  setText(badge.firstElementChild, shortened(count));
}

export class RoomList {
  /** @param {{open: (name: string) => void, leave: (name: string, link: HTMLElement) => void}} actions */
  constructor(actions) {
    this.actions = actions;
  }

  /**
   * @param {string[]} names in their order
   * @param {Map<string, import("./chat-rooms.js").Joined>} joined
   * @param {import("./chat-rooms.js").Joined} front
   */
  show(names, joined, front) {
    const list = $("rooms");
    const known = new Map([...list.children].map((item) => [item.dataset.room, item]));
    for (const [index, name] of names.entries()) {
      const item = known.get(name) ?? this.itemOf(name);
      known.delete(name);
      this.showRoom(item, name, joined, front);
      if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
    }
    for (const item of known.values()) item.remove();

    let elsewhere = 0;
    let all = 0;
    for (const room of joined.values()) {
      all += room.unread;
      if (room !== front) elsewhere += room.unread;
    }
    showCount($("unread-elsewhere"), elsewhere);
    const title = `${all ? `(${shortened(all)}) ` : ""}Chat - Live Rooms`;
    if (document.title !== title) document.title = title;
  }

  /** @param {string} name */
  itemOf(name) {
    const item = document.createElement("li");
    item.dataset.room = name;
    const link = document.createElement("a");
    link.href = `?room=${encodeURIComponent(name)}`;
    const text = document.createElement("span");
    text.className = "name";
    text.dir = "auto";
    text.textContent = name;
    link.append(text, " ", $("unread-elsewhere").cloneNode(true));
    link.lastChild.removeAttribute("id");
    link.addEventListener("click", (event) => {
      // With a key held, a browser opens it elsewhere.
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      this.actions.open(name);
    });
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet leave";
    button.textContent = "×";
    button.setAttribute("aria-label", `Leave ${name}`);
    button.title = `Leave ${name}`;
    button.addEventListener("click", () => this.actions.leave(name, link));
    item.append(link, button);
    return item;
  }

  showRoom(item, name, joined, front) {
    const [link, button] = item.children;
    const room = joined.get(name);
    if (room && room === front) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
    item.classList.toggle("joined", Boolean(room));
    button.hidden = !room || joined.size === 1;
    showCount(link.lastElementChild, room?.unread ?? 0);
  }
}

// The rooms that one has joined, what of them is read, and what this browser remembers of that.
import { room as openRoom } from "/cdc/client.js";
import { recallDraft } from "./drafts.js";

const NAME = "chat-name";
const ROOMS = "chat-rooms";
const HISTORY = 50;
// A connection has at most 100 subscriptions and rooms, and its other tabs want some too.
export const ROOMS_MAX = 30;

/** @typedef {{id: string, lsn: number} | null} Mark the last message that one has read; null: none */

function recall(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null; // Storage may be forbidden; then all this lasts as long as the page.
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // As above.
  }
}

/** @returns {Map<string, Mark>} */
function recallRooms() {
  try {
    return new Map(JSON.parse(recall(ROOMS) ?? "[]"));
  } catch {
    return new Map(); // Somebody else's words under our key.
  }
}

export const recallName = () => recall(NAME);
export const rememberName = (name) => remember(NAME, name);
/** The names of the rooms that were joined when this browser was last here. */
export const recallJoined = () => [...recallRooms().keys()].slice(0, ROOMS_MAX);

/** Calls `run` when another tab of this browser has read on. */
export function onReadElsewhere(run) {
  addEventListener("storage", ({ key }) => key === ROOMS && run());
}

/** One joined room. */
export class Joined {
  /**
   * @param {object} page
   * @param {(joined: Joined) => boolean} page.isSeen whether one sees what comes into it now
   * @param {(joined: Joined) => void} page.moved called when anything in it has changed
   */
  constructor(name, user, { isSeen, moved }) {
    this.name = name;
    this.isSeen = isSeen;
    this.isLoaded = false;
    this.hasOlder = true;
    /** The id of the first message that is shown. */
    this.first = undefined;
    /** The id of the message behind which the line "New messages" stands. */
    this.marker = null;
    this.draft = recallDraft(`chat ${name}`);
    this.problem = "";
    /** @type {Mark | undefined} undefined until the room is seen for the first time */
    this.read = recallRooms().get(name);
    this.unread = 0;
    this.state = { messages: [], members: [], typing: [], joined: false };
    this.line = openRoom(name, { history: HISTORY, user });
    const stops = [
      this.line.subscribe((state) => {
        this.take(state);
        moved(this);
      }),
      this.line.onStatus(() => moved(this)),
    ];
    this.close = () => {
      for (const stop of stops) stop();
      this.line.close();
    };
  }

  take(state) {
    const oldest = this.state.messages[0]?.messageId;
    this.state = state;
    const isFirst = !this.isLoaded && state.joined;
    if (isFirst) {
      this.isLoaded = true;
      if (this.read === undefined) this.markRead();
    }
    // Messages were fetched anew, and there may be older ones again.
    const { messages } = state;
    if (oldest !== messages[0]?.messageId && !messages.some((m) => m.messageId === oldest)) {
      this.hasOlder = true;
    }
    if (!this.isLoaded) return;
    if (!isFirst && this.isSeen(this)) {
      this.markRead();
      return;
    }
    const unread = this.countUnread();
    if (unread && !this.unread) this.marker = this.read?.id ?? null;
    this.unread = unread;
  }

  countUnread() {
    const { messages } = this.state;
    const place = messages.findIndex(({ messageId }) => messageId === this.read?.id);
    const isNew = ({ lsn }, index) => (place < 0 ? lsn > (this.read?.lsn ?? 0) : index > place);
    return messages.filter((message, index) => {
      return isNew(message, index) && !message.pending && message.userId !== this.line.userId;
    }).length;
  }

  /** Everything that is here has been seen. */
  markRead() {
    const last = this.state.messages.findLast((message) => !message.pending);
    this.unread = 0;
    if (this.read !== undefined && this.read?.id === last?.messageId) return;
    this.read = last ? { id: last.messageId, lsn: last.lsn } : null;
    remember(ROOMS, JSON.stringify([...recallRooms().set(this.name, this.read)]));
  }

  /** Takes over how far another tab has read, if that is further. */
  readElsewhere() {
    const before = this.read;
    this.read = recallRooms().get(this.name) ?? before;
    const unread = this.countUnread();
    if (unread < this.unread) this.unread = unread;
    else this.read = before;
  }

  /** Leaves it, and doesn't come back by itself. */
  leave() {
    this.close();
    const rooms = recallRooms();
    rooms.delete(this.name);
    remember(ROOMS, JSON.stringify([...rooms]));
  }
}

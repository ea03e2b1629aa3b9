// The browser library of cdchub: collections that stay equal to their tables, and chat rooms.
//
// A browser has one connection to a hub, however many of its tabs are open. Whoever has it is the
// *holder*: a SharedWorker that runs this same file; where there is none, the tab that got a Web
// Lock; where there are no locks, each tab for itself. The holder keeps one *feed* for each distinct
// request, with a copy of its rows, and gives every tab a *seat*. A tab and its holder only exchange
// messages, so that nothing else depends on which of the three it is.
//
// What a tab is shown is always whole: a feed holds a transaction back until its end is known, and
// what follows a reset until the snapshot is complete.
//
// From the bottom: words, rows, optimistic edits and chat as pure functions; feeds and rooms; the
// connection and its two transports; sharing; and at the end what a page calls.
//
// It is long because it is one file by contract: a page imports it, and a SharedWorker runs it, with
// no build and no second request.
//
// Importing this file touches no global of the browser, and on a server (Node) collections hold what
// `initialData` gave them and never connect.

// Words.

/**
 * @typedef {{lsn: number, type: "INSERT" | "UPDATE" | "DELETE" | "SNAPSHOT", table: string,
 *   key: Row, oldValue: Row | null, newValue: Row | null, timestamp: number, txid: number,
 *   commit?: boolean}} Change one committed row change
 * @typedef {Record<string, any>} Row
 * @typedef {any} Key the key's value, a list of its values, or an object with them
 * @typedef {{key: Key, row?: Row, patch?: Row, deleted?: boolean}} Edit what an optimistic write does
 *   to one row: put `row` there, change some columns (`patch`), or take it away (`deleted`)
 * @typedef {"connecting" | "live" | "reconnecting" | "closed"} Status
 * @typedef {{table: string, room: string | null, filters: string[], columns: string[] | null}} Request
 *   what is wanted of one table; a feed has a list of them, all of the same room
 * @typedef {{messageId: string, userId: string, content: string, timestamp: string, lsn: number,
 *   pending?: boolean}} Message
 * @typedef {{messages: Message[], members: string[], joined: boolean, more: boolean}} RoomState
 */

// Of the messages between tabs and holder. Tabs with another one have a holder of their own.
const PROTOCOL = 2;
const SUBPROTOCOL = "cdchub.v1.json";
const WORKER_NAME = `cdchub ${PROTOCOL}`;

// A tab that is hidden for longer is not fed; when all are, the connection is let go after a while.
const HIDDEN_PAUSE_MS = 30_000;
const ALL_HIDDEN_CLOSE_MS = 300_000;
// Changes that a feed remembers, so that a tab that comes back need not be filled anew.
const RECENT_MAX = 1_000;
// Changes and rows that a tab was given and has not worked through; above it nothing more is sent.
const IN_FLIGHT_MAX = 10_000;
// Messages of a room that the holder remembers for tabs that join later.
const ROOM_MESSAGES_MAX = 500;
// How long who closed a tab is still in its rooms; the hub gives as long when a connection ends.
const RELOAD_MS = 10_000;
// How long an edit may outlive the request that made it, waiting for its own change.
const EDIT_LINGERS_MS = 5_000;
const BACKOFF_BASE_MS = 1_000;
const BACKOFF_MAX_MS = 30_000;
// A connection that ends sooner is no success: what ended it may end the next one too.
const STEADY_MS = 5_000;
// How often a person who does something makes a page look for the hub at once.
const LOOK_MS = 1_000;
// Silence that means a dead connection, in heartbeats; and the wait for an answer that is asked for.
const HEARTBEATS_MISSED = 2.5;
const ANSWER_MS = 5_000;
// Until the hub says how often its heart beats, this bounds the handshake too: 10 s.
const FIRST_HEARTBEAT_S = 4;
// The hub takes no more filters in one request.
const FILTERS_MAX = 20;
// The hub's own bounds, in characters; a longer message could cost the whole connection.
const USER_CHARS_MAX = 64;
const ROOM_CHARS_MAX = 128;
const CONTENT_CHARS_MAX = 16_384;
const REQUEST_BYTES_MAX = 131_072;
const TYPING_REPEAT_MS = 3_000;
const TYPING_FORGOTTEN_MS = 5_000;
// Refusals that pass; all others last until the request is another one.
const PASSING = new Set([
  "overloaded",
  "too_many_requests",
  "internal",
  "timeout",
]);

const quoted = (text) => `"${String(text).replace(/["\\]/g, "\\$&")}"`;
const lower = (name) => name.replace(/[A-Z]+/g, (letters) => letters.toLowerCase());
const lsnOf = (position) => Number(position.slice(position.lastIndexOf(":") + 1));
const epochOf = (position) => position.slice(0, position.lastIndexOf(":"));

/** JSON with values as they are on the wire; a page may have a BigInt. */
function json(value) {
  return JSON.stringify(value, (_, each) => {
    if (typeof each !== "bigint") return each;
    return Number.isSafeInteger(Number(each)) ? Number(each) : { $int: String(each) };
  });
}

/** Whether two values are the same to SQLite, where booleans are 1 and 0. */
function same(a, b) {
  const plain = (value) => (typeof value === "boolean" ? Number(value) : (value ?? null));
  return json(plain(a)) === json(plain(b));
}

/**
 * Filter texts from `where`: a text, a list of texts, or `{column: value}`.
 * @param {string | string[] | Row | undefined} where
 * @returns {string[]}
 */
export function filtersOf(where) {
  if (where === undefined || where === null) return [];
  if (typeof where === "string") return [where];
  if (Array.isArray(where)) return [...where].sort();
  return Object.entries(where)
    .map(([column, value]) => {
      const literal = typeof value === "boolean" ? Number(value) : (value?.$int ?? value);
      if (literal === undefined || (typeof literal === "object" && literal !== null))
        throw new TypeError(`where: ${column} has to be a text, a number, a boolean or null`);
      return `${quoted(column)}=${literal === null ? "is.null" : `eq.${quoted(literal)}`}`;
    })
    .sort();
}

/** A name of 32 characters for a request, the same in every browser, so that equal ones share. */
export function nameOf(text) {
  // Four rounds of FNV-1a with different beginnings. Not against attackers: who picks requests
  // that collide only hurts their own browser.
  let name = "";
  for (const seed of [0x811c9dc5, 0x9e3779b9, 0x85ebca6b, 0xc2b2ae35]) {
    let hash = seed;
    for (let place = 0; place < text.length; place++) {
      hash = Math.imul(hash ^ text.charCodeAt(place), 0x01000193);
      hash ^= hash >>> 15;
    }
    name += (hash >>> 0).toString(16).padStart(8, "0");
  }
  return name;
}

/** Full jitter: anywhere up to a bound that doubles (`random` is from 0 to 1). */
export function backoff(tries, random) {
  return random * Math.min(BACKOFF_MAX_MS, BACKOFF_BASE_MS * 2 ** tries);
}

// Rows. `keyOf(row, change)` gives the text under which a row is held.

/** @param {Key} key @param {string[] | null} [columns] in which order those of an object are read */
export function keyText(key, columns = null) {
  // {"$int": …} and its like are values and no keys of several columns.
  const isValue = typeof key !== "object" || key === null || Object.keys(key)[0]?.startsWith("$");
  if (isValue) return json([key]);
  if (columns === null || Array.isArray(key)) return json(Object.values(key));
  return json(columns.map((column) => key[column]));
}

/** @param {string | string[] | ((row: Row, change?: Change) => string) | undefined} key */
export function keyReader(key) {
  if (typeof key === "function") return (row, change) => keyText(key(row, change));
  if (key === undefined) return (row, change) => keyText(change.key);
  const columns = [key].flat();
  const valueOf = (column, row, change) => {
    const value = row[column] ?? change?.key[column];
    if (value === undefined && !(column in row))
      throw new TypeError(`The key ${quoted(column)} is none of the columns.`);
    return value ?? null;
  };
  return (row, change) => keyText(columns.map((column) => valueOf(column, row, change)));
}

/** Applies a change to `rows` and returns the keys that it touches. */
export function fold(rows, change, keyOf) {
  const { oldValue, newValue } = change;
  const key = keyOf(newValue ?? oldValue ?? change.key, change);
  const before = oldValue ? keyOf(oldValue, change) : key;
  // Another row may have taken its key meanwhile: two that swap theirs are two changes.
  if (newValue === null || before !== key) {
    const held = rows.get(before);
    if (held && isRowOf(held, change)) rows.delete(before);
  }
  if (newValue !== null) rows.set(key, newValue);
  return before === key ? [key] : [before, key];
}

/** Whether a row, of some columns, is the one that a change is about. */
function isRowOf(row, { key, oldValue }) {
  const columns = Object.keys(key).filter((column) => column in row);
  return columns.every((column) => same(row[column], (oldValue ?? key)[column] ?? key[column]));
}

/**
 * Rows as a snapshot has them; a row that is as it was stays the same object. `attempt` runs what
 * is done with one row.
 */
export function refill(rows, snapshot, keyOf, attempt = (run) => run()) {
  const filled = new Map();
  for (const change of snapshot) {
    attempt(() => {
      const key = keyOf(change.newValue, change);
      const before = rows.get(key);
      filled.set(key, before && same(before, change.newValue) ? before : change.newValue);
    });
  }
  return filled;
}

// Optimistic edits. A write is `{edits}`, and each edit lies over the rows until it is confirmed.

/** The rows as they are shown while `writes` are under way. */
export function overlay(rows, writes) {
  if (!writes.length) return rows;
  const shown = new Map(rows);
  for (const edit of writes.flatMap((write) => write.edits)) {
    const below = shown.get(edit.key);
    if (edit.confirmed) continue;
    if (edit.deleted) shown.delete(edit.key);
    else if (edit.row) shown.set(edit.key, edit.row);
    else if (below) {
      // The same object while nothing below has changed.
      if (edit.below !== below) Object.assign(edit, { below, made: { ...below, ...edit.patch } });
      shown.set(edit.key, edit.made);
    }
  }
  return shown;
}

/**
 * Takes note of the state of a row that came from the hub (`row` undefined: gone). It confirms the
 * earliest edit of that row if it is what the edit wanted: somebody else's change of another column
 * does not, and the edit stays visible. `all`: several changes may have come in one (a snapshot).
 */
export function confirm(writes, key, row, { all = false } = {}) {
  for (const edit of writes.flatMap((write) => write.edits)) {
    if (edit.key !== key || edit.confirmed) continue;
    const isDone =
      row === undefined ? !edit.row : !edit.deleted && (edit.row || holds(row, edit.patch));
    if (isDone) edit.confirmed = true;
    if (!isDone || !all) return;
  }
}

const holds = (row, patch) =>
  Object.keys(patch).every((column) => same(row[column], patch[column]));

// Chat.

/** @type {RoomState} */
const EMPTY_ROOM = { messages: [], members: [], joined: false, more: false };

/** A room after a frame of the hub. @returns {RoomState} */
export function foldRoom(room, frame) {
  switch (frame.type) {
    case "joined":
      return { ...room, joined: true, members: [...frame.members].sort() };
    case "status":
      return { ...room, joined: room.joined && frame.joined };
    case "members":
      return { ...room, members: [...frame.members].sort() };
    case "user-joined":
      return { ...room, members: [...new Set([...room.members, frame.userId])].sort() };
    case "user-left":
      return { ...room, members: room.members.filter((userId) => userId !== frame.userId) };
    case "message":
      return { ...room, messages: placed(room.messages, messageOf(frame)) };
    case "message-updated":
      return {
        ...room,
        messages: room.messages.map((message) =>
          message.messageId === frame.messageId
            ? { ...messageOf(frame), lsn: message.lsn }
            : message,
        ),
      };
    case "message-deleted":
      return { ...room, messages: room.messages.filter((m) => m.messageId !== frame.messageId) };
    case "history": {
      const older = frame.messages.map(messageOf);
      if (frame.id === ANEW) return { ...room, messages: older, more: frame.more };
      // It was asked for by somebody who has more or fewer: here it would leave a hole.
      if (!frame.id?.startsWith(olderName(room.messages))) return room;
      const known = new Set(room.messages.map((message) => message.messageId));
      const unknown = older.filter((message) => !known.has(message.messageId));
      return { ...room, messages: [...unknown, ...room.messages], more: frame.more };
    }
  }
  return room;
}

// The id of a request for history that replaces what is held.
const ANEW = "anew";

/** How ids of requests begin for what is older than these messages. */
const olderName = ([oldest]) => nameOf(oldest?.messageId ?? "");

const messageOf = ({ messageId, userId, content, timestamp, lsn }) => ({
  messageId,
  userId,
  content,
  timestamp,
  lsn,
});

/** Messages with one more, by LSN and then as they came. */
function placed(messages, message) {
  const others = messages.filter((each) => each.messageId !== message.messageId);
  let place = others.length;
  while (place > 0 && others[place - 1].lsn > message.lsn) place--;
  return others.toSpliced(place, 0, message);
}

// Feeds and rooms, at the holder.

/** Runs `run` after a while, if it is still wanted then. Returns what calls it off. */
function later(wait_ms, isWanted, run) {
  const timer = setTimeout(() => isWanted() && run(), wait_ms);
  return () => clearTimeout(timer);
}

/** Runs `run` in a task of its own; timers would be slowed down in hidden tabs. */
const soon = (() => {
  const waiting = [];
  let channel;
  return (run) => {
    if (!channel) {
      channel = new MessageChannel();
      channel.port1.onmessage = () => waiting.shift()();
    }
    waiting.push(run);
    channel.port2.postMessage(null);
  };
})();

/** The rows and latest changes of one or several tables, for all tabs that asked for just these. */
class Feed {
  /** @param {string | null} since where the rows stand that the tab has already; it has no copy here */
  constructor(connection, requests, sub, since) {
    this.connection = connection;
    /** @type {Request[]} */
    this.requests = requests;
    this.names = new Set(requests.map(({ table }) => lower(table)));
    this.sub = sub;
    // How far the changes have come, and how far those that are whole.
    this.position = since;
    this.shown = since;
    this.rows = null;
    // The changes of a transaction that may not be whole.
    this.open = [];
    // Tables whose rows are replaced by a snapshot, and what has come of it.
    this.missing = new Set();
    this.collecting = null;
    this.isFilled = since !== null;
    this.isLive = this.wasLive = false;
    this.error = null;
    this.attached = new Set();
    // The whole changes up to number `end`, counted from the first one that this feed has seen.
    this.recent = [];
    this.end = 0;
    this.isDue = false;
  }

  /** @returns {Status} */
  get status() {
    if (this.error !== null) return "closed";
    if (this.connection.status !== "live") return this.connection.status;
    return this.isLive ? "live" : this.wasLive ? "reconnecting" : "connecting";
  }

  /** The position from which it can go on; null: it needs a snapshot of all its tables. */
  get since() {
    return this.missing.size ? null : this.position;
  }

  // What transports tell.

  has(table) {
    return this.names.has(lower(table));
  }

  beginSnapshot(tables) {
    this.miss(tables);
    this.collecting = new Map();
  }

  endSnapshot(position) {
    // The other tables' changes came before it, up to the same position.
    if (this.rows) for (const change of this.open) this.keep(this.rows, change);
    const others = [...(this.rows ?? [])].filter(([, row]) => !this.missing.has(lower(row.table)));
    this.rows = new Map([...others, ...this.collecting]);
    this.open = [];
    this.missing.clear();
    this.collecting = null;
    this.position = this.shown = position;
    this.isFilled = true;
    this.recent = [];
    this.end += 1;
    this.deliver();
  }

  take(change) {
    if (this.collecting) this.keep(this.collecting, change);
    else if (this.position !== null && change.lsn > lsnOf(this.position)) {
      if (this.open.length && this.open[0].txid !== change.txid) this.settle();
      this.position = `${epochOf(this.position)}:${change.lsn}`;
      this.open.push(change);
      if (change.commit) this.settle();
    }
  }

  keep(rows, change) {
    const key = JSON.stringify([change.table, change.key]);
    if (change.newValue === null) rows.delete(key);
    else rows.set(key, { ...change, type: "SNAPSHOT", oldValue: null });
  }

  /** What has come is whole. Some tables alone are not, while others wait for their snapshot. */
  settle() {
    if (this.missing.size) return;
    for (const change of this.open) {
      if (this.rows) this.keep(this.rows, change);
      this.recent.push(change);
    }
    this.end += this.open.length;
    this.open = [];
    this.shown = this.position;
    this.deliverSoon();
  }

  /** The position moves on without a change. */
  at(position) {
    if (this.position === null) return;
    const isPast = lsnOf(position) > lsnOf(this.position);
    this.position = position;
    if (isPast || !this.open.length) this.settle();
  }

  /** A transaction ended here, on a stream that other feeds share. */
  ended(lsn) {
    if (this.position === null || lsn <= lsnOf(this.position)) return;
    this.position = `${epochOf(this.position)}:${lsn}`;
    if (this.open.length) this.settle();
  }

  caughtUp(position) {
    if (this.position !== null) this.position = position;
    this.isLive = this.wasLive = true;
    this.settle();
    this.deliver();
  }

  /** What is held of these tables can't be continued; a snapshot of them follows. */
  reset(tables) {
    this.miss(tables);
    this.isLive = false;
    this.deliver();
  }

  miss(tables) {
    for (const table of tables) if (this.has(table)) this.missing.add(lower(table));
  }

  lost() {
    this.isLive = false;
    // A snapshot that was cut is taken again from its start.
    this.collecting = null;
  }

  refuse(message) {
    this.error = message;
    this.deliver();
  }

  // What tabs get.

  /** What comes in one go is delivered together. */
  deliverSoon() {
    if (this.isDue) return;
    this.isDue = true;
    soon(() => this.deliver());
  }

  deliver() {
    this.isDue = false;
    for (const attached of this.attached) this.bring(attached);
    if (this.recent.length > 2 * RECENT_MAX) this.recent = this.recent.slice(-RECENT_MAX);
  }

  /** Brings one tab to where this feed is: live changes, missed ones and a first fill alike. */
  bring(attached) {
    const { seat, handle } = attached;
    if (!seat.isFed) return;
    if (this.isFilled && attached.end !== this.end) {
      const missed = this.end - attached.end;
      const position = this.shown;
      if (attached.end >= 0 && missed <= this.recent.length) {
        seat.post({ op: "changes", handle, changes: this.recent.slice(-missed), position }, missed);
      } else if (this.rows) {
        seat.post({ op: "fill", handle, rows: [...this.rows.values()], position }, this.rows.size);
      } else {
        this.position = null;
        this.open = [];
        this.isFilled = false;
        this.connection.resubscribe(this);
        return;
      }
      attached.end = this.end;
    }
    if (attached.status !== this.status) {
      attached.status = this.status;
      const { status, shown } = this;
      const error = this.error ?? (status === "closed" ? this.connection.error : null);
      seat.post({ op: "status", handle, status, error, position: shown });
    }
  }
}

/** A chat room that tabs of this browser have joined. */
class Room {
  constructor(connection, name) {
    this.connection = connection;
    this.name = name;
    this.historyWanted = 0;
    this.error = null;
    this.attached = new Set();
    this.begin();
  }

  begin() {
    this.state = EMPTY_ROOM;
    this.position = null;
    this.historyDue = 0;
    // Whether what is held is of another history than the hub's, which is under way.
    this.isBroken = false;
  }

  get status() {
    if (this.error !== null) return "closed";
    if (this.connection.status !== "live") return this.connection.status;
    if (this.connection.transport?.isBlocked) return "closed";
    return this.state.joined ? "live" : this.position ? "reconnecting" : "connecting";
  }

  /** What tabs are told with everything else. */
  get told() {
    const { status, connection } = this;
    const blocked = "Chat needs a WebSocket, and something on the way blocks it.";
    const error = status === "closed" ? (this.error ?? connection.error ?? blocked) : null;
    return { status, error, userId: connection.userId };
  }

  join() {
    const where = this.position ? { since: this.position } : { history: this.historyWanted };
    this.connection.say({ type: "join", room: this.name, id: `join ${this.name}`, ...where });
  }

  /** A tab wants more messages than are there. */
  want(history) {
    const { messages, joined, more } = this.state;
    const missing = history - messages.length;
    this.historyWanted = Math.max(this.historyWanted, history);
    if (!joined || !more || missing <= 0) return;
    this.connection.say({
      type: "history",
      room: this.name,
      limit: missing,
      id: olderName(messages),
      ...beforeOf(messages[0]),
    });
  }

  take(frame) {
    const isFirst = this.position === null;
    if (frame.position) this.position = frame.position;
    else if (
      frame.type.startsWith("message") &&
      this.position &&
      frame.lsn > lsnOf(this.position)
    ) {
      this.position = `${epochOf(this.position)}:${frame.lsn}`;
    }
    if (frame.type === "heartbeat" || frame.type === "caught-up") return;
    if (frame.type === "error" && frame.id === `join ${this.name}`) {
      if (PASSING.has(frame.code)) this.askAgain(frame, () => this.join());
      else this.error = frame.message;
      return this.tellStatus();
    }
    if (frame.type === "reset") {
      this.isBroken = true;
      return this.askAnew();
    }
    if (frame.type === "error" && frame.id === ANEW && PASSING.has(frame.code))
      return this.askAgain(frame, () => this.isBroken && this.askAnew());
    if (frame.type === "unsubscribed") {
      // The hub could not go on with it.
      this.lost();
      this.askAgain(frame, () => this.join());
      return this.tellStatus();
    }
    if (frame.type === "joined") this.error = null;
    if (frame.id === ANEW) this.isBroken = false;
    this.state = foldRoom(this.state, frame);
    if (frame.type === "joined" && isFirst) {
      this.historyDue = frame.history;
      this.state = { ...this.state, more: frame.more ?? true };
    }
    const excess = this.state.messages.length - ROOM_MESSAGES_MAX;
    if (excess > 0 && frame.type !== "history") {
      this.state = { ...this.state, messages: this.state.messages.slice(excess), more: true };
    }
    // History is shown as a whole.
    if (frame.history === true) this.historyDue -= 1;
    if (this.historyDue > 0) return;
    if (frame.history === true || (frame.type === "joined" && isFirst)) this.refresh();
    else this.tell(frame);
  }

  askAnew() {
    this.connection.say({ type: "history", room: this.name, limit: 50, id: ANEW });
  }

  askAgain({ retryAfterMs }, ask) {
    const { connection, name } = this;
    later(retryAfterMs ?? BACKOFF_BASE_MS, () => connection.rooms.get(name) === this, ask);
  }

  lost() {
    // A position promises all messages before it.
    if (this.historyDue > 0 || this.isBroken) this.begin();
    this.state = { ...this.state, joined: false };
  }

  tellStatus() {
    this.tell({ type: "status", joined: this.state.joined });
  }

  refresh() {
    for (const attached of this.attached) attached.isStale = true;
    this.tell();
  }

  tell(frame) {
    for (const attached of this.attached) this.bring(attached, frame);
  }

  bring(attached, frame) {
    const { seat, handle } = attached;
    if (seat.isBehind) attached.isStale = true;
    else if (attached.isStale) {
      attached.isStale = false;
      seat.post(
        { op: "room", handle, state: this.state, ...this.told },
        this.state.messages.length,
      );
    } else {
      seat.post({ op: "frame", handle, frame, ...this.told }, 1);
    }
  }
}

/** The place before which older messages are asked for. */
const beforeOf = (message) =>
  message && { before: message.lsn || undefined, beforeId: message.messageId };

// The connection, at the holder.

class Connection {
  /** @param {string} base where /cdc is, with a slash at its end @param {() => void} changed */
  constructor(base, user, changed = () => {}) {
    this.base = base;
    this.user = user;
    this.changed = changed;
    this.userId = null;
    /** @type {Map<string, Feed>} */
    this.feeds = new Map();
    /** @type {Map<string, Room>} */
    this.rooms = new Map();
    /** @type {Status} */
    this.status = "connecting";
    this.error = null;
    this.transport = null;
    this.timer = null;
    this.tries = 0;
    this.upSince = 0;
    // Before that the hub does not want it back.
    this.openAt = 0;
    // WebSockets that ended before the hub had said a word.
    this.socketsBlocked = 0;
    this.nextKind = "websocket";
  }

  /** Somebody wants it now: tries at once, or looks whether the connection still lives. */
  wake() {
    if (this.transport) this.transport.probe();
    else this.openIn(this.openAt - performance.now());
  }

  openIn(wait_ms) {
    clearTimeout(this.timer);
    if (wait_ms > 0) this.timer = setTimeout(() => this.open(), wait_ms);
    else this.open();
  }

  open() {
    clearTimeout(this.timer);
    // What this hub refused the next one may serve: a table that was missing, say.
    for (const feed of this.feeds.values()) feed.error = null;
    const kind = this.nextKind === "sse" ? EventTransport : SocketTransport;
    this.transport = new kind(this);
    if (this.status === "closed") this.become("connecting");
  }

  up() {
    if (this.status !== "live") this.upSince = performance.now();
    this.become("live");
  }

  /**
   * The transport has ended. `heard`: the hub had spoken before; `lasting`: why it is of no use to
   * try again.
   */
  down(transport, { heard, retryAfterMs = 0, tooMany = false, lasting = null }) {
    if (transport !== this.transport) return;
    if (lasting !== null) return this.letGo("closed", lasting);
    this.letGo(this.status === "connecting" ? "connecting" : "reconnecting");
    if (transport.kind === "websocket") this.socketsBlocked = heard ? 0 : this.socketsBlocked + 1;
    const isBlocked = transport.kind === "websocket" && this.socketsBlocked >= 2;
    this.nextKind = isBlocked ? "sse" : "websocket";
    if (tooMany) this.tries = Math.max(this.tries, 3);
    const wait_ms = isBlocked ? 0 : backoff(this.tries++, Math.random());
    this.openAt = performance.now() + retryAfterMs;
    this.timer = setTimeout(() => this.open(), retryAfterMs + wait_ms);
  }

  /** For ever: what still comes finds nobody, and nobody is told. */
  end() {
    for (const each of [...this.feeds.values(), ...this.rooms.values()]) {
      each.lost();
      each.attached.clear();
    }
    this.feeds.clear();
    this.rooms.clear();
    this.changed = () => {};
    this.letGo("closed");
    this.open = () => {};
  }

  /** Ends what is connected. The positions stay. */
  letGo(status, error = null) {
    clearTimeout(this.timer);
    this.transport?.close();
    this.transport = null;
    for (const each of [...this.feeds.values(), ...this.rooms.values()]) each.lost();
    this.become(status, error);
  }

  become(status, error = null) {
    if (this.status === "live" && status !== "live") {
      if (performance.now() - this.upSince >= STEADY_MS) this.tries = 0;
    }
    this.status = status;
    this.error = error;
    for (const feed of this.feeds.values()) feed.deliver();
    for (const room of this.rooms.values()) room.tellStatus();
    this.changed();
  }

  newSocket() {
    const url = new URL("ws", this.base);
    url.protocol = url.protocol.replace("http", "ws");
    if (this.user) url.searchParams.set("user", this.user);
    return new WebSocket(url, [SUBPROTOCOL]);
  }

  /** From event streams to a WebSocket, which gets through after all. */
  moveUp() {
    this.socketsBlocked = 0;
    this.nextKind = "websocket";
    this.letGo("reconnecting");
    this.open();
  }

  say(frame) {
    this.transport?.say(frame);
  }

  /** The feed of requests, a new one if need be. `since`: the tab has its own rows from then. */
  feed(requests, since) {
    const text = JSON.stringify(requests);
    const shared = nameOf(text);
    const known = this.feeds.get(shared);
    if (known && known.error === null) return known;
    const sub = since === null ? shared : nameOf(`${text} ${since} ${Math.random()}`);
    const feed = new Feed(this, requests, sub, since);
    this.feeds.set(sub, feed);
    this.transport?.connect(feed);
    return feed;
  }

  resubscribe(feed) {
    feed.lost();
    this.transport?.drop(feed);
    this.transport?.connect(feed);
  }

  drop(feed) {
    clearTimeout(feed.timer);
    // A refused one may have been replaced by one that asks again.
    if (this.feeds.get(feed.sub) !== feed) return;
    this.feeds.delete(feed.sub);
    this.transport?.drop(feed);
  }

  room(name) {
    let room = this.rooms.get(name);
    if (!room) {
      room = new Room(this, name);
      this.rooms.set(name, room);
      // Its caller says how much history is wanted, in this same task.
      queueMicrotask(() => room.join());
    }
    return room;
  }

  leave(room) {
    // One that was left a while ago may have been replaced.
    if (this.rooms.get(room.name) !== room) return;
    this.rooms.delete(room.name);
    this.say({ type: "leave", room: room.name });
  }
}

/** `/cdc/ws`: every feed is a subscription, every room is joined. */
class SocketTransport {
  kind = "websocket";

  constructor(connection) {
    this.connection = connection;
    this.asked = 0;
    this.awaited = new Map(); // sub → id of the request that its feed waits for
    this.retries = new Map(); // sub → calls off the next one
    this.isHeard = false;
    this.retryAfterMs = 0;
    this.socket = connection.newSocket();
    this.socket.onmessage = (event) => this.take(JSON.parse(event.data));
    this.socket.onclose = ({ code }) => this.ended(code);
    this.watch(FIRST_HEARTBEAT_S);
  }

  /** Notices a connection that has died without a word, as they do behind a lost network. */
  watch(heartbeat_s) {
    clearInterval(this.timer);
    this.lastHeard = performance.now();
    this.timer = setInterval(() => {
      const silence_ms = performance.now() - this.lastHeard;
      if (silence_ms > HEARTBEATS_MISSED * heartbeat_s * 1000) this.ended(1006);
      else if (silence_ms > heartbeat_s * 1000) this.say({ type: "ping" });
    }, heartbeat_s * 500);
  }

  probe() {
    if (!this.isHeard || this.probing) return;
    const asked = performance.now();
    this.say({ type: "ping" });
    this.probing = setTimeout(() => {
      this.probing = null;
      if (this.lastHeard < asked) this.ended(1006);
    }, ANSWER_MS);
  }

  ended(code) {
    const lasting =
      code === 4401 || code === 4403 ? "You may not see this, or no longer. Sign in again." : null;
    const { retryAfterMs } = this;
    // Any other code came from the hub; the browser says 1006 where no connection was had, or it broke.
    const heard = this.isHeard || code !== 1006;
    this.connection.down(this, { heard, retryAfterMs, tooMany: code === 1013, lasting });
  }

  close() {
    clearInterval(this.timer);
    clearTimeout(this.probing);
    this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
  }

  say(frame) {
    if (this.isHeard && this.socket.readyState === WebSocket.OPEN) {
      this.socket.send(JSON.stringify(frame));
    }
  }

  connect(feed) {
    if (!this.isHeard) return;
    this.callOffRetry(feed);
    const query = streamQuery(feed.requests);
    const id = ++this.asked;
    const request = {
      type: "subscribe",
      id,
      sub: feed.sub,
      table: query.getAll("table"),
      room: query.get("room") ?? undefined,
      filter: query.getAll("filter"),
      columns: query.getAll("columns"),
      snapshot: true,
      since: feed.since ?? undefined,
    };
    // The hub would end the connection of all tabs.
    if (new TextEncoder().encode(JSON.stringify(request)).length > REQUEST_BYTES_MAX)
      return feed.refuse("This asks for too much at once: its filters are too long.");
    this.awaited.set(feed.sub, id);
    this.say(request);
  }

  drop(feed) {
    this.callOffRetry(feed);
    this.say({ type: "unsubscribe", sub: feed.sub });
  }

  callOffRetry(feed) {
    this.retries.get(feed.sub)?.();
    this.retries.delete(feed.sub);
  }

  take(frame) {
    this.lastHeard = performance.now();
    if (frame.type === "connected") {
      this.isHeard = true;
      this.watch(frame.heartbeat);
      this.connection.userId = frame.userId;
      this.connection.up();
      for (const feed of this.connection.feeds.values())
        if (feed.error === null) this.connect(feed);
      for (const room of this.connection.rooms.values()) room.join();
      return;
    }
    if (frame.retryAfterMs && !frame.sub) this.retryAfterMs = frame.retryAfterMs;
    if (frame.sub) this.takeOfFeed(frame);
    else if (frame.room) this.connection.rooms.get(frame.room)?.take(frame);
    else if (frame.type === "ack")
      for (const room of this.connection.rooms.values()) room.take(frame);
  }

  takeOfFeed(frame) {
    const feed = this.connection.feeds.get(frame.sub);
    if (!feed) return;
    // What still comes of an earlier subscription with the same name is over.
    if (this.awaited.has(frame.sub) && frame.id !== this.awaited.get(frame.sub)) return;
    switch (frame.type) {
      case "subscribed":
        this.awaited.delete(frame.sub);
        return;
      case "snapshot":
        return feed.beginSnapshot(frame.tables);
      case "change":
        return feed.take(frame.change);
      case "snapshot-end":
        return feed.endSnapshot(frame.position);
      case "heartbeat":
        return feed.at(frame.position);
      case "caught-up":
        return feed.caughtUp(frame.position);
      case "reset":
        return feed.reset(frame.tables);
      case "error":
        // Of a subscription that was there already: that it has ended comes next.
        if (!this.awaited.delete(frame.sub)) return;
        if (frame.code === "duplicate_sub") return this.connection.resubscribe(feed);
        if (!PASSING.has(frame.code)) return feed.refuse(frame.message);
        return this.connectLater(feed, frame.retryAfterMs);
      case "unsubscribed":
        // The answer to our own request has no reason.
        if (frame.reason) this.connectLater(feed, frame.retryAfterMs);
    }
  }

  connectLater(feed, retryAfterMs) {
    feed.lost();
    feed.deliver();
    this.callOffRetry(feed);
    const { connection } = this;
    const callOff = later(
      (retryAfterMs ?? 0) + backoff(0, Math.random()),
      () => connection.feeds.get(feed.sub) === feed && connection.transport === this,
      () => this.connect(feed),
    );
    this.retries.set(feed.sub, callOff);
  }
}

/**
 * Feeds that one stream can carry together: of each table only one, all of the same room.
 * @template {{requests: Request[]}} F
 * @param {Iterable<F>} feeds
 * @returns {F[][]}
 */
export function unions(feeds) {
  const groups = [];
  for (const feed of feeds) {
    const fits = (group) => {
      const together = [...group, feed].flatMap(({ requests }) => requests);
      return (
        group[0].requests[0].room === feed.requests[0].room &&
        new Set(together.map(({ table }) => lower(table))).size === together.length &&
        together.flatMap(({ filters }) => filters).length <= FILTERS_MAX
      );
    };
    const group = groups.find(fits);
    if (group) group.push(feed);
    else groups.push([feed]);
  }
  return groups;
}

/** The parameters of a stream for such requests. @param {Request[]} requests */
export function streamQuery(requests) {
  const query = new URLSearchParams();
  if (requests[0].room !== null) query.set("room", requests[0].room);
  for (const { table, filters, columns } of requests) {
    query.append("table", table);
    for (const filter of filters) {
      // One name before the equals sign is a column of this table.
      const isPlain = /^(?:"(?:[^"\\]|\\.)*"|[^."=]+)=/.test(filter);
      query.append("filter", isPlain ? `${quoted(table)}.${filter}` : filter);
    }
    for (const column of columns ?? [])
      query.append("columns", `${quoted(table)}.${quoted(column)}`);
  }
  return query;
}

/** The position from which a stream serves all of these feeds; null: none does, take a snapshot. */
export function commonPosition(positions) {
  const [first] = positions;
  if (positions.some((each) => each === null || epochOf(each) !== epochOf(first))) return null;
  return positions.reduce((least, each) => (lsnOf(each) < lsnOf(least) ? each : least));
}

/**
 * `/cdc/stream`, where WebSockets don't get through. One stream carries the union of the tables.
 * A feed that has no rows yet gets a stream with a snapshot first; when that has caught up, both
 * are replaced by one from the earliest of the positions, and feeds drop what they have.
 */
class EventTransport {
  kind = "sse";

  constructor(connection) {
    this.connection = connection;
    /** @type {Set<EventStream>} */
    this.streams = new Set();
    this.isClosed = false;
    this.socket = null;
    this.socketTries = 0;
    this.callOff = () => {};
    // Whether a socket failed while the hub was there.
    this.isBlocked = false;
    this.arrangeSoon();
  }

  connect() {
    this.arrangeSoon();
  }

  drop(feed) {
    for (const stream of this.streams) if (stream.feeds.includes(feed)) this.end(stream);
    this.arrangeSoon();
  }

  end(stream) {
    stream.close();
    this.streams.delete(stream);
  }

  /** A stream only listens: rooms tell that they need a WebSocket. */
  say() {}

  arrangeSoon() {
    if (this.isDue || this.isClosed) return;
    this.isDue = true;
    soon(() => {
      this.isDue = false;
      if (!this.isClosed) this.arrange();
    });
  }

  /** Opens the streams that are wanted and closes those that are not. */
  arrange() {
    const feeds = [...this.connection.feeds.values()].filter((feed) => feed.error === null);
    const filled = feeds.filter((feed) => feed.since !== null);
    const unfilled = feeds.filter((feed) => feed.since === null);
    const wanted = [...unions(filled), ...unions(unfilled)];
    const isFor = (group) => (stream) =>
      stream.feeds.length === group.length && group.every((feed) => stream.feeds.includes(feed));
    const kept = new Set();
    const missing = wanted.filter((group) => {
      const stream = [...this.streams].find(isFor(group));
      if (stream) kept.add(stream);
      return !stream;
    });
    for (const stream of this.streams) if (!kept.has(stream)) stream.close();
    this.streams = kept;
    for (const group of missing) kept.add(new EventStream(this, group));
    if (!wanted.length) this.ask();
    this.trySocket();
  }

  /** Without a stream nothing tells whether the hub is there. */
  async ask() {
    try {
      const answer = await fetch(new URL("status", this.connection.base));
      const lasting = await refusalOf(answer);
      if (lasting !== null) return this.connection.down(this, { heard: true, lasting });
      if (!answer.ok) throw new Error("It was a proxy that answered.");
    } catch {
      this.connection.down(this, { heard: false });
      return;
    }
    if (this.isClosed) return;
    this.connection.up();
    this.trySocket();
  }

  /** Sockets may have failed because no hub was there at the time. */
  trySocket() {
    if (this.socket || this.connection.status !== "live") return;
    this.socket = this.connection.newSocket();
    this.socket.onmessage = () => this.connection.moveUp();
    this.socket.onclose = () => {
      this.isBlocked = true;
      // What blocks them may end: a laptop is carried into another network.
      const wait_ms = BACKOFF_BASE_MS + backoff(this.socketTries++, Math.random());
      this.callOff = later(
        wait_ms,
        () => !this.isClosed,
        () => this.trySocketAnew(),
      );
      for (const room of this.connection.rooms.values()) room.tellStatus();
    };
  }

  trySocketAnew() {
    if (this.socket?.readyState === WebSocket.CONNECTING) return;
    this.callOff();
    this.socket = null;
    this.trySocket();
  }

  /** Tells the hub's lasting refusals, which an EventSource can't see, from a lost connection. */
  async explain(stream) {
    const answers = stream.feeds.map(async (feed) => {
      const url = new URL("changes", this.connection.base);
      url.search = String(streamQuery(feed.requests));
      url.searchParams.set("since", "now");
      const refusal = await refusalOf(await fetch(url));
      if (refusal !== null) feed.refuse(refusal);
      return refusal !== null;
    });
    // A request or a body that can't be had is a lost connection too.
    const refused = await Promise.all(answers).catch(() => []);
    this.streams.delete(stream);
    if (refused.includes(true)) this.arrangeSoon();
    else this.connection.down(this, { heard: true });
  }

  probe() {
    // The browser would wait for its own next try.
    for (const stream of this.streams) {
      const isFresh = !stream.isOpen && performance.now() - stream.begun < ANSWER_MS;
      if (stream.source.readyState === EventSource.CONNECTING && !isFresh) this.end(stream);
    }
    this.trySocketAnew();
    this.arrangeSoon();
  }

  close() {
    this.isClosed = true;
    this.callOff();
    if (this.socket) this.socket.onmessage = this.socket.onclose = null;
    this.socket?.close();
    for (const stream of this.streams) stream.close();
  }
}

/** The hub's lasting refusal in an answer. A proxy has such answers too, but not with a code in it. */
async function refusalOf(answer) {
  if (answer.status < 400 || answer.status >= 500 || answer.status === 429) return null;
  const { code, detail, title } = await answer.json();
  return code ? (detail ?? title) : null;
}

class EventStream {
  /** @param {Feed[]} feeds */
  constructor(transport, feeds) {
    this.transport = transport;
    this.feeds = feeds;
    this.snapshot = null;
    this.isLive = false;
    this.begun = performance.now();
    const url = new URL("stream", transport.connection.base);
    url.search = String(streamQuery(feeds.flatMap((feed) => feed.requests)));
    url.searchParams.set("snapshot", "1");
    // A page hears of no comments, and so not that there are none any more.
    url.searchParams.set("heartbeat", "1");
    const since = commonPosition(feeds.map((feed) => feed.since));
    if (since !== null) url.searchParams.set("since", since);
    this.source = new EventSource(url);
    const on = (name, run) =>
      this.source.addEventListener(name, (event) => {
        this.lastHeard = performance.now();
        if (event.data !== undefined) run(JSON.parse(event.data));
      });
    on("message", (change) => this.take(change));
    on("snapshot", ({ position, tables }) => {
      this.snapshot = position;
      for (const feed of this.of(tables)) feed.beginSnapshot(tables);
    });
    on("caught-up", ({ position }) => this.caughtUp(position));
    on("transaction-end", ({ position }) => this.ended(lsnOf(position)));
    on("heartbeat", ({ position, heartbeat }) => {
      if (position) this.ended(lsnOf(position));
      this.watch(heartbeat);
    });
    on("reset", ({ tables }) => this.of(tables).forEach((feed) => feed.reset(tables)));
    on("refused", ({ retryAfterMs }) => {
      transport.connection.down(transport, { heard: true, retryAfterMs });
    });
    this.source.onopen = () => (this.isOpen = true);
    this.source.onerror = () => this.broken();
    this.watch(FIRST_HEARTBEAT_S);
  }

  /** Notices a connection that has died without a word. */
  watch(heartbeat_s) {
    if (heartbeat_s === this.heartbeat_s) return;
    this.heartbeat_s = heartbeat_s;
    this.lastHeard = performance.now();
    clearInterval(this.timer);
    this.timer = setInterval(() => {
      const { connection } = this.transport;
      if (performance.now() - this.lastHeard > HEARTBEATS_MISSED * heartbeat_s * 1000)
        connection.down(this.transport, { heard: true });
    }, heartbeat_s * 500);
  }

  of(tables) {
    return this.feeds.filter((feed) => tables.some((table) => feed.has(table)));
  }

  take(change) {
    if (change.type !== "SNAPSHOT") this.endSnapshot();
    for (const feed of this.of([change.table])) feed.take(change);
    // The others may have a part of it that is whole now.
    if (change.commit && change.type !== "SNAPSHOT") this.ended(change.lsn);
  }

  ended(lsn) {
    for (const feed of this.feeds) feed.ended(lsn);
  }

  endSnapshot() {
    for (const feed of this.feeds) if (feed.collecting) feed.endSnapshot(this.snapshot);
  }

  caughtUp(position) {
    this.endSnapshot();
    this.isLive = true;
    this.transport.connection.up();
    for (const feed of this.feeds) feed.caughtUp(position);
    this.transport.arrangeSoon();
  }

  broken() {
    this.isLive = false;
    for (const feed of this.feeds) feed.lost();
    const { connection } = this.transport;
    if (this.isOpen && this.source.readyState === EventSource.CONNECTING) {
      // The browser tries again by itself, with the last id that it has seen.
      const isLost = ![...this.transport.streams].some((stream) => stream.isLive);
      if (isLost) connection.become("reconnecting");
      else for (const feed of this.feeds) feed.deliver();
      return;
    }
    this.close();
    this.transport.explain(this);
  }

  close() {
    clearInterval(this.timer);
    this.source.onerror = null;
    this.source.close();
  }
}

// The holder and its seats.

class Holder {
  /** @param {string | null} [lock] one that ends with this holder, where tabs can't tell otherwise */
  constructor(base, lock = null) {
    this.base = base;
    this.lock = lock;
    this.seats = new Set();
    this.main = new Connection(base, null, () =>
      this.seats.forEach((seat) => seat.tellConnection()),
    );
    this.others = new Map(); // user → connection, where tabs chat under several names
    this.timer = null;
  }

  /** A tab's end of the line: a MessagePort or a BroadcastChannel. */
  accept(port, tab = null) {
    // A tab that calls again has not heard the answer.
    for (const seat of this.seats) if (tab !== null && seat.tab === tab) seat.leave();
    this.seats.add(new Seat(this, port, tab));
    this.settle();
  }

  /** Others are the holder now. */
  end() {
    clearTimeout(this.timer);
    for (const connection of this.connections) connection.end();
    for (const seat of this.seats) seat.port.close();
    this.seats.clear();
  }

  get connections() {
    return [this.main, ...this.others.values()];
  }

  connectionOf(user) {
    if (user === null || this.main.user === user) return this.main;
    if (this.main.user === null) {
      // Nobody has said yet who they are: what is connected comes back under this name.
      const { main } = this;
      main.user = user;
      main.userId = null;
      if (main.transport) {
        main.letGo("connecting");
        main.open();
      }
      return main;
    }
    if (!this.others.has(user)) {
      this.others.set(user, new Connection(this.base, user));
      this.others.get(user).open();
    }
    return this.others.get(user);
  }

  /** Lets go of what nobody uses. */
  settle() {
    for (const [user, connection] of this.others) {
      if (!connection.rooms.size) {
        connection.letGo("closed");
        this.others.delete(user);
      }
    }
    clearTimeout(this.timer);
    const isWatched = [...this.seats].some((seat) => !seat.isPaused);
    if (!isWatched) this.timer = setTimeout(() => this.rest(), ALL_HIDDEN_CLOSE_MS);
  }

  rest() {
    // Who is in a room is present there, also while they don't look.
    for (const connection of this.connections)
      if (!connection.rooms.size) connection.letGo("connecting");
  }
}

class Seat {
  constructor(holder, port, tab) {
    this.holder = holder;
    this.port = port;
    this.tab = tab;
    this.attached = new Map(); // handle → {feed or room, …}
    this.isPaused = false;
    this.inFlight = 0;
    port.onmessage = ({ data }) => this.take(data);
    port.postMessage({ op: "welcome", lock: holder.lock });
  }

  get isBehind() {
    return this.inFlight > IN_FLIGHT_MAX;
  }

  /** Whether rows and changes are sent at all. */
  get isFed() {
    return !this.isPaused && !this.isBehind;
  }

  post(message, weight = 0) {
    this.inFlight += weight;
    this.port.postMessage({ ...message, weight });
  }

  tellConnection() {
    const { status, error, transport } = this.holder.main;
    this.post({ op: "connection", status, error, transport: transport?.kind ?? null });
  }

  take(message) {
    const { handle } = message;
    switch (message.op) {
      case "hello":
        // The last word of a tab's greeting: by now it is known who is there, and for what.
        this.holder.main.wake();
        this.tellConnection();
        // Granted when the tab that has it is gone, however it went.
        if (message.lock) whenFree(message.lock, () => this.leave());
        return;
      case "attach": {
        const feed = this.holder.main.feed(message.requests, message.since);
        // The tab's own rows stand where a feed begins that was made for it.
        const isOwn = message.since !== null && feed.shown === message.since && feed.end === 0;
        const attached = { seat: this, handle, feed, end: isOwn ? 0 : -1, status: null };
        this.attached.set(handle, attached);
        feed.attached.add(attached);
        return feed.bring(attached);
      }
      case "join": {
        const connection = this.holder.connectionOf(message.user);
        const room = connection.room(message.room);
        const attached = { seat: this, handle, room, isStale: true };
        this.attached.set(handle, attached);
        room.attached.add(attached);
        room.want(message.history);
        return room.bring(attached);
      }
      case "say":
        return this.attached.get(handle)?.room.connection.say(message.frame);
      case "detach": {
        const room = this.detach(handle);
        return room && this.leaveRoom(room);
      }
      case "done":
        this.inFlight -= message.weight;
        return this.bring();
      case "pause":
        this.isPaused = true;
        return this.holder.settle();
      case "wake":
        this.isPaused = false;
        this.holder.settle();
        for (const connection of this.holder.connections) connection.wake();
        return this.bring();
      case "probe":
        for (const connection of this.holder.connections) connection.wake();
        return this.holder.settle();
      case "ping":
        return this.port.postMessage({ op: "pong" });
      case "bye":
        return this.leave();
    }
  }

  bring() {
    for (const attached of this.attached.values()) {
      if (attached.feed) attached.feed.bring(attached);
      else if (attached.isStale) attached.room.bring(attached);
    }
  }

  detach(handle) {
    const attached = this.attached.get(handle);
    if (!attached) return null;
    this.attached.delete(handle);
    const { feed, room } = attached;
    (feed ?? room).attached.delete(attached);
    if (feed && !feed.attached.size) feed.connection.drop(feed);
    return room;
  }

  leaveRoom(room) {
    if (room.attached.size) return;
    room.connection.leave(room);
    this.holder.settle();
  }

  /** The tab is gone, perhaps to come back: a reload of a page is no departure. */
  leave() {
    if (!this.holder.seats.delete(this)) return;
    for (const handle of [...this.attached.keys()]) {
      const room = this.detach(handle);
      if (room) later(RELOAD_MS, () => !room.attached.size, () => this.leaveRoom(room));
    }
    this.port.onmessage = null;
    this.port.close();
    this.holder.settle();
  }
}

// Sharing: a tab's way to its holder.

const links = new Map(); // base → Link

/** The link of this page to the holder for a base; null on a server. */
function linkTo(url) {
  if (typeof document === "undefined") return null;
  // Beside this file, so that it is found under any prefix.
  const base = new URL(
    url ? `${url.replace(/\/*$/, "")}/` : ".",
    url ? document.baseURI : import.meta.url,
  );
  if (!links.has(base.href)) links.set(base.href, new Link(base.href));
  return links.get(base.href);
}

class Link {
  constructor(base) {
    this.base = base;
    this.port = null;
    this.attached = new Map(); // handle → {hello, heard}
    this.handles = 0;
    /** @type {Status} */
    this.status = "connecting";
    this.error = null;
    this.transport = null;
    this.watchers = new Watchers();
    this.tab = newId();
    // Ends what this tab has to do with other tabs, where they elect a holder.
    this.stop = null;
    this.lookedAt = -Infinity;
    this.hidden = null;
    // Ends with this tab, which tells the holder.
    this.ready = lockForLife(`${WORKER_NAME} tab ${this.tab}`);
    this.share();
    document.addEventListener("visibilitychange", () => this.look());
    for (const name of ["online", "offline"])
      addEventListener(name, () => this.post({ op: "probe" }));
    // Somebody is there: "connection lost" is not left standing until the next try.
    for (const name of ["focus", "pointerdown", "keydown"])
      addEventListener(name, () => this.hasten(), { capture: true, passive: true });
    addEventListener("pagehide", () => {
      this.post({ op: "bye" });
      this.stop?.();
    });
    addEventListener("pageshow", (event) => event.persisted && this.share());
    this.look();
  }

  share() {
    this.stop?.();
    if (typeof SharedWorker === "undefined") return this.elect();
    try {
      const url = new URL("client.js", this.base);
      const worker = new SharedWorker(url, { type: "module", name: WORKER_NAME });
      // Also where workers can't be modules, or a policy of the page forbids them.
      worker.onerror = () => this.port === worker.port && !this.isWelcome && this.elect();
      this.use(worker.port);
    } catch {
      // Of another origin than the page.
      this.elect();
    }
  }

  /**
   * One of the tabs becomes the holder; when it goes, another one does. `steal`: also where there is
   * one, which does not answer.
   */
  elect(steal = false) {
    this.stop?.();
    this.stop = null;
    if (!navigator.locks || typeof BroadcastChannel === "undefined") return this.holdAlone();
    const name = `${WORKER_NAME} ${this.base}`;
    const hall = new BroadcastChannel(name);
    // A tab and its holder have a channel of their own: the hall hears everything. With the next
    // holder it is another one, which an earlier holder does not hear.
    const call = () => {
      const channel = `${name} ${newId()}`;
      this.use(new BroadcastChannel(channel));
      hall.postMessage({ channel, tab: this.tab });
    };
    hall.onmessage = ({ data }) => data.isOpen && call();
    call();
    const over = new AbortController();
    const watch = this.watchHolder(call);
    let holder = null;
    let release = () => {};
    const lead = () => {
      if (over.signal.aborted) return null;
      clearInterval(watch);
      holder = new Holder(this.base);
      hall.onmessage = ({ data }) =>
        data.tab && holder.accept(new BroadcastChannel(data.channel), data.tab);
      hall.postMessage({ isOpen: true });
      this.hold(holder);
      return new Promise((resolve) => (release = resolve));
    };
    const stop = () => {
      over.abort();
      clearInterval(watch);
      hall.close();
      holder?.end();
      release();
    };
    this.stop = stop;
    const how = steal ? { steal } : { signal: over.signal };
    navigator.locks.request(name, how, lead).catch(() => {
      if (over.signal.aborted) return;
      // It was taken from this tab, which had stood still.
      if (holder) return this.elect();
      // Refused, where the browser keeps no data for this site.
      stop();
      this.holdAlone();
    });
  }

  /** A tab may stand still without an end, as on phones: then another one has to be the holder. */
  watchHolder(call) {
    let asked = performance.now();
    this.isAnswered = true;
    return setInterval(() => {
      const now = performance.now();
      // Whoever has stood still themselves have answers that they have not heard yet.
      const isLate = now - asked > 2 * ANSWER_MS;
      asked = now;
      if (document.visibilityState === "hidden") this.isAnswered = true;
      else if (this.isAnswered || isLate) {
        this.isAnswered = false;
        if (this.isWelcome) this.post({ op: "ping" });
        else call();
      } else {
        this.lose();
        this.elect(true);
      }
    }, ANSWER_MS * (0.75 + Math.random() / 2));
  }

  /** Nothing comes any more, and nobody says so. */
  lose() {
    if (this.status !== "live") return;
    const news = { status: "reconnecting", error: null };
    this.take({ op: "connection", transport: null, ...news });
    const frame = { type: "status", joined: false };
    for (const { heard } of this.attached.values()) heard({ op: "status", frame, ...news });
  }

  holdAlone() {
    const holder = new Holder(this.base);
    this.stop = () => holder.end();
    this.hold(holder);
  }

  hold(holder) {
    const { port1, port2 } = new MessageChannel();
    this.use(port2);
    holder.accept(port1);
  }

  use(port) {
    this.port?.close();
    this.port = port;
    this.isWelcome = false;
    port.onmessage = ({ data }) => this.take(data);
  }

  post(message) {
    if (this.isWelcome) this.port.postMessage(message);
  }

  /** The hub may well be back: somebody is there, or it has answered a request of the page. */
  hasten() {
    const now = performance.now();
    if (this.status === "live" || this.status === "closed" || now - this.lookedAt < LOOK_MS) return;
    this.lookedAt = now;
    this.post({ op: "probe" });
  }

  async take(message) {
    this.isAnswered = true;
    if (message.op === "welcome") {
      const { port } = this;
      const lock = await this.ready;
      if (port !== this.port) return;
      if (message.lock) {
        // Granted when the worker has died: its port says nothing.
        whenFree(message.lock, () => port === this.port && this.share());
      }
      // A holder that is new, perhaps after another one that is gone: everything is said again.
      this.isWelcome = true;
      for (const [handle, { hello }] of this.attached) this.post({ ...hello(), handle });
      this.post({ op: "hello", lock });
      if (this.isPaused) this.post({ op: "pause" });
      return;
    }
    if (message.op === "connection") {
      const { status, error, transport } = message;
      const isNew = status !== this.status || error !== this.error;
      Object.assign(this, { status, error, transport });
      if (isNew) this.watchers.tell(status, error);
      return;
    }
    try {
      this.attached.get(message.handle)?.heard(message);
    } finally {
      if (message.weight) this.post({ op: "done", weight: message.weight });
    }
  }

  /** `hello()` is what a holder is told first, `heard` gets what it answers. */
  attach(hello, heard) {
    const handle = ++this.handles;
    this.attached.set(handle, { hello, heard });
    if (this.isWelcome) this.post({ ...hello(), handle });
    return {
      say: (frame) => this.post({ op: "say", handle, frame }),
      hasten: () => this.hasten(),
      detach: () => {
        this.attached.delete(handle);
        this.post({ op: "detach", handle });
      },
    };
  }

  look() {
    clearTimeout(this.hidden);
    const isHidden = document.visibilityState === "hidden";
    if (isHidden) this.hidden = setTimeout(() => this.pause(), HIDDEN_PAUSE_MS);
    else {
      this.isPaused = false;
      this.post({ op: "wake" });
    }
  }

  pause() {
    this.isPaused = true;
    this.post({ op: "pause" });
  }
}

/** Calls `run` when whoever has the lock is gone. */
function whenFree(lock, run) {
  // Refused, where the browser keeps no data for this site: then a tab's end is not noticed.
  navigator.locks.request(lock, run).catch(() => {});
}

/** Takes a lock and keeps it. Resolves to its name, or to null where there are no locks. */
function lockForLife(name) {
  if (!navigator.locks) return Promise.resolve(null);
  return new Promise((taken) => {
    const keep = () => {
      taken(name);
      return new Promise(() => {});
    };
    // Refused, where the browser keeps no data for this site.
    navigator.locks.request(name, keep).catch(() => taken(null));
  });
}

/** Functions that are to be told what is new. */
class Watchers extends Set {
  turn = 0;

  /** Calls everyone, also after one of them has thrown; that is reported as an uncaught error. */
  tell(...words) {
    const turn = ++this.turn;
    for (const run of [...this]) {
      // One of them may have made something newer, which all have been told by now.
      if (turn !== this.turn) return;
      if (!this.has(run)) continue;
      try {
        run(...words);
      } catch (error) {
        reportError(error);
      }
    }
  }
}

// What a page calls.

/** The rows of one table as a tab shows them, with what optimistic writes lay over them. */
class Table {
  /**
   * @param {string | string[] | ((row: Row, change?: Change) => string)} [key]
   * @param {Row[]} [initialData]
   */
  constructor(key, initialData = []) {
    this.keyOf = keyReader(key);
    // The hub's own are known when a row of it is.
    this.keyColumns = key === undefined || typeof key === "function" ? null : [key].flat();
    this.isKeyedByHub = key === undefined;
    // Without a key option nobody knows the keys of rows that did not come with a change.
    const keyOfInitial = (row, index) => (key === undefined ? `initial ${index}` : this.keyOf(row));
    this.rows = new Map(initialData.map((row, index) => [keyOfInitial(row, index), row]));
    this.writes = [];
    this.order = new Set(this.rows.keys());
    // All subscribers have the same array.
    this.data = Object.freeze([...this.rows.values()]);
  }

  /** @param {Key} key of an optimistic edit */
  keyTextOf(key) {
    return keyText(key, this.keyColumns);
  }

  /** Makes `data` what is to be seen, and tells whether that is anything new. */
  look({ always = false } = {}) {
    const shown = overlay(this.rows, this.writes);
    const { order, rows, data } = this;
    // A row that an edit hides keeps its place, in case the edit is taken back.
    for (const each of order) if (!shown.has(each) && !rows.has(each)) order.delete(each);
    for (const each of shown.keys()) order.add(each);
    const next = [...order].filter((each) => shown.has(each)).map((each) => shown.get(each));
    if (!always && next.length === data.length && next.every((row, i) => row === data[i])) {
      return false;
    }
    this.data = Object.freeze(next);
    return true;
  }

  fill(snapshot, attempt) {
    if (snapshot.length) this.learn(snapshot[0]);
    this.rows = refill(this.rows, snapshot, this.keyOf, attempt);
    this.confirmAll(this.writes.flatMap((write) => write.edits));
  }

  learn({ key }) {
    if (this.isKeyedByHub) this.keyColumns = Object.keys(key);
  }

  take(change) {
    this.learn(change);
    for (const each of fold(this.rows, change, this.keyOf)) {
      confirm(this.writes, each, this.rows.get(each));
    }
    this.settle();
  }

  confirmAll(edits) {
    const keys = new Set(edits.map((edit) => edit.key));
    for (const each of keys) confirm(this.writes, each, this.rows.get(each), { all: true });
    this.settle();
  }

  /** Forgets the writes whose edits are all confirmed. */
  settle() {
    this.writes = this.writes.filter((write) => write.edits.some((edit) => !edit.confirmed));
  }
}

/** @returns {Request} */
const requestOf = (table, { where, columns, room: inRoom }) => ({
  table,
  room: inRoom ?? null,
  filters: filtersOf(where),
  columns: columns ? [...columns].sort() : null,
});

/**
 * Tables that stay up to date with each other. A Svelte store; its functions may be passed on by
 * themselves. `show()` is to be called after writes were laid over a table.
 *
 * @template D
 * @param {Request[]} requests
 * @param {Table[]} tables one for each request
 * @param {() => D} read makes of them what subscribers get
 * @param {{url?: string, since?: string, loaded?: boolean}} options
 */
function follow(requests, tables, read, { url, since, loaded = false }) {
  const named = new Map(requests.map(({ table }, place) => [lower(table), tables[place]]));
  let data = read();
  let wasAsked = false;
  let position = since ?? null;
  /** @type {Status} */
  let status = "connecting";
  /** @type {string | null} */
  let error = null;
  /** @type {string | null} */
  let problem = null;
  const subscribers = new Watchers();
  const statusWatchers = new Watchers();
  const changeWatchers = new Watchers();

  /** Shows what there is, if that is anything new. */
  function show(touched = tables, options = {}) {
    const isNew = touched.map((table) => table.look(options)).includes(true);
    if (!isNew) return;
    data = read();
    subscribers.tell(data);
  }

  function become(next, why) {
    if (next === status && why === error) return;
    status = next;
    error = why;
    statusWatchers.tell(status, error);
  }

  /** A row whose key can't be read is left out; that is reported, and the others go on. */
  function attempt(run) {
    try {
      run();
    } catch (failure) {
      const isNew = problem === null;
      problem = `Some rows are left out: ${failure?.message ?? failure}`;
      if (isNew) reportError(failure);
    }
  }

  function heard(message) {
    if (message.position) position = message.position;
    if (message.op === "status") return become(message.status, message.error ?? problem);
    const touched = new Set();
    if (message.op === "fill") {
      const snapshots = new Map(tables.map((table) => [table, []]));
      for (const change of message.rows) snapshots.get(named.get(lower(change.table))).push(change);
      for (const [table, snapshot] of snapshots) {
        attempt(() => table.fill(snapshot, attempt));
        touched.add(table);
      }
    } else {
      for (const change of message.changes) {
        const table = named.get(lower(change.table));
        attempt(() => table.take(change));
        touched.add(table);
      }
    }
    const always = !loaded;
    loaded = true;
    show([...touched], { always });
    become(status, error ?? problem);
    for (const change of message.changes ?? []) changeWatchers.tell(change);
  }

  const line = linkTo(url)?.attach(
    // A holder that follows another one fills anew: only it knows what comes next.
    () => {
      const from = wasAsked ? null : (since ?? null);
      wasAsked = true;
      return { op: "attach", requests, since: from };
    },
    heard,
  );

  const store = {
    get data() {
      return data;
    },
    get status() {
      return status;
    },
    get connected() {
      return status === "live";
    },
    get error() {
      return error;
    },
    get position() {
      return position;
    },
    get loaded() {
      return loaded;
    },
    /** Calls `run` with the data, now and after each burst of changes. @param {(data: D) => void} run */
    subscribe(run) {
      return watch(subscribers, run, data);
    },
    /** @param {(status: Status, error: string | null) => void} run called now and on every move */
    onStatus(run) {
      return watch(statusWatchers, run, status, error);
    },
    /** @param {(change: Change) => void} run called with each live change, not those of a snapshot */
    onChange(run) {
      return watch(changeWatchers, run);
    },
    close() {
      line?.detach();
      become("closed", null);
    },
  };
  return { store, show, hasten: () => line?.hasten() };
}

/**
 * Rows of several tables, of one consistent snapshot and then of whole transactions: what is shown
 * is always the state of all of them at one position.
 *
 * @template {string} T
 * @param {Record<T, {
 *   key?: string | string[] | ((row: Row, change?: Change) => string),
 *   where?: string | string[] | Row,
 *   columns?: string[],
 * }>} tables by name, with the options that `collection` has for each
 * @param {{url?: string}} [options]
 */
export function collections(tables, { url } = {}) {
  const wanted = Object.entries(tables);
  if (!wanted.length) throw new TypeError("collections: there is no table in it");
  const held = wanted.map(([, { key }]) => new Table(key));
  const requests = wanted.map(([table, { where, columns }]) =>
    requestOf(table, { where, columns }),
  );
  const read = () =>
    /** @type {Record<T, readonly Row[]>} */ (
      Object.fromEntries(wanted.map(([table], place) => [table, held[place].data]))
    );
  return follow(requests, held, read, { url }).store;
}

/**
 * Rows of a table that stay up to date, with optimistic writes.
 *
 * @param {object} options
 * @param {string} options.table
 * @param {string | string[] | ((row: Row, change?: Change) => string)} [options.key] by default the
 *   primary key
 * @param {Row[]} [options.initialData] rows that are shown until the first snapshot is there
 * @param {string} [options.since] the position that `initialData` has: only what follows is fetched
 * @param {string | string[] | Row} [options.where] filter texts as in `/cdc/stream?filter=`, or
 *   `{column: value}`
 * @param {string[]} [options.columns]
 * @param {string} [options.room]
 * @param {string} [options.url] where `/cdc` is, by default where this file came from
 */
export function collection({ table: name, key, initialData, since, url, ...narrowing }) {
  if (since !== undefined && (key === undefined || !initialData)) {
    throw new TypeError("collection: since needs initialData, and key to find its rows by");
  }
  const table = new Table(key, initialData);
  const requests = [requestOf(name, narrowing)];
  const loaded = initialData !== undefined;
  const { store, show, hasten } = follow(requests, [table], () => table.data, { url, since, loaded });
  const waits = new Set();
  let isClosed = false;

  function end(write) {
    table.writes = table.writes.filter((each) => each !== write);
    show();
  }

  /** The request is answered; its changes come through the stream, or have come. */
  function linger(write) {
    const isWanted = () => !isClosed && table.writes.includes(write);
    if (!isWanted()) return;
    const callOff = later(EDIT_LINGERS_MS, isWanted, () => {
      waits.delete(callOff);
      // While nothing comes through the stream, its change may still be on the way.
      if (store.connected) end(write);
      else linger(write);
    });
    waits.add(callOff);
  }

  async function optimistic(edits, send) {
    const write = {
      edits: edits.map(({ key: of, row, patch, deleted }) => {
        return { key: table.keyTextOf(of), row, patch, deleted, confirmed: false };
      }),
    };
    table.writes = [...table.writes, write];
    show();
    try {
      const answer = await send();
      hasten();
      // For an edit that changes nothing no change may come.
      table.confirmAll(write.edits);
      show();
      linger(write);
      return answer;
    } catch (failure) {
      end(write);
      throw failure;
    }
  }

  /** @param {Row} row @param {() => any} send */
  async function insert(row, send) {
    if (key === undefined) throw new TypeError("collection: insert needs the option key");
    return optimistic([{ key: JSON.parse(table.keyOf(row)), row }], send);
  }

  const { close } = store;
  return Object.assign(store, {
    /** Shows `row` at once; `send` makes the request. Rejects as `send` does, and takes the row back. */
    insert,
    /** Shows the changed columns at once. @param {Key} of @param {Row} patch @param {() => any} send */
    update: (of, patch, send) => optimistic([{ key: of, patch }], send),
    /** Hides the row at once. @param {Key} of @param {() => any} send */
    delete: (of, send) => optimistic([{ key: of, deleted: true }], send),
    /** Several edits with one request. @type {(edits: Edit[], send: () => any) => Promise<any>} */
    optimistic,
    close() {
      isClosed = true;
      for (const callOff of waits) callOff();
      close();
    },
  });
}

/** Adds `run` to `runs`, calls it with `words` if there are any, and returns what takes it off. */
function watch(runs, run, ...words) {
  // The same function may be given twice.
  const each = (...news) => run(...news);
  runs.add(each);
  if (words.length) run(...words);
  return () => runs.delete(each);
}

/**
 * A chat room, over WebSocket only.
 *
 * @param {string} name
 * @param {object} [options]
 * @param {number} [options.history] how many earlier messages are wanted at first, at most 500
 * @param {string} [options.user] who this is, where the hub asks for no credentials
 * @param {string} [options.url] where `/cdc` is
 */
export function room(name, { history = 50, user, url } = {}) {
  if (!name || [...name].length > ROOM_CHARS_MAX) {
    throw new RangeError(`room: a name has 1 to ${ROOM_CHARS_MAX} characters`);
  }
  if (user !== undefined && (!user || [...user].length > USER_CHARS_MAX)) {
    throw new RangeError(`room: user has 1 to ${USER_CHARS_MAX} characters`);
  }
  let state = EMPTY_ROOM;
  let userId = user ?? null;
  /** @type {Status} */
  let status = "connecting";
  /** @type {string | null} */
  let error = null;
  let saidTyping = -Infinity;
  const pending = new Map(); // messageId → {message, isStored, resolve, reject}
  const questions = new Map(); // id → {resolve, reject}
  const typing = new Map(); // userId → timer
  const subscribers = new Watchers();
  const statusWatchers = new Watchers();
  let view;
  look();

  function look() {
    const known = new Set(state.messages.map((message) => message.messageId));
    for (const [messageId, { isStored }] of pending) {
      if (isStored && known.has(messageId)) pending.delete(messageId);
    }
    const waiting = [...pending.values()].map(({ message }) => message);
    const unknown = waiting.filter(({ messageId }) => !known.has(messageId));
    view = {
      messages: Object.freeze([...state.messages, ...unknown]),
      members: state.members,
      typing: [...typing.keys()].sort(),
      joined: state.joined,
      more: state.more,
    };
    subscribers.tell(view);
  }

  function heard(message) {
    const wasJoined = state.joined;
    if (message.op === "room") {
      state = message.state;
    } else take(message.frame);
    userId = message.userId ?? userId;
    if (message.status !== status || message.error !== error) {
      ({ status, error } = message);
      statusWatchers.tell(status, error);
    }
    if (!state.joined && wasJoined) giveUpQuestions("The connection was lost.");
    // Whatever was under way may be lost: the hub knows a message by its id and stores it once.
    if (state.joined && (!wasJoined || message.op === "room"))
      for (const each of pending.values()) put(each);
    if (status === "closed" && error) {
      for (const each of [...pending.values()]) fail(each, error);
    }
    look();
  }

  function take(frame) {
    state = foldRoom(state, frame);
    const sent = pending.get(frame.messageId);
    if (frame.type === "ack" && sent) {
      sent.isStored = true;
      sent.resolve();
    } else if (frame.type === "error" && sent) fail(sent, frame.message);
    if (frame.type === "message") forget(frame.userId);
    if (frame.type === "user-left") forget(frame.userId);
    if (frame.type === "broadcast" && frame.userId !== userId && "typing" in Object(frame.data)) {
      forget(frame.userId);
      if (frame.data.typing) {
        const timer = setTimeout(() => {
          forget(frame.userId);
          look();
        }, TYPING_FORGOTTEN_MS);
        typing.set(frame.userId, timer);
      }
    }
    const question = questions.get(frame.id);
    questions.delete(frame.id);
    if (frame.type === "history") question?.resolve(frame.more);
    else question?.reject(new Error(frame.message));
  }

  function forget(who) {
    clearTimeout(typing.get(who));
    typing.delete(who);
  }

  function put({ message: { messageId, content }, isStored }) {
    if (!isStored) line?.say({ type: "message", room: name, content, messageId, id: messageId });
  }

  function giveUpQuestions(why) {
    for (const { reject } of questions.values()) reject(new Error(why));
    questions.clear();
  }

  function fail({ message, reject }, why) {
    pending.delete(message.messageId);
    reject(new Error(why));
  }

  /** @param {string} content @returns {Promise<void>} */
  function send(content) {
    if (!content) return Promise.reject(new Error("There is nothing to send."));
    if ([...content].length > CONTENT_CHARS_MAX) {
      const most = CONTENT_CHARS_MAX.toLocaleString("en");
      return Promise.reject(new Error(`A message has at most ${most} characters.`));
    }
    // Half an emoji, in which a text that was cut may end, is no text to the hub.
    content = content.replace(/\p{Surrogate}/gu, "\ufffd");
    const messageId = newId();
    const timestamp = new Date().toISOString();
    const message = { messageId, userId, content, timestamp, lsn: 0, pending: true };
    saidTyping = -Infinity;
    return new Promise((resolve, reject) => {
      const each = { message, isStored: false, resolve, reject };
      pending.set(messageId, each);
      if (status === "closed") fail(each, error ?? "This room is closed.");
      else if (state.joined) put(each);
      look();
    });
  }

  /** @returns {Promise<boolean>} */
  function older(limit = 50) {
    if (!state.joined) return Promise.reject(new Error("There is no connection now."));
    const id = `${olderName(state.messages)} ${newId()}`;
    return new Promise((resolve, reject) => {
      questions.set(id, { resolve, reject });
      line?.say({ type: "history", room: name, limit, id, ...beforeOf(state.messages[0]) });
    });
  }

  const line = linkTo(url)?.attach(
    () => ({ op: "join", room: name, user: user ?? null, history }),
    heard,
  );

  return {
    get userId() {
      return userId;
    },
    get status() {
      return status;
    },
    get error() {
      return error;
    },
    /**
     * @param {(room: {messages: readonly Message[], members: string[], typing: string[],
     *   joined: boolean, more: boolean}) => void} run called now and on every move
     */
    subscribe(run) {
      return watch(subscribers, run, view);
    },
    /** @param {(status: Status, error: string | null) => void} run called now and on every move */
    onStatus(run) {
      return watch(statusWatchers, run, status, error);
    },
    /** Resolves when the hub has stored it; rejects with a reason for a person. */
    send,
    /** Tells the others whether somebody types here. @param {boolean} isTyping */
    typing(isTyping) {
      const now = performance.now();
      if (isTyping ? now - saidTyping < TYPING_REPEAT_MS : saidTyping === -Infinity) return;
      saidTyping = isTyping ? now : -Infinity;
      line?.say({ type: "broadcast", room: name, data: { typing: isTyping } });
    },
    /** Puts older messages in front; resolves to whether there are more. */
    older,
    close() {
      line?.detach();
      for (const who of [...typing.keys()]) forget(who);
      for (const each of [...pending.values()]) fail(each, "The room was left.");
      giveUpQuestions("The room was left.");
      status = "closed";
      state = { ...state, joined: false };
      look();
      statusWatchers.tell(status, error);
    },
  };
}

/** A random UUID, also on a page without HTTPS, where crypto has no randomUUID. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** The browser's shared connection. @param {{url?: string}} [options] */
export function connection({ url } = {}) {
  const link = linkTo(url);
  return {
    /** @type {Status} */
    get status() {
      return link?.status ?? "connecting";
    },
    get error() {
      return link?.error ?? null;
    },
    /** @type {"websocket" | "sse" | null} */
    get transport() {
      return link?.transport ?? null;
    },
    /** @param {(status: Status, error: string | null) => void} run called now and on every move */
    onStatus(run) {
      return link ? watch(link.watchers, run, link.status, link.error) : () => {};
    },
  };
}

// As the SharedWorker of such pages, and not where somebody's own worker imports this file.
const scope = /** @type {any} */ (globalThis);
if (scope.SharedWorkerGlobalScope && scope.name === WORKER_NAME) {
  const base = new URL(".", import.meta.url).href;
  const holder = lockForLife(`${WORKER_NAME} holder ${newId()}`).then(
    (lock) => new Holder(base, lock),
  );
  scope.onconnect = async ({ ports: [port] }) => (await holder).accept(port);
}

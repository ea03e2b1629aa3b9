// The first page: the changes that happen now, and lines to try that fit this very database.
import { connection } from "/cdc/client.js";
import { showStatus } from "./status.js";

const CHANGES_SHOWN = 8;
const VALUE_CHARS_MAX = 60;
// What each page reads, as its own description has it.
const PAGES = {
  todos: { todos: ["title", "completed", "position", "created_at", "updated_at"] },
  dashboard: { users: [], orders: [], sessions: [] },
  chat: { messages: ["room", "user_id", "content", "created_at"] },
};

const feed = document.getElementById("changes");

// The feed is a plain EventSource, as the page tells its readers to use it. A browser has six
// connections to one host, so a tab that nobody sees gives its own back. Whether the hub is there, the
// connection of the library says: an EventSource doesn't notice that nothing is said any more.
class Feed {
  #source = null;
  #lastId;
  #live = false;

  constructor(since) {
    this.#lastId = since;
    document.addEventListener("visibilitychange", () => this.#open());
    connection().onStatus((status) => status === "live" && this.#open());
  }

  #open() {
    this.#source?.close();
    if (document.hidden) return;
    const source = new EventSource(`/cdc/stream?table=*&since=${encodeURIComponent(this.#lastId)}`);
    this.#source = source;
    source.onmessage = (event) => {
      this.#lastId = event.lastEventId;
      add(JSON.parse(event.data), this.#live);
    };
    source.addEventListener("caught-up", () => {
      this.#live = true;
      feed.dataset.live = "";
    });
    source.addEventListener("reset", (event) => {
      this.#lastId = event.lastEventId;
    });
    source.onerror = () => {
      // It gives up for good on some answers, as a proxy's while the hub restarts.
      if (source.readyState === EventSource.CLOSED) setTimeout(() => this.#open(), retryMs());
    };
  }
}

const retryMs = () => 3000 * (0.5 + Math.random());

let arrived = [];

/** However many changes come, each frame shows the last ones at once. */
function add(change, isNew) {
  if (arrived.length === 0) requestAnimationFrame(show);
  arrived.push({ change, isNew });
}

function show() {
  for (const { change, isNew } of arrived.slice(-CHANGES_SHOWN)) feed.prepend(rowOf(change, isNew));
  arrived = [];
  while (feed.children.length > CHANGES_SHOWN) feed.lastElementChild.remove();
}

function rowOf(change, isNew) {
  const row = document.createElement("li");
  row.classList.toggle("new", isNew);
  const type = document.createElement("span");
  type.className = "type";
  type.dataset.type = change.type;
  type.textContent = change.type;
  const what = document.createElement("span");
  what.className = "what";
  const table = document.createElement("b");
  table.textContent = change.table;
  what.append(table);
  for (const [name, value] of summary(change)) {
    const column = document.createElement("i");
    column.textContent = name;
    what.append(" ", ...(name ? [column, " "] : []), ...value);
  }
  what.title = what.textContent;
  const time = document.createElement("time");
  const at = new Date(change.timestamp);
  time.dateTime = at.toISOString();
  time.textContent = at.toLocaleTimeString();
  row.append(type, what, time);
  return row;
}

/** What a person would say of a change: of which row, if a text says so, and an update's columns that
 * differ; otherwise the row. Each is a column's name and the parts of its text. */
function summary({ oldValue, newValue, key }) {
  const row = newValue ?? oldValue ?? key;
  const others = Object.keys(row).filter((name) => !(name in key));
  // The ids of other rows say the least.
  const names = [...others.filter((name) => !isId(name)), ...others.filter(isId)];
  if (!oldValue || !newValue) return names.map((name) => [name, [short(row[name])]]);
  const isSame = (name) => JSON.stringify(oldValue[name]) === JSON.stringify(newValue[name]);
  const label = names.find((name) => isSame(name) && isLabel(name, row[name]));
  const changed = names
    .filter((name) => !isSame(name))
    .map((name) => [name, [was(oldValue[name]), `→ ${short(newValue[name])}`]]);
  return label ? [["", [short(row[label])]], ...changed] : changed;
}

/** What a column held. A phone has room only for what it holds now. */
function was(value) {
  const part = document.createElement("span");
  part.className = "was";
  part.textContent = `${short(value)} `;
  return part;
}

const isId = (name) => /(^|_)id$/i.test(name);
const isLabel = (name, value) => typeof value === "string" && value.trim() && !isId(name);

function short(value) {
  if (isTime(value)) return new Date(value).toLocaleTimeString();
  // A column that is new has no old value.
  const text = typeof value === "string" ? value : JSON.stringify(value ?? null);
  return text.length > VALUE_CHARS_MAX ? `${text.slice(0, VALUE_CHARS_MAX)}…` : text;
}

/** Milliseconds of today. A number that happens to be one is told exactly by the console. */
function isTime(value) {
  return Number.isInteger(value) && new Date(value).toDateString() === new Date().toDateString();
}

function has(tables, wanted) {
  return Object.entries(wanted).every(([name, columns]) => {
    const table = tables.find((each) => each.table === name);
    return table && columns.every((column) => table.columns.some((each) => each.name === column));
  });
}

const sqlName = (name) => `"${name.replaceAll('"', '""')}"`;

function shellWord(word) {
  const plain = word.includes("'") && !/["$`\\!]/.test(word);
  return plain ? `"${word}"` : `'${word.replaceAll("'", "'\\''")}'`;
}

/** A change that does no harm: a todo of one's own, else a row that is written as it is. */
function example(tables) {
  if (has(tables, PAGES.todos)) {
    return (
      "INSERT INTO todos(id, title, position, created_at, updated_at) " +
      "SELECT hex(randomblob(8)), 'From the shell', 0, ms, ms " +
      "FROM (SELECT 1000 * strftime('%s', 'now') AS ms)"
    );
  }
  if (tables.length === 0) return "CREATE TABLE notes(id INTEGER PRIMARY KEY, text)";
  const [name, key] = [tables[0].table, tables[0].key[0]].map(sqlName);
  return `UPDATE ${name} SET ${key} = ${key} WHERE ${key} = (SELECT max(${key}) FROM ${name})`;
}

async function get(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer.json();
}

function describe(tables, status) {
  for (const place of document.querySelectorAll(".origin")) place.textContent = location.origin;
  const name = tables.length === 1 ? encodeURIComponent(tables[0].table) : "*";
  for (const place of document.querySelectorAll(".table")) place.textContent = name;
  for (const [page, wanted] of Object.entries(PAGES)) {
    document.getElementById(`has-${page}`).hidden = !has(tables, wanted);
  }
  document.getElementById("shell").textContent =
    `sqlite3 ${shellWord(status.database)} ${shellWord(example(tables))}`;
  delete document.body.dataset.unknown;
}

async function start() {
  try {
    const [tables, status] = await Promise.all([get("/cdc/tables"), get("/cdc/status")]);
    describe(tables, status);
    // The last few changes, so that there is something to see, and then those that come.
    const since = Math.max(status.firstLsn - 1, status.headLsn - CHANGES_SHOWN);
    new Feed(`${status.epoch}:${since}`);
  } catch (error) {
    console.warn("The hub does not answer; asking again.", error);
    setTimeout(start, retryMs());
  }
}

showStatus(document.getElementById("status"), connection());
start();

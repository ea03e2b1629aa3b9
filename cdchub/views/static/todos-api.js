// The todo page's requests, and what their refusals say to a person.

// A request that hangs would hold up all later ones.
const ANSWER_MS_MAX = 20_000;

export const UNREACHABLE = "The hub can't be reached. Try again later.";

export class Refused extends Error {
  /** @param {string} message @param {Record<string, string>} fields what is wrong with which field */
  constructor(message, fields = {}) {
    super(message);
    this.fields = fields;
  }
}

/**
 * @param {string} method
 * @param {string} path
 * @param {object} [body]
 * @returns {Promise<any>} the answer's JSON; rejects with `Refused`
 */
export async function request(method, path, body) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(ANSWER_MS_MAX),
    });
    if (response.ok) return await response.json();
  } catch {
    throw new Refused(UNREACHABLE);
  }
  const answer = await response.json().catch(() => ({})); // A proxy's answer need not be JSON.
  const fields = answer.errors ?? {};
  const reason =
    Object.values(fields).join(" ") || answer.detail || `The hub answered ${response.status}.`;
  const shown = reason[0].toUpperCase() + reason.slice(1);
  throw new Refused(answer.errorId ? `${shown}: ${answer.errorId}` : shown, fields);
}

export const todoPath = (id) => `/api/todos/${encodeURIComponent(id)}`;

let last = Promise.resolve();

/**
 * Runs jobs one after another. Requests that are under way together may overtake each other, and
 * then the last click would not be what is stored.
 *
 * @template T
 * @param {() => Promise<T>} job
 * @returns {Promise<T>}
 */
export function inTurn(job) {
  const done = last.then(job);
  last = done.catch(() => {}); // Whoever asked for the job is told; the next one runs all the same.
  return done;
}

/** A UUID, version 4. `crypto.randomUUID` is there on HTTPS and localhost only. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/**
 * Stores an order of todos. If somebody added or deleted one meanwhile, the hub refuses; then the same
 * move is made among those that there are.
 *
 * @param {string[]} ids all of them, in order
 * @param {string} moved the one whose place is new
 */
export async function reorder(ids, moved) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await request("POST", "/api/todos/reorder", { ids });
    } catch (error) {
      if (!error.fields.ids || tries === 3) throw error;
      const present = await request("GET", "/api/todos");
      ids = movedAmong(present.map((todo) => todo.id).filter((id) => id !== null), ids, moved);
    }
  }
}

/** `present` with `moved` behind the nearest of those that precede it in `wanted`. */
function movedAmong(present, wanted, moved) {
  if (!present.includes(moved)) return present;
  const others = present.filter((id) => id !== moved);
  const before = wanted.slice(0, wanted.indexOf(moved));
  const place = others.indexOf(before.findLast((id) => others.includes(id))) + 1;
  return others.toSpliced(place, 0, moved);
}

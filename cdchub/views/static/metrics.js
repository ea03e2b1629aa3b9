// What the dashboard says, computed from rows: the same rows at the same time give the same numbers,
// whatever way they came. Nothing here knows of the page.
//
// Times are Unix milliseconds and money is in cents. Days are local days of the time zone that is
// passed in. A value that is no number (NULL, text) belongs to no day and is worth nothing.

const ACTIVE_MS = 15 * 60_000;
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const CHART_DAYS = 7;
const ACTIVITY_MAX = 20;

/**
 * @typedef {{id: unknown, name: unknown, created_at: unknown}} User
 * @typedef {{id: unknown, user_id: unknown, total: unknown, status: unknown, created_at: unknown}} Order
 * @typedef {{user_id: unknown, created_at: unknown, last_active: unknown}} Session
 * @typedef {{number: number, start: number, orders: number, revenue: number}} Day
 *   `number` counts days since 1970; `start` is its local midnight
 * @typedef {{key: string, type: "signup" | "order" | "refund", name: string, amount: number | null,
 *            time: number}} Activity
 */

/**
 * @param {{users: User[], orders: Order[], sessions: Session[]}} rows
 * @param {(order: Order) => number | undefined} refundTime when an order was refunded, where that is
 *   known: its row doesn't say. Otherwise the order's own time stands for it.
 * @param {number} now
 * @param {string} timeZone
 */
export function measure({ users, orders, sessions }, refundTime, now, timeZone) {
  const days = lastDays(now, timeZone);
  const midnight = days[CHART_DAYS - 1].start;
  const active = new Set();
  let sessionsToday = 0;
  for (const session of sessions) {
    const { user_id: userId, created_at: createdAt, last_active: lastActive } = session;
    if (userId !== null && number(lastActive) > now - ACTIVE_MS) active.add(JSON.stringify(userId));
    if (number(createdAt) >= midnight) sessionsToday += 1;
  }
  for (const order of orders) {
    const day = dayOf(days, number(order.created_at));
    if (!day) continue;
    day.orders += 1;
    if (!isRefunded(order)) day.revenue += cents(order.total);
  }
  const today = days[CHART_DAYS - 1];
  return {
    totalUsers: users.length,
    activeNow: active.size,
    ordersToday: today.orders,
    revenueToday: today.revenue,
    conversionRate: (100 * today.orders) / Math.max(1, sessionsToday),
    days,
    activity: activityOf(users, orders, refundTime, days[0].start),
  };
}

/**
 * @param {User[]} users
 * @param {Order[]} orders
 * @param {(order: Order) => number | undefined} refundTime
 * @param {number} since
 * @returns {Activity[]} newest first
 */
function activityOf(users, orders, refundTime, since) {
  const names = new Map(users.map((user) => [user.id, String(user.name ?? "Somebody")]));
  const found = [];
  const add = (type, row, userId, amount, time) => {
    if (!(time >= since)) return;
    const key = `${type} ${JSON.stringify(row.id)}`;
    found.push({ key, type, name: names.get(userId) ?? "Somebody", amount, time });
  };
  for (const user of users) add("signup", user, user.id, null, number(user.created_at));
  for (const order of orders) {
    const placed = number(order.created_at);
    add("order", order, order.user_id, cents(order.total), placed);
    if (!isRefunded(order)) continue;
    add("refund", order, order.user_id, cents(order.total), refundTime(order) ?? placed);
  }
  // In the same millisecond what follows from the other is on top: signup, order, refund.
  const rank = { signup: 0, order: 1, refund: 2 };
  found.sort((a, b) => b.time - a.time || rank[b.type] - rank[a.type] || (a.key < b.key ? -1 : 1));
  return found.slice(0, ACTIVITY_MAX);
}

const isRefunded = (order) => order.status === "refunded";
const number = (value) => (typeof value === "number" ? value : NaN);
const cents = (total) => Math.round(number(total) * 100) || 0;

// Days.

/** What the local date is, as the number of days since 1970-01-01. */
function localDay(time, timeZone) {
  const parts = {};
  for (const { type, value } of dates(timeZone).formatToParts(time)) parts[type] = Number(value);
  return Date.UTC(parts.year, parts.month - 1, parts.day) / DAY_MS;
}

const formats = new Map();

function dates(timeZone) {
  if (!formats.has(timeZone)) {
    const fields = { year: "numeric", month: "numeric", day: "numeric" };
    formats.set(timeZone, new Intl.DateTimeFormat("en-US", { timeZone, ...fields }));
  }
  return formats.get(timeZone);
}

/**
 * The first instant of a local day. Not a day after the one before it, because days of 23 and 25
 * hours exist, nor at 0:00, because some zones change their clocks at midnight: it is searched.
 */
function startOf(day, timeZone) {
  // Zones are 12 hours behind to 14 hours ahead of UTC; one more for good measure.
  let before = day * DAY_MS - 15 * HOUR_MS;
  let start = day * DAY_MS + 13 * HOUR_MS;
  while (start - before > 1) {
    const middle = Math.floor((before + start) / 2);
    if (localDay(middle, timeZone) < day) before = middle;
    else start = middle;
  }
  return start;
}

let known = { today: NaN, timeZone: "", starts: [] };

/**
 * Seven days of which the last one is today, still without orders.
 * @returns {Day[]}
 */
function lastDays(now, timeZone) {
  const today = localDay(now, timeZone);
  if (known.today !== today || known.timeZone !== timeZone) {
    const numbers = Array.from({ length: CHART_DAYS }, (_, i) => today - CHART_DAYS + 1 + i);
    known = { today, timeZone, starts: numbers.map((day) => [day, startOf(day, timeZone)]) };
  }
  return known.starts.map(([day, start]) => ({ number: day, start, orders: 0, revenue: 0 }));
}

const dayOf = (days, time) => days.findLast((day) => day.start <= time);

// Words.

const USD = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD" });
const dayWords = (options) => {
  const format = new Intl.DateTimeFormat("en-US", { timeZone: "UTC", ...options });
  return (day) => format.format(day * DAY_MS);
};

/** @type {(cents: number) => string} */
export const usd = (cents) => USD.format(cents / 100);
/** @type {(day: number) => string} "Mon" */
export const weekday = dayWords({ weekday: "short" });
/** @type {(day: number) => string} "Monday, November 16" */
export const longDate = dayWords({ weekday: "long", month: "long", day: "numeric" });
const shortDate = dayWords({ month: "short", day: "numeric" });

/** How long ago something was, for a person: "Just now", "5m ago", "3h ago", "Nov 16". */
export function ago(time, now, timeZone) {
  const minutes = Math.floor((now - time) / 60_000);
  if (minutes < 1) return "Just now";
  if (minutes < 60) return `${minutes}m ago`;
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)}h ago`;
  return shortDate(localDay(time, timeZone));
}

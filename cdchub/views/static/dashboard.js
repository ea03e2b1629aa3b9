// The dashboard. It holds the rows of three tables, and shows what `measure` makes of them: after each
// burst of changes, and every second, because time alone changes what "today" and "now" mean.
import { collections } from "/cdc/client.js";
import { ago, longDate, measure, usd, weekday } from "./metrics.js";
import { showStatus } from "./status.js";

const TICK_MS = 1000;
const RETRY_MS = 3000;
const TWEEN_MS = 1000;
// How far back the log is asked when orders were refunded: some hours of a busy shop.
const LOOK_BACK_CHANGES = 10_000;

const $ = (id) => document.getElementById(id);
const prefersStillness = matchMedia("(prefers-reduced-motion: reduce)");

// Cards.

/**
 * A number that glides to its next value. The first one is there at once.
 * @param {HTMLElement} element
 * @param {(value: number) => string} format
 */
function gliding(element, format) {
  let shown = NaN;
  let goal = NaN;
  let frame = 0;
  function show(value) {
    shown = value;
    element.textContent = format(value);
  }
  return (value) => {
    if (value === goal) return;
    goal = value;
    cancelAnimationFrame(frame);
    if (Number.isNaN(shown) || prefersStillness.matches) {
      show(goal);
      return;
    }
    const from = shown;
    const began = performance.now();
    function step(time) {
      const part = Math.min(Math.max((time - began) / TWEEN_MS, 0), 1);
      show(part < 1 ? from + (goal - from) * (1 - (1 - part) ** 3) : goal);
      if (part < 1) frame = requestAnimationFrame(step);
    }
    frame = requestAnimationFrame(step);
  };
}

const count = (value) => Math.round(value).toLocaleString();
const percent = (value) =>
  `${value.toLocaleString(undefined, { minimumFractionDigits: 1, maximumFractionDigits: 1 })}%`;

const cards = {
  totalUsers: gliding($("total-users"), count),
  activeNow: gliding($("active-now"), count),
  ordersToday: gliding($("orders-today"), count),
  revenueToday: gliding($("revenue-today"), (value) => usd(Math.round(value))),
  conversionRate: gliding($("conversion-rate"), percent),
};

// Chart.

const chart = $("chart");
const columns = [];

function element(name, className, ...children) {
  const made = document.createElement(name);
  made.className = className;
  made.append(...children);
  return made;
}

function createBar(series) {
  const tip = element("span", "tip");
  const fill = element("div", "fill", tip);
  const bar = element("div", `bar ${series}`, fill);
  bar.setAttribute("role", "img");
  bar.tabIndex = columns.length === 0 && series === "revenue" ? 0 : -1;
  return { bar, fill, tip };
}

function createColumns(length) {
  while (columns.length < length) {
    const revenue = createBar("revenue");
    const orders = createBar("orders");
    const label = element("div", "weekday");
    label.setAttribute("aria-hidden", "true"); // The bars say it.
    const bars = element("div", "bars", revenue.bar, orders.bar);
    chart.append(element("div", "day", bars, label));
    columns.push({ revenue, orders, label });
  }
}

function showChart(days) {
  createColumns(days.length);
  const most = {
    revenue: Math.max(...days.map((day) => day.revenue)),
    orders: Math.max(...days.map((day) => day.orders)),
  };
  const words = {
    revenue: (day) => usd(day.revenue),
    orders: (day) => `${day.orders.toLocaleString()} ${day.orders === 1 ? "order" : "orders"}`,
  };
  days.forEach((day, place) => {
    const column = columns[place];
    setText(column.label, weekday(day.number));
    for (const series of ["revenue", "orders"]) {
      const { bar, fill, tip } = column[series];
      const part = most[series] > 0 ? Math.max(0, day[series]) / most[series] : 0;
      fill.style.height = `${100 * part}%`;
      setText(tip, words[series](day));
      bar.setAttribute("aria-label", `${longDate(day.number)}: ${words[series](day)}`);
    }
  });
}

function setText(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

// One stop for the Tab key; the arrows go from bar to bar.
chart.addEventListener("keydown", (event) => {
  const bars = columns.flatMap(({ revenue, orders }) => [revenue.bar, orders.bar]);
  const place = bars.indexOf(document.activeElement);
  const places = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: bars.length - 1 };
  const next = bars[places[event.key]];
  if (!next) return;
  event.preventDefault();
  next.focus();
});
// What bars say can be put away (WCAG 2.2, 1.4.13) until the next one is asked.
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") chart.classList.add("silent");
});
chart.addEventListener("pointerover", () => chart.classList.remove("silent"));
chart.addEventListener("focusin", (event) => {
  chart.classList.remove("silent");
  for (const { revenue, orders } of columns) {
    for (const { bar } of [revenue, orders]) bar.tabIndex = bar === event.target ? 0 : -1;
  }
});

// Activity.

const feed = $("activity");
const entries = new Map(); // key → <li>
const KINDS = {
  signup: { mark: "+", deed: "signed up" },
  order: { mark: "$", deed: "placed an order" },
  refund: { mark: "−", deed: "was refunded" },
};

function createEntry({ type }) {
  const mark = element("span", "mark", KINDS[type].mark);
  mark.setAttribute("aria-hidden", "true");
  const entry = element("li", type, mark, element("span", "deed"), element("time", "soft"));
  entry.querySelector(".deed").dir = "auto";
  if (type !== "signup") entry.querySelector(".deed").after(element("strong", "amount"));
  return entry;
}

function showActivity(activity, now, timeZone) {
  const first = entries.size === 0;
  const keys = new Set(activity.map(({ key }) => key));
  for (const [key, entry] of entries) {
    if (keys.has(key)) continue;
    entries.delete(key);
    entry.remove();
  }
  let place = feed.firstElementChild;
  for (const each of activity) {
    let entry = entries.get(each.key);
    if (!entry) {
      entry = createEntry(each);
      entry.classList.toggle("new", !first);
      entries.set(each.key, entry);
    }
    setText(entry.querySelector(".deed"), `${each.name} ${KINDS[each.type].deed}`);
    if (each.amount !== null) setText(entry.querySelector(".amount"), usd(each.amount));
    const time = entry.querySelector("time");
    time.dateTime = new Date(each.time).toISOString();
    setText(time, ago(each.time, now, timeZone));
    if (entry === place) place = place.nextElementSibling;
    else feed.insertBefore(entry, place);
  }
  $("no-activity").hidden = activity.length > 0;
}

// When orders were refunded: a row only says that it was, but the change that made it so has a time.

const refunds = new Map(); // an order's id → time

function noteRefund({ type, table, oldValue, newValue, timestamp }) {
  if (table !== "orders" || type !== "UPDATE" || newValue.status !== "refunded") return;
  if (oldValue.status !== "refunded") refunds.set(newValue.id, timestamp);
}

/** Asks the log about the time before this page was open. What it has no longer stays unknown. */
async function learnRefunds() {
  const { epoch, firstLsn, headLsn } = await getJson("/cdc/status");
  const query = new URLSearchParams({
    table: "orders",
    columns: "id,status",
    since: `${epoch}:${Math.max(firstLsn - 1, headLsn - LOOK_BACK_CHANGES)}`,
  });
  for (let more = true; more;) {
    const { changes, next, upToDate } = await getJson(`/cdc/changes?${query}`);
    changes.forEach(noteRefund);
    query.set("since", next);
    more = !upToDate;
  }
}

async function getJson(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer.json();
}

// The page.

function say(text) {
  $("notice").textContent = text;
  $("notice").hidden = false;
}

/** The hub's zone, if this browser knows it: zones get new names, and browsers grow old. */
function known(timeZone) {
  try {
    new Intl.DateTimeFormat("en-US", { timeZone });
    return timeZone;
  } catch {
    say(`This browser doesn't know the hub's time zone, ${timeZone}. Days here are those of UTC.`);
    return "UTC";
  }
}

/** The hub's time zone and clock; null where this database has no such tables. */
async function settings() {
  for (;;) {
    // Null where the hub can't be reached: the status goes on saying "Connecting…".
    const answer = await fetch("/api/dashboard").catch(() => null);
    if (answer?.ok) return answer.json();
    if (answer?.status === 404) {
      const { detail } = await answer.json();
      say(`${detail} Run “cdchub demo” for a database that has it.`);
      return null;
    }
    await new Promise((resume) => setTimeout(resume, RETRY_MS * (0.5 + Math.random())));
  }
}

async function start() {
  const hub = await settings();
  if (!hub) {
    for (const id of ["cards", "body", "status", "hint"]) $(id).hidden = true;
    return;
  }
  const timeZone = known(hub.timeZone);
  // The hub's clock counts, also where the reader's is wrong.
  const ahead = hub.now - Date.now();
  const live = collections({
    users: { columns: ["id", "name", "created_at"] },
    orders: { columns: ["id", "user_id", "total", "status", "created_at"] },
    // Its key, the token, comes with every change, as keys do; nothing here reads it.
    sessions: { columns: ["user_id", "created_at", "last_active"] },
  });
  function render() {
    if (!live.loaded) return;
    const now = Date.now() + ahead;
    const refundTime = (order) => refunds.get(order.id);
    const { days, activity, ...numbers } = measure(live.data, refundTime, now, timeZone);
    for (const [name, value] of Object.entries(numbers)) cards[name](value);
    showChart(days);
    showActivity(activity, now, timeZone);
  }
  $("zone").textContent = timeZone === "Etc/UTC" ? "UTC" : timeZone;
  showStatus($("status"), live);
  live.onChange(noteRefund);
  live.onStatus((status) => {
    // Where it can't be asked now, it is asked when the page is live again.
    if (status === "live") learnRefunds().then(render, (error) => console.info(error.message));
  });
  live.subscribe(render);
  setInterval(render, TICK_MS);
}

start();

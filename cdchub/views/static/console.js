// The console: what the hub says of itself, asked once a second, and its changes as they come.
import { ChangeList, ChangeStream } from "./console-changes.js";
import { showStatus } from "./status.js";

const POLL_MS = 1_000;
const ANSWER_MS = 5_000;
const SAMPLES = 60;
const GRAPH_HEIGHT = 20;
const TRANSPORTS = { sse: "SSE", ws: "WebSocket" };
// Outcomes that somebody may want to know the reason of.
const UNWELCOME = /refused|stalled|fell_behind|too_many|overloaded|reset|fault|lost/;

const $ = (id) => document.getElementById(id);
const numberFormat = new Intl.NumberFormat();
const rateFormat = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const timeFormat = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

const shown = (number) => numberFormat.format(number);
const times = (count, one, many = `${one}s`) => `${shown(count)} ${count === 1 ? one : many}`;
const words = (name) => name.replaceAll("_", " ");

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function bytesText(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = bytes < 1024 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  return `${rateFormat.format(bytes / 1024 ** power)} ${units[power]}`;
}

function durationText(ms) {
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 1) return `${Math.floor(ms / 1000)} s`;
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

// Facts: names and values, whose elements stay where they are.

/** @param {[name: string, value: string, isUnwelcome?: boolean][]} facts */
function showFacts(list, facts) {
  const names = [...list.children].map((row) => row.firstChild.textContent);
  if (names.length !== facts.length || facts.some(([name], index) => name !== names[index])) {
    const rows = facts.map(([name]) => {
      const row = document.createElement("div");
      const term = document.createElement("dt");
      term.textContent = name;
      row.append(term, document.createElement("dd"));
      return row;
    });
    list.replaceChildren(...rows);
  }
  for (const [index, [, value, isUnwelcome]] of facts.entries()) {
    const row = list.children[index];
    setText(row.lastChild, value);
    row.classList.toggle("unwelcome", Boolean(isUnwelcome));
  }
}

/** Counts by name, the highest first; what there is none of is said in words. */
function showCounts(list, counts, none) {
  const entries = Object.entries(counts).sort(([a, m], [b, n]) => n - m || a.localeCompare(b));
  const facts = entries.map(([name, count]) => [name, shown(count)]);
  showFacts(list, facts.length ? facts : [[none, ""]]);
}

// Changes per second.

const samples = []; // of the last minute, oldest first
let last = null; // {epoch, lsn, at_ms}

const bars = Array.from({ length: SAMPLES }, (_, index) => {
  const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  bar.setAttribute("x", String(index + 0.1));
  bar.setAttribute("width", "0.8");
  return bar;
});
$("graph").append(...bars);

function showRate({ epoch, headLsn }) {
  const now = { epoch, lsn: headLsn, at_ms: performance.now() };
  if (last?.epoch === epoch && headLsn >= last.lsn) {
    samples.push(((headLsn - last.lsn) * 1000) / (now.at_ms - last.at_ms));
    if (samples.length > SAMPLES) samples.shift();
  }
  last = now;
  const rate = samples.at(-1);
  const most = Math.max(0, ...samples);
  setText($("rate"), rate === undefined ? "–" : rateFormat.format(rate));
  setText($("peak"), `at most ${rateFormat.format(most)}`);
  for (const [index, bar] of bars.entries()) {
    const sample = samples[samples.length - SAMPLES + index] ?? 0;
    const height = most ? (sample / most) * GRAPH_HEIGHT : 0;
    bar.setAttribute("y", String(GRAPH_HEIGHT - height));
    bar.setAttribute("height", String(height));
  }
  const said = `Changes per second over the last minute: at most ${rateFormat.format(most)}`;
  if ($("graph").getAttribute("aria-label") !== said) $("graph").setAttribute("aria-label", said);
}

// The rest of the status. A hub of another version may say less.

function showHub(status) {
  const { capture, log, subscribers } = status;
  const outcomes = Object.entries(subscribers.outcomes).sort(([a], [b]) => a.localeCompare(b));
  const isFailing = capture.state === "failing";
  $("notice").hidden = !isFailing;
  setText($("notice"), isFailing ? `Changes are not delivered now: ${capture.error}` : "");

  setText($("subscribers"), shown(subscribers.total));
  const named = (counts, by) =>
    Object.entries(counts).map(([name, count]) => {
      return [`${by} ${TRANSPORTS[name] ?? words(name)}`, shown(count)];
    });
  showFacts($("subscribers-facts"), [
    ["connections", shown(status.connections ?? 0)],
    ...named(subscribers.byTransport, "over"),
    ...named(subscribers.byState, "state:"),
  ]);

  const slowest = subscribers.lagLsnMax ?? 0;
  setText($("lag"), times(slowest, "change"));
  showFacts($("lag-facts"), [
    ["capture behind", times(capture.lagLsn, "change"), capture.lagLsn > 0],
    ["capture", capture.state, isFailing],
    ["last commit", capture.lastCommitMs ? timeFormat.format(capture.lastCommitMs) : "none yet"],
    ["woken by", capture.wake],
    ["fell behind", times(subscribers.outcomes.fell_behind ?? 0, "time")],
  ]);

  showCounts(
    $("by-table"),
    renamed(subscribers.byTable, { "*": "all tables" }),
    "nobody subscribes",
  );
  showRooms(subscribers.byRoom ?? {}, status.rooms ?? {});

  showFacts($("log-facts"), [
    ["log on disk", bytesText(log.bytes)],
    ["ring in memory", bytesText(log.ringBytes)],
    ["first LSN kept", shown(status.firstLsn)],
    ["last LSN", shown(status.headLsn)],
    ["snapshots", shown(log.snapshotsTaken)],
  ]);
  const resets = outcomes.filter(([name]) => name.startsWith("reset_"));
  showFacts($("history-facts"), [
    ["epoch", status.epoch],
    ["begun since start", shown(capture.epochsStarted)],
    ["breaks of tables", shown(capture.breaks), capture.breaks > 0],
    ["resets told", shown(resets.reduce((sum, [, count]) => sum + count, 0))],
    ["differences mended", shown(capture.differences), capture.differences > 0],
  ]);
  showFacts(
    $("outcomes"),
    outcomes.map(([name, count]) => [words(name), shown(count), UNWELCOME.test(name)]),
  );
  showWarnings(capture.warnings);
  const { version, role, database, uptimeMs } = status;
  const up = `${role} of ${database}, up for ${durationText(uptimeMs)}`;
  setText($("about"), `cdchub ${version}, ${up}. As of ${timeFormat.format(Date.now())}.`);
}

const renamed = (counts, names) =>
  Object.fromEntries(Object.entries(counts).map(([name, count]) => [names[name] ?? name, count]));

function showRooms(subscriptions, present) {
  const names = [...new Set([...Object.keys(present), ...Object.keys(subscriptions)])].sort();
  const facts = names.map((name) => {
    const here = name in present ? `${shown(present[name])} here, ` : "";
    return [name, `${here}${times(subscriptions[name] ?? 0, "subscription")}`];
  });
  showFacts($("by-room"), facts.length ? facts : [["nobody is in a room", ""]]);
}

function showWarnings(warnings) {
  const lines = warnings.length ? warnings : ["none"];
  const list = $("warnings");
  if (lines.join("\n") === [...list.children].map((line) => line.textContent).join("\n")) return;
  list.replaceChildren(
    ...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })),
  );
}

// Recent changes.

const changes = new ChangeList();
const stream = new ChangeStream({
  change: (change) => changes.add(change),
  gap: (why) => changes.note(why),
});
showStatus($("status"), stream);
stream.onStatus((status) => $("hub").classList.toggle("stale", status === "reconnecting"));

function showTables(tables) {
  const select = $("table");
  const wanted = ["*", ...tables];
  if ([...select.options].map(({ value }) => value).join() === wanted.join()) return;
  const chosen = select.value;
  select.replaceChildren(
    ...wanted.map((table) => new Option(table === "*" ? "all" : table, table)),
  );
  select.value = wanted.includes(chosen) ? chosen : "*";
  if (select.value !== chosen) show(select.value);
}

/** @type {any} */
let status = null;

function show(table) {
  changes.pause(false);
  changes.clear();
  stream.close();
  if (status) stream.open(table, status);
}

$("table").addEventListener("change", (event) => show(event.currentTarget.value));

// Once a second, while somebody can see it.

let polling = null; // an AbortController while it goes on

async function poll(signal) {
  let isOpen = false;
  while (!signal.aborted) {
    try {
      const limits = AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MS)]);
      const answer = await fetch("/cdc/status", { signal: limits });
      if (!answer.ok) throw new Error(`the hub answers ${answer.status}`);
      status = await answer.json();
      if (!isOpen) stream.open($("table").value, status);
      isOpen = true;
      showTables(status.tables);
      showRate(status);
      showHub(status);
    } catch (error) {
      if (!signal.aborted) {
        // The numbers say from when they are.
        console.info("no status now:", error.message);
        stream.lost();
      }
      isOpen = false;
    }
    await new Promise((over) => setTimeout(over, POLL_MS));
  }
}

function look() {
  const isVisible = document.visibilityState === "visible";
  if (isVisible === (polling !== null)) return;
  if (isVisible) {
    polling = new AbortController();
    poll(polling.signal);
  } else {
    polling.abort();
    polling = null;
    last = null;
    stream.close();
  }
}

document.addEventListener("visibilitychange", look);
look();

// The chat page: rooms side by side, one of them in front, and what one writes into it.
import { connection } from "/cdc/client.js";
import { RoomList, setText, showMembers } from "./chat-lists.js";
import { MessageLog } from "./chat-log.js";
import {
  Joined,
  ROOMS_MAX,
  onReadElsewhere,
  recallJoined,
  recallName,
  rememberName,
} from "./chat-rooms.js";
import { typingText } from "./chat-text.js";
import { keepDraft } from "./drafts.js";
import { showStatus } from "./status.js";

const ROOMS = ["lobby", "random", "help"];
const ROOM_CHARS_MAX = 128;
const NAME_CHARS_MAX = 64;
const MESSAGE_CHARS_MAX = 16_384;
// How many changes back rooms are looked for, and how many of them are shown.
const LOOK_BACK_LSNS = 2_000;
const FOUND_MAX = 50;
const BOX_PX_MAX = 200;
const OFFLINE = "Not sent: there is no connection now. Your message stays here.";
const ONLINE_AGAIN = "The connection is back: send your message again.";

const $ = (id) => document.getElementById(id);
const box = $("box");
const who = $("who");
const numberFormat = new Intl.NumberFormat();

let user = null;
/** @type {Map<string, Joined>} in the order in which they were joined */
const joined = new Map();
let found = []; // rooms in which something happens, though they may not be joined
/** @type {Joined} */
let front = null;
// Until somebody has said who they are, and has a room, there is only the connection.
let stopStatus = showStatus($("status"), connection());

const log = new MessageLog({
  older: (limit) => front.line.older(limit),
  reading: () => {
    if (document.visibilityState !== "visible" || !front?.isLoaded) return;
    front.markRead();
    showRooms();
  },
});

const cleaned = (text, charsMax) =>
  [...text.trim().toWellFormed()].slice(0, charsMax).join("").trim();

// Rooms.

const page = { isSeen, moved };
const roomList = new RoomList({
  open: (name) => {
    open(name);
    focusBox();
  },
  leave: (name, link) => {
    leave(name);
    link.focus({ preventScroll: true });
    if (!link.isConnected) box.focus();
  },
});

/** Brings a room to the front, and joins it if need be. */
function open(name, { replace = false } = {}) {
  if (!joined.has(name)) {
    if (joined.size >= ROOMS_MAX) {
      refuse(`You are in ${ROOMS_MAX} rooms. Leave one of them first.`);
      return;
    }
    joined.set(name, new Joined(name, user, page));
  }
  const address = new URL(location.href);
  address.searchParams.set("room", name);
  if (address.href !== location.href)
    history[replace ? "replaceState" : "pushState"](null, "", address);
  if (front) {
    front.draft = box.value;
    if (!front.unread) front.marker = null;
  }
  front = joined.get(name);
  stopStatus();
  stopStatus = showStatus($("status"), front.line);
  setText($("room-name"), name);
  box.setAttribute("aria-label", `Message to ${name}`);
  box.placeholder = `Message to ${name}`;
  fillBox(front.draft);
  refuse(front.problem);
  toggleRooms(false);
  log.open(front);
  show();
}

function leave(name) {
  joined.get(name).leave();
  joined.delete(name);
  if (front.name !== name) return showRooms();
  front = null;
  open([...joined.keys()].at(-1) ?? ROOMS[0]);
}

/** Whether one sees what comes into a room now. */
function isSeen(room) {
  return room === front && log.isPinned && document.visibilityState === "visible";
}

/** Something in a room has moved. */
function moved(room) {
  if (room === front) {
    log.render();
    show();
  } else showRooms();
}

/** Shows all of the room in front but its messages. */
function show() {
  const { line, state } = front;
  const isClosed = line.status === "closed";
  $("notice").hidden = !isClosed;
  setText($("notice"), isClosed ? `There is no chat here: ${reasonOf(line)}` : "");
  // Where there never was a chat, nothing of it is shown.
  for (const id of ["chat", "status"]) $(id).hidden = isClosed && !front.isLoaded;
  if (line.status === "live" && front.problem === OFFLINE) refuse(ONLINE_AGAIN);
  $("log").classList.toggle("offline", line.status !== "live");
  setText($("you"), line.userId ?? user);
  setText($("typing"), typingText(state.typing));
  showMembers(state.members, line.userId);
  showRooms();
}

/** Why a room is closed, as a sentence. */
function reasonOf({ error }) {
  const reason = (error ?? "the room is closed").replace(/`([^`]*)`/g, "“$1”");
  return /[.!?]$/.test(reason) ? reason : `${reason}.`;
}

function showRooms() {
  roomList.show([...new Set([...ROOMS, ...joined.keys(), ...found])], joined, front);
}

/** Looks for rooms in which people are, or in which something was said lately. */
async function discover() {
  try {
    const status = await (await fetch("/cdc/status")).json();
    if (!status.tables.includes("messages")) return;
    const since = Math.max(status.firstLsn - 1, status.headLsn - LOOK_BACK_LSNS);
    const query = new URLSearchParams({
      table: "messages",
      columns: "room",
      since: `${status.epoch}:${since}`,
      limit: String(LOOK_BACK_LSNS),
    });
    const answer = await fetch(`/cdc/changes?${query}`);
    const changes = answer.ok ? (await answer.json()).changes.reverse() : [];
    const said = changes.map(({ newValue }) => newValue?.room);
    const names = new Set([...Object.keys(status.rooms ?? {}), ...said]);
    found = [...names]
      .filter((name) => typeof name === "string" && name)
      .slice(0, FOUND_MAX)
      .sort();
    if (front) showRooms();
  } catch (error) {
    // The hub is gone, which the status says, or has no time. Rooms can be joined without this.
    console.info("rooms are not looked for now:", error.message);
  }
}

function toggleRooms(isOpen) {
  $("rooms-toggle").setAttribute("aria-expanded", String(isOpen));
}

// Writing.

function refuse(reason) {
  if (front) front.problem = reason;
  setText($("problem"), reason);
  $("problem").classList.toggle("soft", reason === ONLINE_AGAIN);
}

/** On a touch screen the keyboard would cover what one came to read. */
function focusBox() {
  if (matchMedia("(hover: hover)").matches) box.focus();
}

function fillBox(text) {
  box.value = text;
  typed();
}

/** What is in the box has changed. */
function typed() {
  fitBox();
  $("send").disabled = !box.value.trim();
  keepDraft(`chat ${front.name}`, box.value);
}

/** As high as what is in it. */
function fitBox() {
  box.style.height = "auto";
  const edges = box.offsetHeight - box.clientHeight;
  box.style.height = `${Math.min(box.scrollHeight + edges, BOX_PX_MAX)}px`;
}

async function send() {
  const room = front;
  const text = box.value.trim().toWellFormed();
  if (!text) return;
  const length = [...text].length;
  if (length > MESSAGE_CHARS_MAX) {
    const [has, most] = [length, MESSAGE_CHARS_MAX].map((each) => numberFormat.format(each));
    refuse(`Not sent: it has ${has} characters, and a message has at most ${most}.`);
    return;
  }
  if (room.line.status !== "live") {
    refuse(room.line.status === "closed" ? `Not sent: ${reasonOf(room.line)}` : OFFLINE);
    return;
  }
  refuse("");
  fillBox("");
  room.marker = null;
  log.toEnd();
  try {
    await room.line.send(text);
  } catch (error) {
    takeBack(room.name, text, `Not sent: ${error.message}`);
  }
}

/** What could not be sent is in the box again, before anything that was typed since. */
function takeBack(name, text, reason) {
  const room = joined.get(name);
  if (!room) return;
  const isFront = room === front;
  const typed = isFront ? box.value : room.draft;
  const both = typed.trim() ? `${text}\n${typed}` : text;
  if (isFront) {
    fillBox(both);
    refuse(reason);
  } else {
    room.draft = both;
    keepDraft(`chat ${name}`, both);
    room.problem = reason;
  }
}

box.addEventListener("input", () => {
  typed();
  if (!box.value.trim()) refuse("");
  front.line.typing(box.value.trim() !== "");
});
box.addEventListener("keydown", (event) => {
  // While an input method composes a word, Enter belongs to it (229 in browsers that don't say so).
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  send();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
  box.focus();
});
$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = cleaned($("join-name").value, ROOM_CHARS_MAX);
  if (!name) return;
  $("join-name").value = "";
  joinTyped();
  open(name);
  focusBox();
});
function joinTyped() {
  $("join-button").disabled = !cleaned($("join-name").value, ROOM_CHARS_MAX);
}
$("join-name").addEventListener("input", joinTyped);
// What a browser filled in again after a reload.
joinTyped();
$("rooms-toggle").addEventListener("click", (event) => {
  toggleRooms(event.currentTarget.getAttribute("aria-expanded") === "false");
});
onReadElsewhere(() => {
  for (const room of joined.values()) room.readElsewhere();
  if (front) show();
});
addEventListener("popstate", () => open(roomAsked(), { replace: true }));
addEventListener("resize", fitBox);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState !== "visible" || !front) return;
  log.scrolled();
  show();
  discover();
});

// Who one is.

/** Asks for a name; whoever waves it off keeps the one that is there. */
async function askName(present) {
  $("name").value = present;
  nameTyped();
  $("cancel").hidden = user === null;
  setText($("take-name"), user === null ? "Start chatting" : "Change name");
  who.returnValue = "";
  who.showModal();
  $("name").select();
  await new Promise((closed) => who.addEventListener("close", closed, { once: true }));
  return who.returnValue ? cleaned($("name").value, NAME_CHARS_MAX) : present;
}

function nameTyped() {
  const isBlank = !cleaned($("name").value, NAME_CHARS_MAX);
  $("name").setCustomValidity(isBlank ? "A name is required" : "");
}
$("name").addEventListener("input", nameTyped);

function become(name) {
  user = name;
  rememberName(name);
  for (const { name: room, draft, problem, close } of [...joined.values()]) {
    close();
    joined.set(room, Object.assign(new Joined(room, user, page), { draft, problem }));
  }
}

$("rename").addEventListener("click", async () => {
  const name = await askName(user);
  if (name === user) return;
  const room = front.name;
  front.draft = box.value;
  // The address would bring back the old name.
  const address = new URL(location.href);
  address.searchParams.delete("user");
  history.replaceState(null, "", address);
  front = null;
  become(name);
  open(room);
});

const asked = (name) => new URLSearchParams(location.search).get(name) ?? "";
const roomAsked = () => cleaned(asked("room"), ROOM_CHARS_MAX) || ROOMS[0];

connection().onStatus((status) => status === "live" && discover());
const given = cleaned(asked("user") || recallName() || "", NAME_CHARS_MAX);
const guest = `guest-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36).slice(-4)}`;
become(given || (await askName(guest)));
for (const name of recallJoined()) joined.set(name, new Joined(name, user, page));
open(roomAsked(), { replace: true });
focusBox();

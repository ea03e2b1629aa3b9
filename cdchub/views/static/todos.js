// The todo page. Whatever one does shows at once and is then sent; what fails is taken back, and the page
// says why. What others do comes through the change stream.
import { collection } from "/cdc/client.js";
import { keepDraft, recallDraft } from "./drafts.js";
import { showStatus } from "./status.js";
import { UNREACHABLE, inTurn, newId, reorder, request, todoPath } from "./todos-api.js";
import { TodoList } from "./todos-list.js";

const UNDO_MS = 8000;
const EMPTY_TEXT = {
  all: "Nothing to do. Add something above.",
  active: "Nothing left to do.",
  completed: "Nothing completed yet.",
};

const $ = (id) => document.getElementById(id);
const titleBox = $("title");
const problem = $("problem");
const filterButtons = [...document.querySelectorAll("[data-filter]")];

const live = collection({
  table: "todos",
  // The id where there is one, so that a todo of ours is known before the stream tells of it.
  key: (row, change) => row?.id ?? JSON.stringify(change.key),
});
let filter = "all";
let editedBefore = recallDraft("edit"); // what was in an editor when the page was reloaded
let addFailed = null; // {id, typed}: what is back in the box because it could not be added
const waiting = []; // and what can't be back yet, because something else is in it

const list = new TodoList($("todos"), { render, toggle, rename, remove, place, refuse });

/** Says why something did not work; an empty reason takes that back. */
function refuse(reason) {
  problem.textContent = reason;
}

/** Waits for an action and shows why it failed, if it does. Says whether it went well. */
async function attempt(action) {
  try {
    await action;
    refuse("");
    return true;
  } catch (error) {
    refuse(error.message);
    return false;
  }
}

function byPosition(a, b) {
  const byId = a.id === b.id ? 0 : a.id < b.id ? -1 : 1;
  return a.position - b.position || a.created_at - b.created_at || byId;
}

const sorted = () => live.data.toSorted(byPosition);
const find = (id) => live.data.find((todo) => todo.id === id);

function isShown(todo) {
  const fits = filter === "all" || Boolean(todo.completed) === (filter === "completed");
  return fits || list.keeps(todo);
}

function render() {
  const todos = sorted();
  if (addFailed && titleBox.value === addFailed.typed && find(addFailed.id)) {
    takeFromBox(); // It was stored after all, and the stream told so later.
    refuse("");
  }
  const shown = todos.filter(isShown);
  list.show(todos, shown);
  if (editedBefore && live.loaded) {
    const [id, typed] = JSON.parse(editedBefore);
    editedBefore = "";
    list.editAgain(id, typed);
  }
  const active = todos.filter((todo) => !todo.completed).length;
  const left = live.loaded ? `${active} ${active === 1 ? "item" : "items"} left` : "\u00a0";
  if ($("left").textContent !== left) $("left").textContent = left;
  const clear = $("clear");
  if (active === todos.length && clear.matches(":focus-visible")) titleBox.focus();
  clear.hidden = active === todos.length;
  $("empty").hidden = !live.loaded || shown.length > 0;
  $("empty").textContent = EMPTY_TEXT[filter];
}

// Adding.

function takeFromBox() {
  addFailed = waiting.shift() ?? null;
  titleBox.value = addFailed?.typed ?? "";
  typed();
}

/** What is in the box has changed. A reload may end a request: its id says whether it was stored. */
function typed() {
  const text = titleBox.value;
  const id = addFailed?.typed === text ? addFailed.id : null;
  keepDraft("title", text && JSON.stringify([id, text]));
  updateAddButton();
}

function recallTitle() {
  const [id, text] = JSON.parse(recallDraft("title") || "[null, \"\"]");
  titleBox.value ||= text;
  if (id !== null) addFailed = { id, typed: text };
  updateAddButton();
}

function updateAddButton() {
  $("add-button").disabled = !titleBox.value.trim();
}

async function add(text) {
  // What is sent once more keeps its id: if it was stored after all, it is not stored twice.
  const id = addFailed?.typed === text ? addFailed.id : newId();
  const now = Date.now();
  const position = (sorted().at(-1)?.position ?? -1) + 1;
  const title = text.trim();
  const todo = { id, title, completed: 0, position, created_at: now, updated_at: now };
  takeFromBox();
  // One sees what one has added.
  if (filter === "completed") choose("all");
  const send = () => inTurn(() => request("POST", "/api/todos", { id, title: text }));
  const added = attempt(live.insert(todo, send));
  list.reveal(id);
  if (await added) return;
  if (find(id)) refuse(""); // It was stored after all: only the answer was lost.
  else if (titleBox.value) {
    waiting.push({ id, typed: text });
    refuse(`${problem.textContent} “${text}” comes back when the box is free.`);
  } else {
    addFailed = { id, typed: text };
    titleBox.value = text;
    typed();
  }
}

// What one does to a todo.

function toggle(id, completed) {
  const send = () => inTurn(() => request("PATCH", todoPath(id), { completed }));
  attempt(live.update(id, { completed: Number(completed) }, send));
}

async function rename(id, typed, before) {
  const theirs = find(id)?.title;
  const send = () => inTurn(() => request("PATCH", todoPath(id), { title: typed }));
  if (await attempt(live.update(id, { title: typed.trim() }, send))) {
    const isOther = theirs !== undefined && String(theirs).trim() !== before;
    if (isOther) refuse(`Somebody else had changed it to “${theirs}” meanwhile.`);
    return;
  }
  if (!list.editAgain(id, typed)) refuse(`${problem.textContent} You had typed: “${typed}”`);
}

async function remove(id) {
  const todo = find(id);
  const withdraw = offerUndo([todo]);
  const send = () => inTurn(() => request("DELETE", todoPath(id)));
  // Where only the answer was lost, the todo is gone all the same.
  if (!(await attempt(live.delete(id, send))) && find(id)) withdraw();
}

async function clearCompleted() {
  const gone = live.data.filter((todo) => todo.completed);
  const withdraw = offerUndo(gone);
  const edits = gone
    .filter((todo) => todo.id !== null)
    .map((todo) => ({ key: todo.id, deleted: true }));
  const send = () => inTurn(() => request("POST", "/api/todos/clear-completed"));
  if (!(await attempt(live.optimistic(edits, send)))) withdraw();
}

/** Stores the order in which the shown todos now are. Those that the filter hides keep their places. */
function place(shown, moved) {
  const before = shown.slice(0, shown.indexOf(moved)).findLast((todo) => todo.id !== null);
  const after = shown.slice(shown.indexOf(moved) + 1).find((todo) => todo.id !== null);
  const present = sorted().map((todo) => todo.id).filter((id) => id !== null);
  const ids = present.filter((id) => id !== moved.id);
  const index = before ? ids.indexOf(before.id) + 1 : after ? ids.indexOf(after.id) : 0;
  ids.splice(index, 0, moved.id);
  if (ids.indexOf(moved.id) === present.indexOf(moved.id)) return;
  const positions = new Map(ids.map((id, position) => [id, position]));
  const edits = live.data
    .filter((todo) => todo.id !== null && todo.position !== positions.get(todo.id))
    .map((todo) => ({ key: todo.id, patch: { position: positions.get(todo.id) } }));
  $("moved").textContent =
    `“${moved.title}” is now at place ${shown.indexOf(moved) + 1} of ${shown.length}.`;
  attempt(live.optimistic(edits, () => inTurn(() => reorder(ids, moved.id))));
}

// Undo.

let undoable = [];
let undoTimer = 0;

/**
 * Offers for a while to bring todos back, and with them those that are offered already: whoever clicks
 * once too often has deleted two. Returns a function that takes the offer back.
 */
function offerUndo(todos) {
  undoable = [...undoable, ...todos];
  showUndo();
  return () => {
    undoable = undoable.filter((todo) => !todos.includes(todo));
    showUndo();
  };
}

function showUndo() {
  clearTimeout(undoTimer);
  $("undo").hidden = undoable.length === 0;
  if (undoable.length === 0) return;
  const what = undoable.length === 1 ? `“${undoable[0].title}”` : `${undoable.length} todos`;
  $("undo-text").textContent = `Deleted ${what}.`;
  undoTimer = setTimeout(function expire() {
    // Nobody's focus vanishes under their fingers.
    if ($("undo").matches(":hover, :focus-within")) undoTimer = setTimeout(expire, UNDO_MS);
    else endUndo();
  }, UNDO_MS);
}

function endUndo() {
  undoable = [];
  showUndo();
}

async function undo() {
  const todos = undoable.map((todo) => ({ ...todo, id: todo.id ?? newId() }));
  endUndo();
  const restored = todos.map((todo) => {
    const { id, title, position } = todo;
    const body = { id, title, position, completed: Boolean(todo.completed) };
    return attempt(live.insert(todo, () => inTurn(() => request("POST", "/api/todos", body))));
  });
  render();
  if (!list.focus(todos[0].id)) filterButtons.find((each) => each.ariaPressed === "true").focus();
  const went = await Promise.all(restored);
  const failed = todos.filter((todo, index) => !went[index] && !find(todo.id));
  if (failed.length > 0) offerUndo(failed);
}

// The page around it.

$("add").addEventListener("submit", (event) => {
  event.preventDefault();
  if (titleBox.value.trim()) add(titleBox.value);
  else refuse("Title is required");
  titleBox.focus();
});
titleBox.addEventListener("input", typed);
$("clear").addEventListener("click", clearCompleted);
$("undo-button").addEventListener("click", undo);
document.addEventListener("keydown", (event) => {
  const wanted = (event.ctrlKey || event.metaKey) && !event.shiftKey && event.key === "z";
  // A text box has an undo of its own.
  if (!wanted || undoable.length === 0 || event.target.matches(".field")) return;
  event.preventDefault();
  undo();
});
function choose(wanted) {
  filter = wanted;
  for (const each of filterButtons)
    each.setAttribute("aria-pressed", String(each.dataset.filter === wanted));
  // So that a reload shows the same.
  history.replaceState(null, "", wanted === "all" ? location.pathname : `#${wanted}`);
  render();
}
for (const button of filterButtons) {
  button.addEventListener("click", () => choose(button.dataset.filter));
}

recallTitle();
if (location.hash.slice(1) in EMPTY_TEXT) choose(location.hash.slice(1));
live.subscribe(render);
showStatus($("status"), live);
live.onStatus((status) => {
  if (status === "live" && problem.textContent === UNREACHABLE) refuse("");
});
explainIfMissing();

async function explainIfMissing() {
  const answer = await fetch("/api/todos").catch(() => null);
  if (answer?.status !== 404) return;
  live.close();
  const { detail } = await answer.json();
  $("notice").textContent = `${detail} Run “cdchub demo” for a database that has it.`;
  $("notice").hidden = false;
  for (const id of ["add", "status", "empty", "below", "hint"]) $(id).hidden = true;
}

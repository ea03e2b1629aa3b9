// The todo page. What it shows comes from the change stream only; what it does goes to the API, and
// comes back through the stream like anybody's change.
import { liveTable } from "./live.js";

const STATUS_TEXT = {
  connecting: "Connecting…",
  live: "Live",
  reconnecting: "Connection lost. Reconnecting…",
};
const EMPTY_TEXT = {
  all: "Nothing to do. Add something above.",
  active: "Nothing left to do.",
  completed: "Nothing completed yet.",
};

const $ = (id) => document.getElementById(id);
const list = $("todos");
const titleBox = $("title");
const addButton = $("add-button");
const problem = $("problem");
const filterButtons = [...document.querySelectorAll("[data-filter]")];

let todos = [];
let loaded = false;
let filter = "all";
const items = new Map(); // key → <li>. The key and not the id, because ids may be NULL in SQLite.

const byPosition = (a, b) =>
  a.position - b.position || a.created_at - b.created_at || (a.id < b.id ? -1 : 1);

async function send(method, path, body) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Error("The hub can't be reached. Try again later.");
  }
  if (response.ok) return;
  const answer = await response.json().catch(() => ({}));
  const reasons = Object.values(answer.errors ?? {});
  throw new Error(reasons.join(" ") || answer.detail || `The hub answered ${response.status}.`);
}

/** Runs an action and shows why it failed, if it does. Says whether it went well. */
async function attempt(action) {
  try {
    await action();
    problem.textContent = "";
    return true;
  } catch (error) {
    problem.textContent = error.message;
    return false;
  }
}

// The list.

function createItem(id) {
  const item = document.createElement("li");
  item.dataset.id = id;
  const check = document.createElement("input");
  check.type = "checkbox";
  check.addEventListener("change", async () => {
    const wanted = check.checked;
    const went = await attempt(() => send("PATCH", itemPath(id), { completed: wanted }));
    if (!went) check.checked = !wanted;
  });
  const title = document.createElement("span");
  title.className = "title";
  title.addEventListener("dblclick", () => edit(item));
  const editButton = document.createElement("button");
  editButton.type = "button";
  editButton.className = "icon edit";
  editButton.textContent = "✎";
  editButton.addEventListener("click", () => edit(item));
  const deleteButton = document.createElement("button");
  deleteButton.type = "button";
  deleteButton.className = "icon delete";
  deleteButton.textContent = "×";
  deleteButton.addEventListener("click", () => attempt(() => send("DELETE", itemPath(id))));
  item.append(check, title, editButton, deleteButton);
  return item;
}

const itemPath = (id) => `/api/todos/${encodeURIComponent(id)}`;

function updateItem(item, todo) {
  const completed = Boolean(todo.completed);
  const [check, title, editButton, deleteButton] = ["input", ".title", ".edit", ".delete"].map(
    (selector) => item.querySelector(selector),
  );
  item.classList.toggle("completed", completed);
  check.checked = completed;
  check.setAttribute("aria-label", todo.title);
  if (title.textContent !== todo.title) title.textContent = todo.title;
  editButton.setAttribute("aria-label", `Edit ${todo.title}`);
  editButton.title = "Edit";
  deleteButton.setAttribute("aria-label", `Delete ${todo.title}`);
  deleteButton.title = "Delete";
}

function edit(item) {
  if (item.querySelector(".editor")) return;
  const title = item.querySelector(".title");
  const box = document.createElement("input");
  box.className = "editor";
  box.maxLength = 200;
  box.value = title.textContent;
  box.setAttribute("aria-label", "Title");
  const before = box.value;
  let over = false;

  const close = () => {
    over = true;
    const hadFocus = document.activeElement === box;
    box.remove();
    item.classList.remove("editing");
    if (hadFocus) item.querySelector(".edit").focus();
    render(); // The filter may hide it now.
  };
  const save = async () => {
    // Taken off the page with its todo, it still gets a blur; render() has said what happened.
    if (over || ![...items.values()].includes(item)) return;
    if (box.value.trim() === before) return close();
    over = true;
    if (await attempt(() => send("PATCH", itemPath(item.dataset.id), { title: box.value }))) close();
    else {
      // What was typed stays where it is, to be mended or sent again.
      over = false;
      box.focus();
    }
  };
  box.addEventListener("keydown", (event) => {
    // The Enter that ends the input of, say, a Japanese word belongs to that word.
    if (event.key === "Enter" && !event.isComposing) save();
    if (event.key === "Escape") {
      problem.textContent = "";
      close();
    }
  });
  box.addEventListener("blur", save);
  item.classList.add("editing");
  title.after(box);
  box.focus();
  box.select();
}

function isShown(todo) {
  if (filter === "all" || Boolean(todo.completed) === (filter === "completed")) return true;
  // Nobody's editor vanishes because somebody else ticked the todo.
  return items.get(todo.key)?.classList.contains("editing") ?? false;
}

function render() {
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  const byKeyboard = focused?.matches(":focus-visible");
  const focusedItem = focused?.closest("li");
  const before = [...list.children];

  const keys = new Set(todos.map((todo) => todo.key));
  for (const [key, item] of items) {
    if (!keys.has(key)) {
      const typed = item.querySelector(".editor")?.value;
      if (typed) problem.textContent = `Somebody deleted the todo that you were editing: “${typed}”`;
      items.delete(key);
      item.remove();
    }
  }
  const shown = todos.filter(isShown);
  let place = list.firstElementChild;
  for (const todo of shown) {
    const item = items.get(todo.key) ?? createItem(todo.id);
    items.set(todo.key, item);
    updateItem(item, todo);
    if (item === focusedItem && item.isConnected) {
      // Moving a node takes its focus away and ends an edit: here the others make way.
      while (place !== item) {
        const next = place.nextElementSibling;
        list.append(place);
        place = next;
      }
    }
    if (item === place) place = place.nextElementSibling;
    else list.insertBefore(item, place);
  }
  while (place) {
    const next = place.nextElementSibling;
    place.remove();
    place = next;
  }
  if (byKeyboard && !focused.isConnected) focusNear(before, focusedItem);
  const active = todos.filter((todo) => !todo.completed).length;
  $("left").textContent = loaded ? `${active} ${active === 1 ? "item" : "items"} left` : "\u00a0";
  const clear = $("clear");
  if (active === todos.length && clear.matches(":focus-visible")) titleBox.focus();
  clear.hidden = active === todos.length;
  $("empty").hidden = !loaded || shown.length > 0;
  $("empty").textContent = EMPTY_TEXT[filter];
}

/** Whoever works with the keyboard goes on where the row was, not at the top of the page. */
function focusNear(itemsBefore, gone) {
  const place = itemsBefore.indexOf(gone);
  const near = [...itemsBefore.slice(place), ...itemsBefore.slice(0, place).reverse()];
  const item = near.find((each) => each.isConnected);
  (item?.querySelector("input") ?? titleBox).focus();
}

// The page around it.

$("add").addEventListener("submit", async (event) => {
  event.preventDefault();
  const typed = titleBox.value;
  if (!typed.trim()) {
    problem.textContent = "Title is required";
    return;
  }
  addButton.disabled = true;
  const went = await attempt(() => send("POST", "/api/todos", { title: typed }));
  // Whoever typed on meanwhile keeps what they typed.
  if (went && titleBox.value === typed) titleBox.value = "";
  updateAddButton();
  titleBox.focus();
});

function updateAddButton() {
  addButton.disabled = !titleBox.value.trim();
}

titleBox.addEventListener("input", updateAddButton);
$("clear").addEventListener("click", () => attempt(() => send("POST", "/api/todos/clear-completed")));
for (const button of filterButtons) {
  button.addEventListener("click", () => {
    filter = button.dataset.filter;
    for (const each of filterButtons) each.setAttribute("aria-pressed", String(each === button));
    render();
  });
}

async function start() {
  updateAddButton();
  const answer = await fetch("/api/todos").catch(() => null);
  if (answer?.status === 404) {
    const { detail } = await answer.json();
    $("notice").textContent = `${detail} Run “cdchub demo” for a database that has it.`;
    $("notice").hidden = false;
    for (const id of ["add", "status", "below", "hint"]) $(id).hidden = true;
    return;
  }
  const live = liveTable({
    table: "todos",
    onRows: (rows) => {
      todos = [...rows].map(([key, row]) => ({ ...row, key })).sort(byPosition);
      loaded = true;
      render();
    },
    onStatus: (status) => {
      $("status").dataset.status = status;
      $("status").textContent = STATUS_TEXT[status];
    },
  });
  addEventListener("pagehide", live.close);
  addEventListener("pageshow", (event) => {
    // Back from the browser's page cache: the stream was closed when the page was left.
    if (event.persisted) location.reload();
  });
}

start();

// The list on the todo page: a row for each todo that is shown, its editor, and the focus, which stays
// where it was whatever others do to the list.
import { keepDraft } from "./drafts.js";
import { Sorter } from "./todos-drag.js";
import { glide } from "./todos-motion.js";

// An id may be NULL in SQLite; then the row object itself tells one such todo from another.
const keyOf = (todo) => todo.id ?? todo;

function tool(className, sign, does, title, run = null) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = `icon ${className}`;
  button.textContent = sign;
  button.dataset.does = does;
  button.title = title;
  button.addEventListener("click", run);
  return button;
}

export class TodoList {
  #list;
  #actions;
  #sorter;
  #rows = new Map(); // by keyOf(todo): also those that the filter hides
  #shown = [];
  #filled = false;

  /**
   * @param {HTMLElement} list
   * @param {{render: () => void, toggle: (id: string, completed: boolean) => void,
   *          rename: (id: string, typed: string, before: string) => void, refuse: (reason: string) => void,
   *          remove: (id: string) => void, place: (todos: object[], moved: object) => void}} actions
   *   `render` calls `show` with what there is now; `place` gets the shown todos in their new order
   */
  constructor(list, actions) {
    this.#list = list;
    this.#actions = actions;
    this.#sorter = new Sorter(list, actions.render, (row, place) => {
      const moved = this.#shown.find((todo) => this.#rowOf(todo) === row);
      if (!moved) return;
      const others = this.#shown.filter((todo) => todo !== moved);
      actions.place(others.toSpliced(place, 0, moved), moved);
    });
  }

  #rowOf(todo) {
    return this.#rows.get(keyOf(todo));
  }

  /** Whether it stays whatever the filter says: nobody's editor or drag ends because of others. */
  keeps(todo) {
    const row = this.#rowOf(todo);
    return row !== undefined && (row.classList.contains("editing") || this.#sorter.holds(row));
  }

  /**
   * @param {object[]} todos all there are
   * @param {object[]} shown those to show, in order
   */
  show(todos, shown) {
    this.#shown = shown;
    this.#forget(new Set(todos.map(keyOf)));
    const focused = this.#list.contains(document.activeElement) ? document.activeElement : null;
    const byKeyboard = focused?.matches(":focus-visible");
    const focusedRow = focused?.closest("li");
    const before = [...this.#list.children];
    const place = () => this.#place(this.#sorter.arrange(shown, (todo) => this.#rowOf(todo)), focusedRow);
    if (this.#filled) glide(this.#list, place, (row) => this.#sorter.holds(row));
    else place();
    this.#filled ||= shown.length > 0;
    this.#sorter.rendered();
    if (byKeyboard && !focused.isConnected) this.#focusNear(before, focusedRow);
  }

  /** Says whether the todo is shown, so that it could get the focus. */
  focus(id) {
    const row = this.#rows.get(id);
    row?.querySelector("input").focus();
    return row?.isConnected ?? false;
  }

  /** Opens the editor again with what could not be saved. Says whether it could. */
  editAgain(id, typed) {
    const row = this.#rows.get(id);
    if (!row || row.classList.contains("editing")) return false;
    const free = document.activeElement === document.body || row.contains(document.activeElement);
    this.#edit(row, id, { typed, focus: free });
    return true;
  }

  /** Brings a row into sight, if it is shown. */
  reveal(id) {
    const row = this.#rows.get(id);
    if (row?.isConnected) row.scrollIntoView({ block: "nearest" });
  }

  #forget(keys) {
    for (const [key, row] of this.#rows) {
      if (keys.has(key)) continue;
      this.#rows.delete(key);
      const typed = row.querySelector(".editor")?.value;
      if (typed) {
        this.#actions.refuse(`Somebody deleted the todo that you were editing: “${typed}”`);
      } else if (this.#sorter.holds(row)) {
        this.#actions.refuse("Somebody deleted the todo that you were moving.");
      }
    }
  }

  #place(shown, focusedRow) {
    let place = this.#list.firstElementChild;
    for (const todo of shown) {
      const row = this.#rowOf(todo) ?? this.#create(todo);
      this.#rows.set(keyOf(todo), row);
      this.#update(row, todo);
      if (row === focusedRow && row.isConnected) {
        // Moving a node takes its focus away and ends an edit: here the others make way.
        while (place !== row) {
          const next = place.nextElementSibling;
          this.#list.append(place);
          place = next;
        }
      }
      if (row === place) place = place.nextElementSibling;
      else this.#list.insertBefore(row, place);
    }
    while (place) {
      const next = place.nextElementSibling;
      place.remove();
      place = next;
    }
  }

  #create(todo) {
    const { id } = todo;
    const row = document.createElement("li");
    row.className = "todo";
    const check = document.createElement("input");
    check.type = "checkbox";
    check.addEventListener("change", () => this.#actions.toggle(id, check.checked));
    const title = document.createElement("span");
    title.className = "title";
    title.dir = "auto";
    row.append(check, title);
    if (id === null) {
      // The API knows a todo by its id; without one it can only be looked at.
      check.disabled = true;
      return row;
    }
    row.dataset.id = id;
    title.addEventListener("dblclick", () => this.#edit(row, id));
    const tools = document.createElement("span");
    tools.className = "tools";
    tools.append(
      tool("edit", "✎", "Edit", "Edit", () => this.#edit(row, id)),
      tool("delete", "×", "Delete", "Delete", () => this.#actions.remove(id)),
      tool("handle", "⠿", "Move", "Drag, or press ↑ or ↓"),
    );
    row.append(tools);
    return row;
  }

  #update(row, todo) {
    const title = row.querySelector(".title");
    const check = row.querySelector("input");
    const completed = Boolean(todo.completed);
    // Whoever writes past the page may store anything there.
    const text = typeof todo.title === "object" ? JSON.stringify(todo.title) : String(todo.title);
    row.classList.toggle("completed", completed);
    if (!this.#sorter.holds(row)) row.style.transform = "";
    check.checked = completed;
    if (check.getAttribute("aria-label") === text) return;
    title.textContent = text;
    check.setAttribute("aria-label", text);
    for (const tool of row.querySelectorAll(".icon")) {
      tool.setAttribute("aria-label", `${tool.dataset.does} ${text}`);
    }
  }

  #edit(row, id, { typed = null, focus = true } = {}) {
    if (row.classList.contains("editing")) return;
    const title = row.querySelector(".title");
    const box = document.createElement("input");
    box.className = "field editor";
    box.dir = "auto";
    box.maxLength = 200;
    box.setAttribute("aria-label", "Title");
    box.value = title.textContent;
    const before = box.value.trim();
    if (typed !== null) box.value = typed;
    let over = false;

    const close = () => {
      over = true;
      keepDraft("edit", "");
      const hadFocus = document.activeElement === box;
      box.remove();
      row.classList.remove("editing");
      if (hadFocus) row.querySelector(".edit").focus();
    };
    const save = () => {
      // Taken off the page with its todo, it still gets a blur; `#forget` has said what happened.
      if (over || this.#rows.get(id) !== row) return;
      const wanted = box.value.trim();
      if (!wanted) return this.#actions.refuse("Title is required");
      close();
      if (wanted !== before) this.#actions.rename(id, box.value, before);
      this.#actions.render(); // The filter may hide it now.
    };
    box.addEventListener("input", () => keepDraft("edit", JSON.stringify([id, box.value])));
    box.addEventListener("keydown", (event) => {
      // The Enter that ends the input of, say, a Japanese word belongs to that word.
      if (event.key === "Enter" && !event.isComposing) {
        event.preventDefault(); // else it would press the button that has the focus next
        save();
      }
      if (event.key === "Escape") {
        this.#actions.refuse("");
        close();
        this.#actions.render();
      }
    });
    box.addEventListener("blur", save);
    row.classList.add("editing");
    title.after(box);
    if (!row.isConnected) this.#actions.render();
    if (!focus) return;
    box.focus();
    if (typed === null) box.select();
  }

  /** Whoever works with the keyboard goes on where the row was, not at the top of the page. */
  #focusNear(rowsBefore, gone) {
    const place = rowsBefore.indexOf(gone);
    const near = [...rowsBefore.slice(place), ...rowsBefore.slice(0, place).reverse()];
    const row = near.find((each) => each.isConnected);
    (row?.querySelector("input") ?? document.getElementById("title")).focus();
  }
}

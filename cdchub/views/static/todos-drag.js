// Moving a row of a list: with the mouse by any part of it, with a finger or pen by its handle, with the
// keyboard by Alt and an arrow key (on the handle the arrow alone will do).
//
// While a row is held, the list shows where it would go; nothing is sent before the drop. The list may
// change meanwhile: the held row's place is found anew from where the pointer is.

const START_PX = 5; // Less is a click by an unsteady hand.
const OUTSIDE_PX = 24; // As far beside the list is still meant for its edge.
const EDGE_PX = 56; // As near to the window's edge, it scrolls.
const SCROLL_PX = 8;

export class Sorter {
  #list;
  #render;
  #move;
  #pressed = null; // the pointer that is down: where it is, where it came from, what it holds where
  #row = null; // the row that is being dragged
  #place = null; // where it would go, among the rows that are shown; null is where it came from
  #controller = null;

  /**
   * @param {HTMLElement} list
   * @param {() => void} render shows the list again, in the order that `arrange` gives
   * @param {(row: HTMLElement, place: number) => void} move stores a new place
   */
  constructor(list, render, move) {
    this.#list = list;
    this.#render = render;
    this.#move = move;
    list.addEventListener("pointerdown", (event) => this.#press(event));
    list.addEventListener("keydown", (event) => this.#key(event));
  }

  /** @param {HTMLElement} row */
  holds(row) {
    return row === this.#row;
  }

  /**
   * The items in the order of the preview.
   *
   * @template T
   * @param {T[]} items
   * @param {(item: T) => HTMLElement | undefined} rowOf
   * @returns {T[]}
   */
  arrange(items, rowOf) {
    if (this.#place === null) return items;
    const held = items.find((item) => this.holds(rowOf(item)));
    if (!held) return items;
    return items.filter((item) => item !== held).toSpliced(this.#place, 0, held);
  }

  /** To be called when the list has been rendered. */
  rendered() {
    if (!this.#row) return;
    if (this.#row.isConnected) this.#follow();
    else this.#end();
  }

  #press(event) {
    if (this.#row) return;
    if (this.#pressed) this.#end();
    const row = event.target.closest("li");
    const handle = event.target.closest(".handle");
    const grabs = event.pointerType === "mouse" ? event.button === 0 : handle;
    if (!grabs || !row?.querySelector(".handle")) return;
    if (!handle && event.target.closest("button, input")) return;
    const { clientX: x, clientY: y, pointerId: pointer } = event;
    const grip = y - row.getBoundingClientRect().top;
    this.#pressed = { row, pointer, x, y, startX: x, startY: y, grip };
    this.#controller = new AbortController();
    const listen = (type, run) =>
      document.addEventListener(type, run, { signal: this.#controller.signal });
    const listenOurs = (type, run) =>
      listen(type, (heard) => heard.pointerId === pointer && run(heard));
    listenOurs("pointermove", (moved) => this.#moved(moved));
    listenOurs("pointerup", () => this.#drop());
    listenOurs("pointercancel", () => this.#end());
    // The handle loses the pointer too: to the list.
    listenOurs("lostpointercapture", (lost) => lost.target === this.#list && this.#end());
    listen("scroll", () => this.#row && this.#follow());
    listen("keydown", (pressed) => pressed.key === "Escape" && this.#end());
  }

  #moved(event) {
    // It was lifted where nobody told us: outside of the window, or in a menu.
    if (event.buttons === 0) return this.#end();
    const pressed = this.#pressed;
    pressed.x = event.clientX;
    pressed.y = event.clientY;
    if (!this.#row) {
      if (Math.hypot(pressed.x - pressed.startX, pressed.y - pressed.startY) < START_PX) return;
      this.#row = pressed.row;
      this.#row.classList.add("dragging");
      // The list, because a row that is moved would lose the pointer. Not before, because the clicks
      // of whoever has it go to the list.
      this.#list.setPointerCapture(pressed.pointer);
      this.#scroll();
    }
    this.#follow();
  }

  /** Puts the row under the pointer, and finds the place that is nearest to it. */
  #follow() {
    const list = this.#list.getBoundingClientRect();
    const { x, y, grip } = this.#pressed;
    const outside =
      x < list.left - OUTSIDE_PX || x > list.right + OUTSIDE_PX ||
      y < list.top - OUTSIDE_PX || y > list.bottom + OUTSIDE_PX;
    const top = Math.min(
      Math.max(y - grip - list.top - this.#list.clientTop, 0),
      this.#list.clientHeight - this.#row.offsetHeight,
    );
    const place = outside ? null : this.#nearest(top);
    if (place !== this.#place) {
      this.#place = place;
      this.#render(); // comes back here by `rendered`
      return;
    }
    const way = outside ? 0 : top - this.#row.offsetTop;
    this.#row.style.transform = way ? `translateY(${way}px)` : "";
  }

  #nearest(top) {
    const others = [...this.#list.children].filter((row) => row !== this.#row);
    // The tops that the row would have at each place, whatever the place that it has now.
    const tops = [0];
    for (const row of others) tops.push(tops.at(-1) + row.offsetHeight);
    const distances = tops.map((each) => Math.abs(each - top));
    return distances.indexOf(Math.min(...distances));
  }

  #scroll() {
    if (!this.#row) return;
    // Not away from where the row was taken, be that near the edge.
    const { y, startY } = this.#pressed;
    const up = y < Math.min(EDGE_PX, startY);
    const down = y > Math.max(innerHeight - EDGE_PX, startY);
    const way = (down - up) * SCROLL_PX;
    if (way) scrollBy({ top: way, behavior: "instant" });
    requestAnimationFrame(() => this.#scroll());
  }

  #drop() {
    const [row, place] = [this.#row, this.#place];
    if (row && place !== null) this.#move(row, place);
    this.#end();
  }

  #end() {
    const row = this.#row;
    const { pointer } = this.#pressed;
    this.#controller.abort();
    [this.#pressed, this.#row, this.#place] = [null, null, null];
    if (this.#list.hasPointerCapture(pointer)) this.#list.releasePointerCapture(pointer);
    if (!row) return;
    row.classList.remove("dragging");
    this.#render();
  }

  #key(event) {
    const way = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const handle = event.target.closest(".handle");
    if (!way || !(event.altKey || handle) || event.target.matches(".editor") || this.#row) return;
    event.preventDefault();
    const row = event.target.closest("li");
    const place = [...this.#list.children].indexOf(row) + way;
    if (row.querySelector(".handle") && this.#list.children[place]) this.#move(row, place);
  }
}

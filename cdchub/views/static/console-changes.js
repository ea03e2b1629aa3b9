// The list of recent changes: a stream, and the last of what came through it.
import { changeElement } from "./console-diff.js";

const SHOWN_MAX = 200;
// So many LSNs back a stream begins, that there is something to look at; of one table, further back.
const LOOK_BACK_LSNS = 50;
const LOOK_BACK_LSNS_OF_ONE = 2_000;
const BACKOFF_BASE_MS = 1_000;
const BACKOFF_MAX_MS = 30_000;

const $ = (id) => document.getElementById(id);
const numberFormat = new Intl.NumberFormat();
const epochOf = (position) => position.slice(0, position.lastIndexOf(":"));
const lsnOf = (position) => Number(position.slice(position.lastIndexOf(":") + 1));

/** The changes of one table, or of all (`*`), as an EventSource brings them. */
export class ChangeStream {
  /**
   * @param {object} hears
   * @param {(change: import("/cdc/client.js").Change) => void} hears.change
   * @param {(why: string) => void} hears.gap some changes will not come
   */
  constructor(hears) {
    this.hears = hears;
    this.status = "connecting";
    this.watchers = new Set();
    this.source = null;
    this.position = null;
    this.tries = 0;
  }

  onStatus(run) {
    this.watchers.add(run);
    run(this.status, null);
    return () => this.watchers.delete(run);
  }

  /** Begins with what was there lately. @param {{epoch: string, firstLsn: number, headLsn: number}} status */
  open(table, { epoch, firstLsn, headLsn }) {
    this.close();
    const back = table === "*" ? LOOK_BACK_LSNS : LOOK_BACK_LSNS_OF_ONE;
    const start = Math.max(firstLsn - 1, headLsn - back);
    const { position, table: before } = this;
    this.table = table;
    this.position = `${epoch}:${start}`;
    if (before === table && position) {
      // In another history the hub tells of the break.
      if (epochOf(position) !== epoch || lsnOf(position) >= start) this.position = position;
      else
        this.hears.gap(
          `${numberFormat.format(start - lsnOf(position))} changes were not looked at.`,
        );
    }
    this.connect();
  }

  connect() {
    const query = new URLSearchParams({ table: this.table, since: this.position });
    const source = new EventSource(`/cdc/stream?${query}`);
    this.source = source;
    source.onmessage = ({ data, lastEventId }) => {
      this.position = lastEventId;
      this.hears.change(JSON.parse(data));
    };
    source.addEventListener("caught-up", ({ data }) => {
      this.position = JSON.parse(data).position;
      this.tries = 0;
      this.become("live");
    });
    source.addEventListener("reset", ({ data }) => {
      const { reason, position } = JSON.parse(data);
      this.position = position;
      this.hears.gap(`History has a break here (${reason}).`);
    });
    source.onerror = () => {
      this.become(this.status === "connecting" ? "connecting" : "reconnecting");
      if (source.readyState !== EventSource.CLOSED) return;
      // A browser gives up for good after some errors, such as a proxy's 502.
      const wait_ms = Math.random() * Math.min(BACKOFF_MAX_MS, BACKOFF_BASE_MS * 2 ** this.tries++);
      this.timer = setTimeout(() => this.connect(), wait_ms);
    };
  }

  /** The hub is silent, which an EventSource doesn't notice. `open` goes on where this was. */
  lost() {
    this.close();
    this.become(this.status === "connecting" ? "connecting" : "reconnecting");
  }

  close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  become(status) {
    if (status === this.status) return;
    this.status = status;
    for (const run of this.watchers) run(status, null);
  }
}

/** What a stream brought, newest first. It stands still while one reads further down, or asks it to. */
export class ChangeList {
  constructor() {
    this.list = $("changes");
    this.scroller = $("scroller");
    this.button = $("pause");
    /** Makers of elements that are not shown yet, oldest first. @type {(() => HTMLElement)[]} */
    this.waiting = [];
    this.passed = 0;
    this.isPaused = false;
    this.isDue = false;
    this.button.addEventListener("click", () => this.pause(!this.isPaused));
    this.scroller.addEventListener("scroll", () => this.showSoon());
  }

  pause(isPaused) {
    this.isPaused = isPaused;
    this.button.setAttribute("aria-pressed", String(isPaused));
    this.button.textContent = isPaused ? "Resume" : "Pause";
    if (!isPaused) this.scroller.scrollTop = 0;
    this.showSoon();
  }

  clear() {
    this.waiting = [];
    this.passed = 0;
    this.list.replaceChildren();
    this.showSoon();
  }

  /** @param {import("/cdc/client.js").Change} change */
  add(change) {
    this.put(() => changeElement(change));
  }

  /** A line between changes. */
  note(text) {
    this.put(() => {
      const element = document.createElement("li");
      element.className = "soft gap";
      element.textContent = text;
      return element;
    });
  }

  put(make) {
    this.waiting.push(make);
    this.passed += 1;
    // Of a flood only what will be seen is kept.
    if (this.waiting.length > 2 * SHOWN_MAX) this.waiting = this.waiting.slice(-SHOWN_MAX);
    this.showSoon();
  }

  /** At most once a frame, however fast changes come. */
  showSoon() {
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      this.show();
    });
  }

  show() {
    const isHeld = this.isPaused || this.scroller.scrollTop > 8;
    if (!isHeld) {
      this.list.prepend(
        ...this.waiting
          .slice(-SHOWN_MAX)
          .reverse()
          .map((make) => make()),
      );
      this.waiting = [];
      this.passed = 0;
      while (this.list.children.length > SHOWN_MAX) this.list.lastElementChild.remove();
    }
    $("none").hidden = this.list.children.length > 0;
    const count = `${numberFormat.format(this.passed)} newer ${this.passed === 1 ? "change" : "changes"}`;
    const how = this.isPaused ? "Resume shows them." : "Scroll up to see them.";
    const text = isHeld && this.passed ? `${count}. ${how}` : "";
    if ($("held").textContent !== text) $("held").textContent = text;
  }
}

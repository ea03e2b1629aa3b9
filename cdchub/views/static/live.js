// One table, kept up to date by the change stream. Private to the todo page for now.
//
// Rows are held by key. A snapshot is collected beside the rows that are shown and replaces them when
// the stream has caught up, so that the page never shows half of one.

// A native EventSource gives up for good on some answers; then it is opened again by hand.
const REOPEN_MS = 3000;

/**
 * @param {{table: string, onRows: (rows: Map<string, object>) => void,
 *          onStatus: (status: "connecting" | "live" | "reconnecting") => void}} options
 * @returns {{close: () => void}}
 */
export function liveTable({ table, onRows, onStatus }) {
  let rows = new Map();
  let collecting = null;
  let lastId = "";
  let source = null;
  let timer = 0;
  let scheduled = false;

  function show() {
    // One rendering for all changes of one burst.
    if (scheduled) return;
    scheduled = true;
    queueMicrotask(() => {
      scheduled = false;
      onRows(rows);
    });
  }

  function apply(change) {
    const target = collecting ?? rows;
    const key = JSON.stringify(change.key);
    if (change.type === "DELETE") target.delete(key);
    else target.set(key, change.newValue);
    if (!collecting) show();
  }

  function open() {
    const url = new URL("/cdc/stream", location.href);
    url.searchParams.set("table", table);
    url.searchParams.set("snapshot", "1");
    if (lastId) url.searchParams.set("since", lastId);
    source = new EventSource(url);
    source.onmessage = (event) => {
      lastId = event.lastEventId;
      apply(JSON.parse(event.data));
    };
    source.addEventListener("snapshot", () => {
      lastId = "";
      collecting = new Map();
    });
    source.addEventListener("caught-up", (event) => {
      lastId = event.lastEventId;
      if (collecting) rows = collecting;
      collecting = null;
      // Not at `open`: a hub that refuses for now answers too, and nothing is live then.
      onStatus("live");
      show();
    });
    source.onerror = () => {
      onStatus("reconnecting");
      if (source.readyState === EventSource.CLOSED) {
        clearTimeout(timer);
        timer = setTimeout(open, REOPEN_MS * (0.5 + Math.random()));
      }
    };
  }

  onStatus("connecting");
  open();
  return {
    close() {
      clearTimeout(timer);
      source.close();
    },
  };
}

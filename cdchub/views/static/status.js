// The pill that says how a page is connected. Every live page has one:
// <p id="status" class="pill" role="status" data-status="connecting">Connecting…</p>

const TEXT = {
  connecting: "Connecting…",
  live: "Live",
  reconnecting: "Connection lost. Reconnecting…",
  closed: "Closed",
};

/**
 * @param {HTMLElement} element
 * @param {{onStatus: (run: (status: keyof typeof TEXT, error: string | null) => void) => () => void}} source
 *   a collection, a room, or the connection
 * @returns {() => void} stops showing
 */
export function showStatus(element, source) {
  return source.onStatus((status, error) => {
    element.dataset.status = status;
    // Unchanged text is not set again: a screen reader would say it again.
    if (element.textContent !== TEXT[status]) element.textContent = TEXT[status];
    element.title = error ?? "";
  });
}

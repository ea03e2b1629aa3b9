// How rows move: each glides from where it was to where it is (FLIP), new ones slide in, gone ones out.
// Only the compositor moves them; the list itself is right at once.

const DURATION_MS = 200;
// More than fit on a screen; measuring thousands for each change would cost more than it shows.
const ROWS_MAX = 300;

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const running = new WeakMap();

/**
 * Makes a change to a list's rows and shows the way there.
 *
 * @param {HTMLElement} list
 * @param {() => void} change
 * @param {(row: HTMLElement) => boolean} held rows that something else moves: the one under the pointer
 */
export function glide(list, change, held) {
  if (calm.matches || document.hidden || list.children.length > ROWS_MAX) return change();
  const before = new Map([...list.children].map((row) => [row, row.getBoundingClientRect()]));
  const stage = list.parentElement;
  change();
  if (list.children.length > ROWS_MAX) return;
  for (const row of list.children) {
    running.get(row)?.cancel();
    running.delete(row);
  }
  for (const row of [...list.children].filter((each) => !held(each))) {
    const was = before.get(row);
    const way = was ? was.top - row.getBoundingClientRect().top : 0;
    if (!was) slide(row, [{ opacity: 0, transform: "translateY(-12px)" }, {}]);
    else if (way) slide(row, [{ transform: `translateY(${way}px)` }, {}]);
  }
  for (const [row, was] of before) {
    if (!row.isConnected) slideOut(row, was, stage);
  }
}

// An empty frame is how the row would look by itself.
function slide(row, frames) {
  const animation = row.animate(frames, { duration: DURATION_MS, easing: "ease-out" });
  running.set(row, animation);
  return animation;
}

/** A picture of the row leaves; the row itself has gone, for the list and for screen readers. */
function slideOut(row, was, stage) {
  const corner = stage.getBoundingClientRect();
  const ghost = document.createElement("div");
  ghost.className = `${row.className} ghost`;
  ghost.inert = true;
  ghost.ariaHidden = "true";
  ghost.append(...row.cloneNode(true).childNodes);
  Object.assign(ghost.style, {
    top: `${was.top - corner.top}px`,
    left: `${was.left - corner.left}px`,
    width: `${was.width}px`,
    height: `${was.height}px`,
  });
  stage.append(ghost);
  slide(ghost, [{}, { opacity: 0, transform: "translateX(24px)" }]).onfinish = () => ghost.remove();
}

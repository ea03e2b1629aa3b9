// What somebody has typed and not sent: kept for a reload of this tab, and no longer than the tab.

/** @param {string} key */
export function recallDraft(key) {
  try {
    return sessionStorage.getItem(`draft ${key}`) ?? "";
  } catch {
    return ""; // Storage may be forbidden; then a draft lasts as long as the page.
  }
}

/** @param {string} key @param {string} text "" forgets it */
export function keepDraft(key, text) {
  try {
    if (text) sessionStorage.setItem(`draft ${key}`, text);
    else sessionStorage.removeItem(`draft ${key}`);
  } catch {
    // As above.
  }
}

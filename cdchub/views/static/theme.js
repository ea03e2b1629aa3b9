// Sets the theme before the first paint: a classic script in <head>, because a module would come
// too late and the page would flash. "system" leaves it to the style sheet's media query.
(() => {
  const root = document.documentElement;
  let theme = "system";
  try {
    theme = localStorage.getItem("theme") ?? "system";
  } catch {
    // Storage may be forbidden; then the choice lasts as long as the page.
  }
  root.dataset.theme = theme;
  addEventListener("DOMContentLoaded", () => {
    const select = document.getElementById("theme");
    if (!select) return;
    select.value = theme;
    // As in the other windows of this browser.
    addEventListener("storage", ({ key, newValue }) => {
      if (key === "theme") root.dataset.theme = select.value = newValue ?? "system";
    });
    select.addEventListener("change", () => {
      root.dataset.theme = select.value;
      try {
        localStorage.setItem("theme", select.value);
      } catch {
        // As above.
      }
    });
  });
})();

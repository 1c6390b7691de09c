// Folds and unfolds rows of the tree of modules: a row is shown when all rows above it are open.
"use strict";
for (const table of document.querySelectorAll("table.tree")) {
  const rows = [...table.tBodies[0].rows];
  const refresh = () => {
    const open = [true];
    for (const row of rows) {
      const level = Number(row.dataset.level);
      row.hidden = !open[level];
      const button = row.querySelector("button");
      open[level + 1] = open[level] && button !== null && button.getAttribute("aria-expanded") === "true";
    }
  };
  const set = (button, open) => {
    button.setAttribute("aria-expanded", String(open));
    button.textContent = open ? "\u25be" : "\u25b8";
  };
  table.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    set(button, button.getAttribute("aria-expanded") !== "true");
    refresh();
  });
  const all = document.getElementById("open-all");
  if (all) {
    all.addEventListener("click", () => {
      const open = all.dataset.open !== "true";
      all.dataset.open = String(open);
      all.textContent = open ? "Fold all" : "Unfold all";
      for (const button of table.querySelectorAll("button")) set(button, open);
      refresh();
    });
  }
  refresh();
}

"use strict";
const order = new Intl.Collator("en", { numeric: true });

function key(row, column) {
  const cell = row.cells[column];
  return { value: cell.dataset.value, words: cell.textContent.trim() };
}

// Figures before words, and empty cells last in either direction.
function compare(a, b, sign) {
  if (!a.words || !b.words) return !a.words - !b.words;
  if (a.value !== undefined && b.value !== undefined) return sign * (a.value - b.value);
  if (a.value !== undefined || b.value !== undefined) return a.value !== undefined ? -1 : 1;
  return sign * order.compare(a.words, b.words);
}

function sort(head) {
  const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  const sign = direction === "ascending" ? 1 : -1;
  const body = head.closest("table").tBodies[0];
  const rows = Array.from(body.rows, (row) => [key(row, head.cellIndex), row]);
  rows.sort((a, b) => compare(a[0], b[0], sign));
  body.append(...rows.map((pair) => pair[1]));
  for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", direction);
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sort(button.closest("th")));
}

const theme = document.getElementById("theme");
function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
function tell() {
  theme.setAttribute("aria-pressed", String(dark()));
}
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  tell();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
theme.hidden = false;
tell();

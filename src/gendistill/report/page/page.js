// Sorts a table by the column whose header is pressed, by mouse or by keyboard; pressed again, the other way round.
"use strict";

function compare(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), "en", { numeric: true });
}

function keyOf(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  return "empty" in cell.dataset ? null : cell.textContent.trim();
}

function sortBy(header) {
  const body = header.closest("table").tBodies[0];
  const turned = header.getAttribute("aria-sort") === "ascending";
  const keyed = [...body.rows].map((row) => ({ row, key: keyOf(row, header.cellIndex) }));
  keyed.sort((one, other) => {
    // What was not measured stays last, whichever way round.
    if (one.key === null || other.key === null) return (one.key === null) - (other.key === null);
    return (turned ? -1 : 1) * compare(one.key, other.key);
  });
  body.append(...keyed.map(({ row }) => row));
  for (const each of header.parentElement.cells) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", turned ? "descending" : "ascending");
}

for (const button of document.querySelectorAll("thead th button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

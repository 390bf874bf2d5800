"use strict";
// Tables that sort by a click on a heading; "-" and words stay last, and so does the joint row (a tfoot).
const units = { k: 1e3, M: 1e6, B: 1e9, T: 1e12 };
const numeric = (cell) => {
  const found = /^([+-]?[\d.]+)\s*([kMBT](?!\w))?/.exec(cell.textContent.trim().replaceAll(",", ""));
  return found ? Number(found[1]) * (units[found[2]] ?? 1) : NaN;
};
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const sort = (head) => {
    const column = head.cellIndex;
    const first = column ? "descending" : "ascending", second = column ? "ascending" : "descending";
    const order = head.ariaSort === first ? second : first, sign = order === "ascending" ? 1 : -1;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const compare = (a, b) => {
      const [one, two] = [a.cells[column], b.cells[column]];
      if (!column) return sign * one.textContent.localeCompare(two.textContent, undefined, { numeric: true });
      const [x, y] = [numeric(one), numeric(two)];
      return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y) || 0;
    };
    body.append(...[...body.rows].sort(compare));
  };
  for (const head of heads) {
    if (head.classList.contains("plot") || body.rows.length < 2) continue;
    head.tabIndex = 0;
    head.style.cursor = "pointer";
    head.addEventListener("click", () => sort(head));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(head); });
  }
}
// Tips that a finger can call up too; without this script the browser shows the same titles.
const tip = document.body.appendChild(Object.assign(document.createElement("div"), { className: "tip", hidden: true }));
let held = null;
document.addEventListener("pointerover", (event) => {
  if (held?.contains(event.target)) return;
  if (held) held.title = tip.textContent;
  held = event.target.closest("[title]");
  tip.hidden = !held;
  if (!held) return;
  tip.textContent = held.title;
  held.removeAttribute("title");
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
});
const link = document.getElementById("download");
const json = document.getElementById("report").textContent;
link.href = URL.createObjectURL(new Blob([json], { type: "application/json" }));
link.hidden = false;

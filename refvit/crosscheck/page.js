"use strict";
(() => {
  const table = document.getElementById("values");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const find = document.getElementById("find");
  const wrong = document.getElementById("wrong");
  const readout = document.getElementById("readout");

  for (const [column, button] of [...table.querySelectorAll("th button")].entries()) {
    button.addEventListener("click", () => {
      const head = button.parentElement;
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const number = head.classList.contains("n");
      const order = (a, b) => (number ? Number(key(a)) - Number(key(b)) : key(a).localeCompare(key(b)));
      body.append(...[...rows].sort((a, b) => (down ? -order(a, b) : order(a, b))));
    });
  }

  const filter = () => {
    const text = find.value.toLowerCase();
    for (const row of rows) {
      const fits = row.textContent.toLowerCase().includes(text);
      row.hidden = !fits || (wrong.checked && row.dataset.verdict === "match");
    }
  };
  find.addEventListener("input", filter);
  wrong.addEventListener("change", filter);

  const light = (point, on) => {
    point.classList.toggle("lit", on);
    rows[point.dataset.row].classList.toggle("lit", on);
    if (on) readout.textContent = point.querySelector("title").textContent;
  };
  for (const point of document.querySelectorAll("svg.errors circle")) {
    point.addEventListener("mouseenter", () => light(point, true));
    point.addEventListener("mouseleave", () => light(point, false));
    point.addEventListener("click", () => rows[point.dataset.row].scrollIntoView({ block: "center" }));
  }
})();

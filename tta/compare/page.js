"use strict";
// Tables sort by the column that is clicked: numbers the largest first, then the other way round; empty cells last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
    const body = table.tBodies[0];
    const value = (row) => {
      const cell = row.cells[place];
      if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
      return cell.textContent === "" || place > 0 ? null : cell.textContent;
    };
    const rows = [...body.rows].map((row) => [value(row), row]);
    const numbers = rows.some(([key]) => typeof key === "number");
    const now = head.getAttribute("aria-sort");
    const order = now ? (now === "descending" ? "ascending" : "descending") : (numbers ? "descending" : "ascending");
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
    });
    body.append(...rows.map(([, row]) => row));
  }));
}
// plotly has a button that uploads the figure; this page sends nothing anywhere.
const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["sendChartToCloud"], plotlyServerURL: "" };
for (const [id, plot] of Object.entries(JSON.parse(document.getElementById("plots").textContent))) {
  Plotly.newPlot(id, plot.data, plot.layout, options);
}

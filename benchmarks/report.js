"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--quiet").trim(), line = style.getPropertyValue("--line").trim();
  const axis = (given) => ({ gridcolor: line, linecolor: line, zeroline: false, tickcolor: line, automargin: true, ...given });
  return {
    margin: { l: 44, r: 12, t: 8, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, size: 11, family: "system-ui, Segoe UI, DejaVu Sans, sans-serif" },
    showlegend: false, hovermode: "closest", ...layout,
    xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
  };
}

function draw() {
  for (const [id, chart] of Object.entries(charts)) {
    Plotly.react(id, chart.data, themed(chart.layout), { displaylogo: false, responsive: true, displayModeBar: false });
  }
}
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

// one legend for all the charts of a section
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    for (const plot of button.closest("section").querySelectorAll(".plot")) {
      const traces = charts[plot.id].data.flatMap((trace, i) => (trace.meta === button.dataset.method ? [i] : []));
      if (traces.length) Plotly.restyle(plot.id, { visible: shown }, traces);
    }
  });
}

// a click on a head sorts the table by that column: numbers by data-v, the rest as text; empty cells last
for (const head of document.querySelectorAll("table.sortable th")) {
  head.addEventListener("click", () => {
    const table = head.closest("table"), column = head.cellIndex;
    const rising = head.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const value = (row) => {
      const cell = row.cells[column];
      return cell.dataset.v === undefined ? cell.textContent.trim() : cell.dataset.v === "" ? null : Number(cell.dataset.v);
    };
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return (x < y ? -1 : x > y ? 1 : 0) * (rising ? 1 : -1);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  });
}

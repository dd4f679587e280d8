"use strict";
// Draws every chart of the page; draws again when the system changes between light and dark.
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function themed(layout) {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), tickcolor: colour("--line") };
  const font = { color: colour("--ink"), family: getComputedStyle(document.body).fontFamily, size: 12 };
  return Object.assign({}, layout, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font, autosize: true,
    xaxis: Object.assign({}, layout.xaxis, axis), yaxis: Object.assign({}, layout.yaxis, axis),
    hoverlabel: Object.assign({}, layout.hoverlabel, { font: { family: font.family } }),
  });
}

function draw() {
  const options = { displayModeBar: false, responsive: true };  // drag to zoom, double click to go back
  for (const [id, figure] of Object.entries(figures)) {
    Plotly.react(id, figure.data, themed(figure.layout), options);
  }
}

draw();
dark.addEventListener("change", draw);

"use strict";

// a figure that is missing sorts behind all others, whichever way
function order(a, b, direction) {
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
  return a === b ? 0 : direction * (a < b ? -1 : 1);
}

function number(text) {
  return text === "" || text === undefined || text === null ? NaN : Number(text);
}

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value;
    const compare = head.classList.contains("number")
      ? (a, b) => order(number(value(a)), number(value(b)), direction)
      : (a, b) => direction * value(a).localeCompare(value(b), "en", { numeric: true });
    body.append(...[...body.rows].sort(compare));
  }));
}

function sliders(root) {
  const figures = JSON.parse(root.dataset.figures);
  const [left, right, by] = ["left", "right", "order"].map((name) => root.querySelector(`select.${name}`));
  const list = root.querySelector(".cards");
  const cards = [...list.children].map((node) => ({
    node, index: Number(node.dataset.index), values: JSON.parse(node.dataset.values),
  }));

  function show() {
    for (const { node, values } of cards) {
      for (const layer of node.querySelectorAll(".layer")) {
        layer.classList.toggle("left", layer.dataset.model === left.value);
        layer.classList.toggle("right", layer.dataset.model === right.value);
      }
      node.querySelector(".of-left").textContent = left.selectedOptions[0].text;
      node.querySelector(".of-right").textContent = right.selectedOptions[0].text;
      const shown = figures.filter((figure) => values[figure.key][right.value].text);
      node.querySelector(".values").textContent =
        shown.map((figure) => `${figure.label} ${values[figure.key][right.value].text}`).join(" · ");
    }
    const figure = figures.find((one) => one.key === by.value);
    const damage = (card) => figure ? number(card.values[figure.key][right.value].value) : card.index;
    const direction = figure && figure.better === "lower" ? -1 : 1;
    const sorted = [...cards].sort((a, b) => order(damage(a), damage(b), direction) || a.index - b.index);
    if (sorted.some((card, i) => card.node !== list.children[i])) list.append(...sorted.map((card) => card.node));
  }

  [left, right, by].forEach((select) => select.addEventListener("change", show));
  for (const { node } of cards) {
    const compare = node.querySelector(".compare");
    const slide = node.querySelector(".slide");
    const move = () => compare.style.setProperty("--at", `${slide.value}%`);
    slide.addEventListener("input", move);
    move(); // a reloaded page keeps what was set
    const frame = node.querySelector(".frame");
    frame?.addEventListener("input", () => {
      for (const layer of node.querySelectorAll(".layer")) {
        [...layer.children].forEach((image, i) => { image.hidden = i !== Number(frame.value); });
      }
    });
  }
  show();
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll(".sliders").forEach(sliders);

/**
 * Pictures of tables: bars or a line, drawn as SVG from the table that the figure holds. The table
 * stays below the picture for whoever wants the numbers, and for those who hear the page.
 *
 * The first column names the places. For "bars" each further column is a series, side by side; for
 * "line" the second column is the line, and the third and fourth, where there are such, its limits.
 */
import { element } from "../dom.js";
import { _ } from "../words.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [480, 170, 40, 20, 8];
const GRID = 4;

/** @typedef {{head: string[], places: string[], columns: (number | null)[][]}} Numbers */

/**
 * Draw a figure's table into it.
 * @param {HTMLElement} figure
 */
export function draw(figure) {
  const table = figure.querySelector("table");
  if (table === null) return;
  const numbers = read(table);
  const isBars = figure.dataset.chart === "bars";
  const { picture, y } = axes(numbers, figure, isBars);
  if (isBars) drawBars(picture, numbers, y);
  else drawLine(picture, numbers, y);
  const more = element("details", {}, element("summary", { text: _("As a table") }));
  table.replaceWith(picture, ...(isBars ? [legend(numbers)] : []), more);
  more.append(table);
}

/**
 * What a table says; what is no number is null.
 * @param {HTMLTableElement} table
 * @returns {Numbers}
 */
export function read(table) {
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.textContent?.trim() ?? ""));
  const head = [...(table.tHead?.rows[0].cells ?? [])].map((cell) => cell.textContent?.trim() ?? "");
  const columns = head.slice(1).map((_, column) => rows.map((row) => number(row[column + 1])));
  return { head, places: rows.map((row) => row[0]), columns };
}

/** @param {string} text */
function number(text) {
  const value = text === "" ? NaN : Number(text);
  return Number.isFinite(value) ? value : null;
}

/**
 * Round limits of an axis that hold all values, and the distance of its lines.
 * @param {number} low
 * @param {number} high
 */
export function nice(low, high) {
  const wanted = Math.max(high - low, Math.abs(high) / 100, 0.01) / GRID;
  const power = 10 ** Math.floor(Math.log10(wanted));
  const step = power * ([1, 2, 5].find((each) => each * power >= wanted) ?? 10);
  const from = Math.floor(low / step) * step;
  return { low: from, high: Math.max(Math.ceil(high / step) * step, from + step), step };
}

/**
 * @param {Numbers} numbers
 * @param {HTMLElement} figure
 * @param {boolean} fromZero
 */
function axes({ places, columns }, figure, fromZero) {
  const { from, to, low, high } = figure.dataset;
  const drawn = fromZero ? columns : columns.slice(0, 3);
  const marks = [from, to, low, high].filter((mark) => mark !== undefined).map(Number);
  const values = [...drawn.flat().filter((value) => value !== null), ...marks, ...(fromZero ? [0, 1] : [])];
  const axis = values.length > 0 ? nice(Math.min(...values), Math.max(...values)) : nice(0, 1);
  const scale = (HEIGHT - TOP - BOTTOM) / (axis.high - axis.low);
  const y = (/** @type {number} */ value) => HEIGHT - BOTTOM - (value - axis.low) * scale;
  const picture = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  picture.setAttribute("aria-label", figure.querySelector("figcaption")?.textContent ?? "");
  const lines = Math.round((axis.high - axis.low) / axis.step);
  const digits = Math.max(0, -Math.floor(Math.log10(axis.step)));
  for (let i = 0; i <= lines; i++) {
    const value = axis.low + i * axis.step;
    picture.append(
      svg("line", { class: "axis", x1: LEFT, x2: WIDTH, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(digits)));
  }
  if (low !== undefined && high !== undefined) {
    picture.append(svg("rect", { class: "reference", x: LEFT, width: WIDTH - LEFT, y: y(Number(high)), height: y(Number(low)) - y(Number(high)) }));
  }
  const every = Math.ceil(places.length / 6);
  places.forEach((place, i) => {
    if (i % every === 0) picture.append(svg("text", { x: middle(i, places.length), y: HEIGHT - 5, "text-anchor": "middle" }, place.slice(-5)));
  });
  return { picture, y };
}

/**
 * @param {SVGElement} picture
 * @param {Numbers} numbers
 * @param {(value: number) => number} y
 */
function drawBars(picture, { head, places, columns }, y) {
  const width = (WIDTH - LEFT) / places.length / (columns.length + 0.6);
  columns.forEach((column, series) => column.forEach((value, i) => {
    if (!value) return;
    const x = middle(i, places.length) + (series - columns.length / 2) * width;
    const bar = svg("rect", { class: `bar-${series}`, x, width, y: y(value), height: y(0) - y(value) });
    bar.append(svg("title", {}, `${places[i]}: ${head[series + 1]} ${value}`));
    picture.append(bar);
  }));
}

/**
 * @param {SVGElement} picture
 * @param {Numbers} numbers
 * @param {(value: number) => number} y
 */
function drawLine(picture, { head, places, columns: [line, lower, upper] }, y) {
  const x = (/** @type {number} */ i) => middle(i, places.length);
  for (const run of runs(line)) {
    if (lower && upper) {
      const there = run.map((i) => `${x(i)},${y(upper[i] ?? 0)}`);
      const back = [...run].reverse().map((i) => `${x(i)},${y(lower[i] ?? 0)}`);
      picture.append(svg("polygon", { class: "band", points: [...there, ...back].join(" ") }));
    }
    picture.append(svg("polyline", { class: "line", points: run.map((i) => `${x(i)},${y(line[i] ?? 0)}`).join(" ") }));
  }
  line.forEach((value, i) => {
    if (value === null) return;
    const dot = svg("circle", { class: "dot", cx: x(i), cy: y(value), r: 3 });
    dot.append(svg("title", {}, `${places[i]}: ${value} ${head[1]}`));
    picture.append(dot);
  });
}

/**
 * The places of values that follow each other without a gap.
 * @param {(number | null)[]} values
 */
export function runs(values) {
  /** @type {number[][]} */
  const found = [];
  values.forEach((value, i) => {
    if (value === null) return;
    if (i > 0 && values[i - 1] !== null) found[found.length - 1].push(i);
    else found.push([i]);
  });
  return found;
}

/** @param {Numbers} numbers */
function legend({ head }) {
  const entries = head.slice(1).map((name, i) => element("span", {}, element("i", { class: `bar-${i}` }), name));
  return element("p", { class: "legend", "aria-hidden": "true" }, ...entries);
}

/**
 * @param {number} i
 * @param {number} count
 */
function middle(i, count) {
  return LEFT + ((i + 0.5) * (WIDTH - LEFT)) / count;
}

/**
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 * @param {string} [text]
 */
function svg(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

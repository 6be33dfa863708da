/**
 * The measurements drawn over the slice that they were made on.
 *
 * @typedef {import("./measurements.js").Measurements} Measurements
 * @typedef {import("./measuring.js").Shape} Shape
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./planes.js").Triple} Triple
 * @typedef {import("./state.js").ViewState} ViewState
 */
import { linesOf, POINTS_OF, valuesOf } from "./measuring.js";
import { rowOf } from "./planes.js";

/** Unlike every lesion's colour: what a person measured is no suggestion of the machine. */
const COLOUR = "#ffffff";
const CHOSEN_COLOUR = "#7dff6a";
const HALO = "#000";
const LINE_PX = 1.5;
const TEXT_PX = 13;
const END_PX = 4;
const ARROW_PX = 11;

/** @typedef {[number, number]} Point  canvas pixels */

export class MeasureLayer {
  /** @param {Measurements} measurements */
  constructor(measurements) {
    this.measurements = measurements;
  }

  /** @type {import("./tools.js").Layer["draw"]} */
  draw(context, plane, state) {
    const { all, draft, chosen, volume } = this.measurements;
    const index = state.position[plane.through];
    const here = (/** @type {Shape} */ shape) => shape.plane === plane.name && Math.round(shape.points[0][plane.through]) === index;
    const toCanvas = context.getTransform();
    const place = (/** @type {Triple} */ at) => {
      const { x, y } = toCanvas.transformPoint({ x: at[plane.across] + 0.5, y: rowOf(plane, state.size, at[plane.down]) + 0.5 });
      return /** @type {Point} */ ([x, y]);
    };
    context.save();
    context.resetTransform();
    context.lineJoin = "round";
    context.lineCap = "round";
    for (const measurement of all.filter(here)) {
      const words = [...linesOf(measurement.kind, measurement.values), ...(measurement.text ? [measurement.text] : [])];
      drawShape(context, measurement, place, words, measurement === chosen ? CHOSEN_COLOUR : COLOUR);
    }
    if (draft !== null && here(draft)) {
      const whole = draft.points.length === POINTS_OF[draft.kind];
      drawShape(context, draft, place, whole ? linesOf(draft.kind, valuesOf(draft, volume)) : [], CHOSEN_COLOUR);
    }
    context.restore();
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Shape} shape
 * @param {(at: Triple) => Point} place
 * @param {readonly string[]} words
 * @param {string} colour
 */
function drawShape(context, { kind, points }, place, words, colour) {
  const corners = points.map(place);
  const path = kind === "ellipse" ? ellipse(corners) : kind === "arrow" ? arrow(corners) : line(corners);
  for (const [style, width] of /** @type {[string, number][]} */ ([[HALO, LINE_PX + 2], [colour, LINE_PX]])) {
    context.strokeStyle = style;
    context.lineWidth = width * devicePixelRatio;
    context.stroke(path);
  }
  write(context, words, labelPlace(kind, corners), colour);
}

/** @param {Point[]} corners */
function line(corners) {
  const path = new Path2D();
  corners.forEach(([x, y], i) => (i === 0 ? path.moveTo(x, y) : path.lineTo(x, y)));
  const end = END_PX * devicePixelRatio;
  for (const [x, y] of corners) {
    path.moveTo(x - end, y);
    path.lineTo(x + end, y);
    path.moveTo(x, y - end);
    path.lineTo(x, y + end);
  }
  return path;
}

/** @param {Point[]} corners  of its box */
function ellipse([[x, y], [otherX, otherY]]) {
  const path = new Path2D();
  path.ellipse((x + otherX) / 2, (y + otherY) / 2, Math.abs(otherX - x) / 2, Math.abs(otherY - y) / 2, 0, 0, 2 * Math.PI);
  return path;
}

/** It points at the first corner. @param {Point[]} corners */
function arrow([[x, y], [fromX, fromY]]) {
  const path = new Path2D();
  path.moveTo(fromX, fromY);
  path.lineTo(x, y);
  const direction = Math.atan2(fromY - y, fromX - x);
  for (const side of [-1, 1]) {
    const angle = direction + (side * Math.PI) / 7;
    path.moveTo(x, y);
    path.lineTo(x + Math.cos(angle) * ARROW_PX * devicePixelRatio, y + Math.sin(angle) * ARROW_PX * devicePixelRatio);
  }
  return path;
}

/**
 * @param {Shape["kind"]} kind
 * @param {Point[]} corners
 * @returns {Point}
 */
function labelPlace(kind, corners) {
  const gap = 8 * devicePixelRatio;
  if (kind === "ellipse") {
    const [[x, y], [otherX, otherY]] = corners;
    return [Math.max(x, otherX) + gap, Math.min(y, otherY)];
  }
  const [x, y] = kind === "angle" && corners.length > 1 ? corners[1] : corners[corners.length - 1];
  return [x + gap, y];
}

/**
 * Lines that stay readable on any tissue.
 * @param {CanvasRenderingContext2D} context
 * @param {readonly string[]} words
 * @param {Point} at
 * @param {string} colour
 */
function write(context, words, [x, y], colour) {
  const size = TEXT_PX * devicePixelRatio;
  context.font = `${size}px system-ui, sans-serif`;
  context.lineWidth = size / 4;
  context.strokeStyle = HALO;
  context.fillStyle = colour;
  words.forEach((text, i) => {
    context.strokeText(text, x, y + i * size * 1.25);
    context.fillText(text, x, y + i * size * 1.25);
  });
}

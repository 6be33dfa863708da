/**
 * The tools that draw measurements. Press, drag and release, or click each point.
 *
 * @typedef {import("./measurements.js").Measurements} Measurements
 * @typedef {import("./measuring.js").Kind} Kind
 * @typedef {import("./planes.js").Triple} Triple
 * @typedef {import("./state.js").ViewState} ViewState
 * @typedef {import("./tools.js").Tool} Tool
 * @typedef {import("./viewport.js").Viewport} Viewport
 */
import { _ } from "../words.js";
import { POINTS_OF } from "./measuring.js";

/** A press that moves less is a click: the next click places the next point. */
const CLICK_PX = 4;

/** @type {readonly {kind: Kind, label: string, key: string}[]} */
const KINDS = [
  { kind: "distance", label: _("Distance"), key: "d" },
  { kind: "angle", label: _("Angle"), key: "shift+d" },
  { kind: "ellipse", label: _("Ellipse"), key: "i" },
  { kind: "probe", label: _("HU probe"), key: "h" },
  { kind: "arrow", label: _("Arrow"), key: "t" },
];

/**
 * @param {(state: ViewState) => Measurements} measurementsOf  what a viewport's measurements go to
 * @returns {Tool[]}
 */
export function measureTools(measurementsOf) {
  return KINDS.map(({ kind, label, key }) => new MeasureTool(kind, label, key, measurementsOf));
}

/** @implements {Tool} */
class MeasureTool {
  /** Where it is being drawn. @type {Viewport | null} */
  #viewport = null;
  /** The points that stand; one more follows the pointer. @type {Triple[]} */
  #placed = [];
  /** Where the button went down, and whether that began the measurement. */
  #pressed = { x: 0, y: 0, first: false };

  /**
   * @param {Kind} kind
   * @param {string} label
   * @param {string} key
   * @param {(state: ViewState) => Measurements} measurementsOf
   */
  constructor(kind, label, key, measurementsOf) {
    this.name = kind;
    this.kind = kind;
    this.label = label;
    this.key = key;
    this.measurementsOf = measurementsOf;
  }

  /** @type {Tool["down"]} */
  down(viewport, at, { clientX, clientY }) {
    if (this.#viewport !== viewport) this.cancel();
    const first = this.#viewport === null;
    if (first) {
      this.#viewport = viewport;
      this.#placed = POINTS_OF[this.kind] > 1 ? [at] : [];
    }
    this.#pressed = { x: clientX, y: clientY, first };
    this.#follow(at);
  }

  /** @type {Tool["move"]} */
  move(viewport, at) {
    if (viewport === this.#viewport) this.#follow(at);
  }

  hover = this.move;

  /** @type {Tool["up"]} */
  up(_viewport, at, { clientX, clientY }) {
    if (this.#viewport === null) return;
    const { x, y, first } = this.#pressed;
    const clicked = Math.hypot(clientX - x, clientY - y) < CLICK_PX;
    if (first && clicked && this.#placed.length > 0) return; // the next click places the next point
    const points = this.#with(at);
    if (points.length < POINTS_OF[this.kind]) {
      this.#placed = points;
      return;
    }
    const { state, plane } = this.#viewport;
    this.#viewport = null;
    this.measurementsOf(state).add({ kind: this.kind, plane: plane.name, points });
  }

  cancel() {
    if (this.#viewport !== null) this.measurementsOf(this.#viewport.state).drafting(null);
    this.#viewport = null;
  }

  /** @param {Triple} at */
  #follow(at) {
    if (this.#viewport === null) return;
    const { state, plane } = this.#viewport;
    this.measurementsOf(state).drafting({ kind: this.kind, plane: plane.name, points: this.#with(at) });
  }

  /** The points with one more, in the slice of the first. @param {Triple} at @returns {Triple[]} */
  #with(at) {
    const through = /** @type {Viewport} */ (this.#viewport).plane.through;
    /** @type {Triple} */
    const point = [...at];
    if (this.#placed.length > 0) point[through] = this.#placed[0][through];
    return [...this.#placed, point];
  }
}

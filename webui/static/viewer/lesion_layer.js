/**
 * The lesions drawn over a slice: outlines by default, filled on request, each with its number.
 *
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./masks.js").LesionMask} LesionMask
 * @typedef {import("./state.js").ViewState} ViewState
 */
import { outlinePath, outlines } from "./outlines.js";

/** Bright on dark grey, told apart by colour-blind readers, too (Okabe and Ito, 2008; no black). */
const COLOURS = ["#ff8a3d", "#56b4e9", "#f0e442", "#3ddc97", "#e59ac8", "#ff5c5c", "#9ad0ff", "#d0c0ff"];

const LINE_PX = 1.5;
const CHOSEN_LINE_PX = 2.5;
const FILL_OPACITY = 0.35;
const LABEL_PX = 12;
/** Paths are kept per slice; a reader scrolls to and fro over the same few dozen. */
const KEPT_PATHS = 512;

/** @param {number} lesion */
export function lesionColour(lesion) {
  return COLOURS[(lesion - 1) % COLOURS.length];
}

/** @typedef {{path: Path2D, top: [number, number]}} Drawn  `top`: its highest corner */

export class LesionLayer {
  /** @type {LesionMask[]} */
  #masks = [];
  /** @type {Map<string, Drawn | null>} */
  #paths = new Map();

  /** @param {LesionMask} mask */
  add(mask) {
    this.#masks.push(mask);
  }

  /**
   * Draw into a context whose transform maps slice pixels to the canvas.
   * @param {CanvasRenderingContext2D} context
   * @param {Plane} plane
   * @param {ViewState} state
   */
  draw(context, plane, state) {
    if (!state.overlay) return;
    const index = state.position[plane.through];
    const toCanvas = context.getTransform();
    for (const mask of this.#masks) {
      const drawn = this.#drawn(mask, plane, state.size, index);
      if (drawn === null) continue;
      const path = new Path2D();
      path.addPath(drawn.path, toCanvas);
      const chosen = mask.lesion === state.lesion;
      const colour = lesionColour(mask.lesion);
      context.save();
      context.resetTransform();
      if (state.fill) {
        context.globalAlpha = FILL_OPACITY;
        context.fillStyle = colour;
        context.fill(path);
        context.globalAlpha = 1;
      }
      context.lineWidth = (chosen ? CHOSEN_LINE_PX : LINE_PX) * devicePixelRatio;
      context.strokeStyle = colour;
      context.stroke(path);
      const [x, y] = drawn.top;
      label(context, String(mask.lesion), toCanvas.transformPoint({ x, y }), colour);
      context.restore();
    }
  }

  /**
   * @param {LesionMask} mask
   * @param {Plane} plane
   * @param {import("./planes.js").Triple} size
   * @param {number} index
   * @returns {Drawn | null}
   */
  #drawn(mask, plane, size, index) {
    const key = `${plane.name} ${index} ${mask.lesion}`;
    const kept = this.#paths.get(key);
    if (kept !== undefined) return kept;
    const section = mask.section(plane, size, index);
    const closed = section === null ? [] : outlines(section);
    // Outlines are found row by row, so the first corner of the first one is the highest.
    const drawn = closed.length > 0 ? { path: outlinePath(closed), top: closed[0][0] } : null;
    if (this.#paths.size >= KEPT_PATHS) this.#paths.clear();
    this.#paths.set(key, drawn);
    return drawn;
  }
}

/**
 * A number that stays readable on any tissue: stroked, because a text shadow is slow to paint.
 * @param {CanvasRenderingContext2D} context
 * @param {string} text
 * @param {DOMPoint} at
 * @param {string} colour
 */
function label(context, text, at, colour) {
  const size = LABEL_PX * devicePixelRatio;
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.lineWidth = size / 4;
  context.lineJoin = "round";
  context.strokeStyle = "#000";
  const above = at.y - size / 2;
  context.strokeText(text, at.x, above);
  context.fillStyle = colour;
  context.fillText(text, at.x, above);
}

/**
 * What people outlined, drawn so that nobody takes it for the machine's: white and dashed, with a
 * pen beside the number. The machine's outlines are coloured and whole (lesion_layer.js).
 *
 * @typedef {import("./edit_regions.js").EditRegions} EditRegions
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./planes.js").Triple} Triple
 * @typedef {import("./state.js").ViewState} ViewState
 */
import { outlinePath, outlines } from "./outlines.js";
import { rowOf } from "./planes.js";

export const PERSONS_COLOUR = "#ffffff";
const DASH_PX = [6, 4];
const LINE_PX = 2;
const CHOSEN_LINE_PX = 3;
const FILL_OPACITY = 0.25;
const LABEL_PX = 12;

export class EditLayer {
  /** @param {EditRegions} regions */
  constructor(regions) {
    this.regions = regions;
    /** The brush, where it would paint. @type {{plane: Plane, at: Triple, radiusMm: number, spacingMm: Triple} | null} */
    this.brush = null;
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {Plane} plane
   * @param {ViewState} state
   */
  draw(context, plane, state) {
    const toCanvas = context.getTransform();
    const index = state.position[plane.through];
    context.save();
    context.resetTransform();
    if (state.overlay) {
      for (const [number, { mask }] of this.regions.standing()) {
        const section = mask.section(plane, state.size, index);
        const closed = section === null ? [] : outlines(section);
        if (closed.length === 0) continue;
        const path = new Path2D();
        path.addPath(outlinePath(closed), toCanvas);
        if (state.fill) {
          context.globalAlpha = FILL_OPACITY;
          context.fillStyle = PERSONS_COLOUR;
          context.fill(path);
          context.globalAlpha = 1;
        }
        const width = (number === state.lesion ? CHOSEN_LINE_PX : LINE_PX) * devicePixelRatio;
        strokeOver(context, path, width, DASH_PX.map((part) => part * devicePixelRatio));
        const [x, y] = closed[0][0];
        label(context, `${number} ✎`, toCanvas.transformPoint({ x, y }));
      }
    }
    if (this.brush !== null && this.brush.plane === plane) this.#drawBrush(context, toCanvas, state.size);
    context.restore();
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {DOMMatrix} toCanvas
   * @param {Triple} size
   */
  #drawBrush(context, toCanvas, size) {
    if (this.brush === null) return;
    const { plane, at, radiusMm, spacingMm } = this.brush;
    const path = new Path2D();
    const circle = new Path2D();
    const [x, y] = [at[plane.across] + 0.5, rowOf(plane, size, at[plane.down]) + 0.5];
    circle.ellipse(x, y, radiusMm / spacingMm[plane.across], radiusMm / spacingMm[plane.down], 0, 0, 2 * Math.PI);
    path.addPath(circle, toCanvas);
    strokeOver(context, path, devicePixelRatio, []);
  }
}

/**
 * A line that is seen on any tissue: white over black.
 * @param {CanvasRenderingContext2D} context
 * @param {Path2D} path
 * @param {number} width
 * @param {number[]} dash
 */
function strokeOver(context, path, width, dash) {
  context.setLineDash([]);
  context.lineWidth = 2 * width;
  context.strokeStyle = "rgb(0 0 0 / 70%)";
  context.stroke(path);
  context.setLineDash(dash);
  context.lineWidth = width;
  context.strokeStyle = PERSONS_COLOUR;
  context.stroke(path);
  context.setLineDash([]);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {string} text
 * @param {DOMPoint} at
 */
function label(context, text, at) {
  const size = LABEL_PX * devicePixelRatio;
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.lineWidth = size / 4;
  context.lineJoin = "round";
  context.strokeStyle = "#000";
  // Left of the corner: above it stands the machine's number of a lesion that was outlined anew.
  context.textAlign = "right";
  const [x, y] = [at.x - size / 2, at.y + size / 2];
  context.strokeText(text, x, y);
  context.fillStyle = PERSONS_COLOUR;
  context.fillText(text, x, y);
}

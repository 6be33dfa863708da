/**
 * How a slice lies on the screen: from slice pixels (a pixel's left edge is a whole number) to the
 * canvas in CSS pixels and back, with zoom, pan, quarter turns and mirroring.
 *
 * @typedef {import("./planes.js").Plane} Plane
 *
 * @typedef {object} Orientation  a right-angled turn of the picture, perhaps mirrored: on the screen
 *   x = a · across + c · down, y = b · across + d · down
 * @property {number} a
 * @property {number} b
 * @property {number} c
 * @property {number} d
 *
 * @typedef {object} Room  what is to be shown where
 * @property {number} width  of the canvas, CSS pixels
 * @property {number} height
 * @property {number} columns  of the slice
 * @property {number} rows
 * @property {number} mmAcross  a column's width
 * @property {number} mmDown  a row's height
 */

/** As radiologists read it: the patient's right on the left. @type {Orientation} */
export const STANDARD = Object.freeze({ a: 1, b: 0, c: 0, d: 1 });

/** @type {Readonly<Record<"mirrored" | "upsideDown" | "turned", (old: Orientation) => Orientation>>} */
export const TURNS = Object.freeze({
  /** Left and right of the screen change places. */
  mirrored: ({ a, b, c, d }) => ({ a: -a || 0, b, c: -c || 0, d }),
  /** Top and bottom of the screen change places. */
  upsideDown: ({ a, b, c, d }) => ({ a, b: -b || 0, c, d: -d || 0 }),
  /** A quarter turn clockwise. */
  turned: ({ a, b, c, d }) => ({ a: -b || 0, b: a, c: -d || 0, d: c }),
});

/**
 * The patient's sides at the edges of the screen.
 * @param {Plane} plane
 * @param {Orientation} orientation
 * @returns {Plane["sides"]}
 */
export function sidesOf({ sides }, { a, b, c, d }) {
  // The inverse of a turn is its transpose: where the screen's right and bottom lie on the slice.
  const towards = (/** @type {number} */ across, /** @type {number} */ down) => {
    if (across !== 0) return across > 0 ? sides.right : sides.left;
    return down > 0 ? sides.bottom : sides.top;
  };
  return { left: towards(-a, -c), right: towards(a, c), top: towards(-b, -d), bottom: towards(b, d) };
}

/**
 * What must be said of a picture that is not as radiologists read it; nothing of one that is.
 * @param {Orientation} orientation
 */
export function orientationMark({ a, b, c, d }) {
  if (a * d - b * c < 0) return "MIRRORED";
  return a === 1 ? "" : "ROTATED";
}

export class ViewTransform {
  /**
   * The whole slice in the middle of its room, true to its proportions in mm, then zoomed and moved.
   * @param {Room} room
   * @param {{orientation: Orientation, zoom: number, panX: number, panY: number}} view
   */
  constructor(room, { orientation, zoom, panX, panY }) {
    const { a, b, c, d } = orientation;
    const widthMm = room.columns * room.mmAcross;
    const heightMm = room.rows * room.mmDown;
    const [shownWidth, shownHeight] = a === 0 ? [heightMm, widthMm] : [widthMm, heightMm];
    this.pixelsPerMm = Math.min(room.width / shownWidth, room.height / shownHeight) * zoom;
    const across = room.mmAcross * this.pixelsPerMm;
    const down = room.mmDown * this.pixelsPerMm;
    this.a = a * across;
    this.b = b * across;
    this.c = c * down;
    this.d = d * down;
    this.e = room.width / 2 + panX - (this.a * room.columns + this.c * room.rows) / 2;
    this.f = room.height / 2 + panY - (this.b * room.columns + this.d * room.rows) / 2;
  }

  /**
   * @param {number} column
   * @param {number} row
   * @returns {[number, number]}
   */
  toScreen(column, row) {
    return [this.a * column + this.c * row + this.e, this.b * column + this.d * row + this.f];
  }

  /**
   * @param {number} x
   * @param {number} y
   * @returns {[number, number]} column, row
   */
  toSlice(x, y) {
    const { a, b, c, d } = this;
    const area = a * d - b * c;
    const [dx, dy] = [x - this.e, y - this.f];
    return [(d * dx - c * dy) / area, (a * dy - b * dx) / area];
  }

  /**
   * Let a context draw in slice pixels.
   * @param {CanvasRenderingContext2D} context
   * @param {number} across  canvas pixels for one CSS pixel
   * @param {number} down
   */
  applyTo(context, across, down) {
    context.setTransform(this.a * across, this.b * down, this.c * across, this.d * down, this.e * across, this.f * down);
  }
}

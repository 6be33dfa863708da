/**
 * Outlines of a binary mask along its pixel edges: exactly what the network marked, nothing smoothed.
 *
 * @typedef {object} Section  a part of one slice, in the slice's screen pixels
 * @property {number} left
 * @property {number} top
 * @property {number} width
 * @property {number} height
 * @property {Uint8Array} inside  width × height, row by row, non-zero where the lesion or the heat is
 */

/**
 * The closed outlines of a section. The mask lies on the right hand of each step, so that outer
 * outlines turn clockwise and holes the other way round (fill rule "nonzero" leaves holes open).
 * @param {Section} section
 * @returns {[number, number][][]} corners of each outline, in slice pixels
 */
export function outlines({ left, top, width, height, inside }) {
  const columns = width + 1;
  /** From each corner, the corners that an edge leads to. @type {Map<number, number[]>} */
  const edges = new Map();
  /** @type {(from: number, to: number) => void} */
  const add = (from, to) => {
    const targets = edges.get(from);
    if (targets) targets.push(to);
    else edges.set(from, [to]);
  };
  for (let j = 0, k = 0; j < height; j++) {
    for (let i = 0; i < width; i++, k++) {
      if (!inside[k]) continue;
      const corner = j * columns + i;
      if (j === 0 || !inside[k - width]) add(corner, corner + 1);
      if (i === width - 1 || !inside[k + 1]) add(corner + 1, corner + 1 + columns);
      if (j === height - 1 || !inside[k + width]) add(corner + 1 + columns, corner + columns);
      if (i === 0 || !inside[k - 1]) add(corner + columns, corner);
    }
  }

  const closed = [];
  for (const start of edges.keys()) {
    while (edges.has(start)) closed.push(follow(edges, start, columns, left, top));
  }
  return closed;
}

/**
 * Walk one outline from `start` back to it, using its edges up, and keep only the corners that turn.
 * @param {Map<number, number[]>} edges
 * @param {number} start
 * @param {number} columns
 * @param {number} left
 * @param {number} top
 * @returns {[number, number][]}
 */
function follow(edges, start, columns, left, top) {
  /** @type {[number, number][]} */
  const corners = [];
  let at = start;
  let direction = 0;
  do {
    const targets = /** @type {number[]} */ (edges.get(at));
    const next = /** @type {number} */ (targets.pop());
    if (targets.length === 0) edges.delete(at);
    if (next - at !== direction) corners.push([left + (at % columns), top + Math.floor(at / columns)]);
    direction = next - at;
    at = next;
  } while (at !== start);
  return corners;
}

/**
 * Outlines as a path in slice pixels, to be stroked or filled.
 * @param {readonly [number, number][][]} closed
 */
export function outlinePath(closed) {
  const path = new Path2D();
  for (const [[x, y], ...rest] of closed) {
    path.moveTo(x, y);
    for (const corner of rest) path.lineTo(...corner);
    path.closePath();
  }
  return path;
}

/**
 * Lesion masks as they travel: one bit per voxel of the lesion's bounding box; and how a box of
 * voxels is cut by a slice.
 *
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./planes.js").Triple} Triple
 * @typedef {import("./outlines.js").Section} Section
 */
import { rowOf } from "./planes.js";

/**
 * The voxels of a box on one slice of a plane, or null where the slice misses the box.
 * @param {{origin: Triple, extent: Triple}} box
 * @param {Plane} plane
 * @param {Triple} size  voxels of the whole volume
 * @param {number} index  slice index
 * @param {(p: number) => number} valueAt  the value, 0 to 255, of the p-th voxel of the box, x fastest
 * @returns {Section | null}
 */
export function cutBox({ origin, extent }, plane, size, index, valueAt) {
  const through = index - origin[plane.through];
  if (through < 0 || through >= extent[plane.through]) return null;
  const stride = [1, extent[0], extent[0] * extent[1]];
  const width = extent[plane.across];
  const height = extent[plane.down];
  const inside = new Uint8Array(width * height);
  for (let row = 0, k = 0; row < height; row++) {
    const down = plane.upward ? height - 1 - row : row;
    let p = through * stride[plane.through] + down * stride[plane.down];
    for (let i = 0; i < width; i++, k++, p += stride[plane.across]) inside[k] = valueAt(p);
  }
  const lastDown = origin[plane.down] + height - 1;
  const top = rowOf(plane, size, plane.upward ? lastDown : origin[plane.down]);
  return { left: origin[plane.across], top, width, height, inside };
}

/**
 * Voxels of a box along x, y, z.
 * @param {Triple} first
 * @param {Triple} last  inclusive
 * @returns {Triple}
 */
export function extentOf(first, last) {
  return [last[0] - first[0] + 1, last[1] - first[1] + 1, last[2] - first[2] + 1];
}

export class LesionMask {
  /**
   * @param {number} lesion  its number in the analysis
   * @param {Triple} first  lowest voxel of the box
   * @param {Triple} last  highest voxel of the box, inclusive
   * @param {Uint8Array} bits  x fastest, eight voxels a byte, lowest bit first, no padding at row ends
   */
  constructor(lesion, first, last, bits) {
    const extent = extentOf(first, last);
    const needed = Math.ceil((extent[0] * extent[1] * extent[2]) / 8);
    if (bits.length !== needed) {
      throw new Error(`mask of lesion ${lesion}: ${bits.length} bytes, expected ${needed}`);
    }
    this.lesion = lesion;
    this.origin = first;
    this.extent = extent;
    this.bits = bits;
  }

  /** Whether a voxel of the volume is in it. @type {(x: number, y: number, z: number) => boolean} */
  holds(x, y, z) {
    const [i, j, k] = [x - this.origin[0], y - this.origin[1], z - this.origin[2]];
    const [nx, ny, nz] = this.extent;
    if (i < 0 || i >= nx || j < 0 || j >= ny || k < 0 || k >= nz) return false;
    const p = (k * ny + j) * nx + i;
    return ((this.bits[p >> 3] >> (p & 7)) & 1) === 1;
  }

  /**
   * The lesion on one slice of a plane, or null where the slice misses its box.
   * @param {Plane} plane
   * @param {Triple} size  voxels of the whole volume
   * @param {number} index  slice index
   * @returns {Section | null}
   */
  section(plane, size, index) {
    return cutBox(this, plane, size, index, (p) => (this.bits[p >> 3] >> (p & 7)) & 1);
  }
}

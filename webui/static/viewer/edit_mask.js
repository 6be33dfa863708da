/**
 * The voxels of one lesion while a person changes them: a box of them that grows as it is painted.
 * A voxel of the volume is named by its place in memory: (z × ny + y) × nx + x.
 *
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./planes.js").Triple} Triple
 */
import { cutBox } from "./masks.js";

/** Free voxels around what is painted, so that a stroke seldom needs another box. */
const MARGIN = 12;

/** @typedef {{box: [number, number, number, number, number, number], bits: Uint8Array}} Packed  half-open x0, y0, z0, x1, y1, z1 */

export class EditMask {
  /** @param {Triple} size  voxels of the volume */
  constructor(size) {
    this.size = size;
    /** @type {Triple} */
    this.origin = [0, 0, 0];
    /** @type {Triple} */
    this.extent = [0, 0, 0];
    this.inside = new Uint8Array(0);
    this.count = 0;
    /** Counts changes. */
    this.version = 0;
  }

  /**
   * @param {Triple} size
   * @param {{origin: Triple, extent: Triple, bits: Uint8Array}} mask  as it travels, see masks.js
   */
  static of(size, { origin, extent, bits }) {
    const made = new EditMask(size);
    made.origin = [...origin];
    made.extent = [...extent];
    made.inside = new Uint8Array(extent[0] * extent[1] * extent[2]);
    for (let p = 0; p < made.inside.length; p++) made.inside[p] = (bits[p >> 3] >> (p & 7)) & 1;
    made.count = made.inside.reduce((sum, voxel) => sum + voxel, 0);
    return made;
  }

  /** @param {number} voxel */
  has(voxel) {
    const p = this.#placeOf(voxel);
    return p >= 0 && this.inside[p] === 1;
  }

  /**
   * Put voxels in or take them out.
   * @param {readonly number[]} voxels
   * @param {boolean} inside
   * @returns {number[]} those that were otherwise before
   */
  change(voxels, inside) {
    if (inside) this.#makeRoom(voxels);
    const changed = [];
    for (const voxel of voxels) {
      const p = this.#placeOf(voxel);
      if (p < 0 || (this.inside[p] === 1) === inside) continue;
      this.inside[p] = inside ? 1 : 0;
      changed.push(voxel);
    }
    this.count += inside ? changed.length : -changed.length;
    this.version += 1;
    return changed;
  }

  /**
   * The lesion on one slice of a plane, or null where the slice misses its box.
   * @param {Plane} plane
   * @param {Triple} size
   * @param {number} index
   */
  section(plane, size, index) {
    return cutBox(this, plane, size, index, (p) => this.inside[p]);
  }

  /** As it travels, in the smallest box; null if it has no voxel. @returns {Packed | null} */
  packed() {
    if (this.count === 0) return null;
    const [ex, ey, ez] = this.extent;
    const low = [ex, ey, ez];
    const high = [0, 0, 0];
    for (let z = 0, p = 0; z < ez; z++) {
      for (let y = 0; y < ey; y++) {
        for (let x = 0; x < ex; x++, p++) {
          if (this.inside[p] === 0) continue;
          [x, y, z].forEach((at, axis) => {
            low[axis] = Math.min(low[axis], at);
            high[axis] = Math.max(high[axis], at + 1);
          });
        }
      }
    }
    const [nx, ny, nz] = high.map((end, axis) => end - low[axis]);
    const bits = new Uint8Array(Math.ceil((nx * ny * nz) / 8));
    for (let z = low[2], k = 0; z < high[2]; z++) {
      for (let y = low[1]; y < high[1]; y++) {
        const row = (z * ey + y) * ex;
        for (let x = low[0]; x < high[0]; x++, k++) bits[k >> 3] |= this.inside[row + x] << (k & 7);
      }
    }
    const [x0, y0, z0] = low.map((start, axis) => start + this.origin[axis]);
    return { box: [x0, y0, z0, x0 + nx, y0 + ny, z0 + nz], bits };
  }

  /** Where a voxel lies in `inside`; -1 outside of the box. @param {number} voxel */
  #placeOf(voxel) {
    const [nx, ny] = this.size;
    const x = (voxel % nx) - this.origin[0];
    const y = (Math.floor(voxel / nx) % ny) - this.origin[1];
    const z = Math.floor(voxel / (nx * ny)) - this.origin[2];
    const [ex, ey, ez] = this.extent;
    return x >= 0 && x < ex && y >= 0 && y < ey && z >= 0 && z < ez ? (z * ey + y) * ex + x : -1;
  }

  /** @param {readonly number[]} voxels */
  #makeRoom(voxels) {
    const [nx, ny] = this.size;
    const empty = this.inside.length === 0;
    const low = empty ? [...this.size] : [...this.origin];
    const high = empty ? [0, 0, 0] : this.origin.map((start, axis) => start + this.extent[axis]);
    let fits = !empty;
    for (const voxel of voxels) {
      if (this.#placeOf(voxel) >= 0) continue;
      fits = false;
      [voxel % nx, Math.floor(voxel / nx) % ny, Math.floor(voxel / (nx * ny))].forEach((at, axis) => {
        low[axis] = Math.min(low[axis], Math.max(0, at - MARGIN));
        high[axis] = Math.max(high[axis], Math.min(this.size[axis], at + 1 + MARGIN));
      });
    }
    if (fits || voxels.length === 0) return;
    const [x0, y0, z0] = low;
    const [ex, ey, ez] = high.map((end, axis) => end - low[axis]);
    const inside = new Uint8Array(ex * ey * ez);
    const [ox, oy, oz] = this.extent;
    for (let z = 0; z < oz; z++) {
      for (let y = 0; y < oy; y++) {
        const row = this.inside.subarray((z * oy + y) * ox, (z * oy + y + 1) * ox);
        inside.set(row, ((z + this.origin[2] - z0) * ey + y + this.origin[1] - y0) * ex + this.origin[0] - x0);
      }
    }
    this.origin = [x0, y0, z0];
    this.extent = [ex, ey, ez];
    this.inside = inside;
  }
}

/**
 * The shortest way from a voxel to a box, along each axis.
 * @param {{origin: Triple, extent: Triple}} box
 * @param {Triple} voxel
 * @returns {Triple}
 */
export function distanceTo({ origin, extent }, voxel) {
  const away = (/** @type {0 | 1 | 2} */ axis) => Math.max(origin[axis] - voxel[axis], 0, voxel[axis] - (origin[axis] + extent[axis] - 1));
  return [away(0), away(1), away(2)];
}

/**
 * Thick slabs: several slices as one picture, the brightest, the darkest or the mean HU of each line
 * of sight. Like painting.js an inner loop of scrolling: no allocation per voxel, no calls.
 *
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./volume.js").Volume} Volume
 *
 * @typedef {"mip" | "minip" | "average"} Mode
 * @typedef {object} Slab
 * @property {Mode | null} mode  null for single slices
 * @property {number} mm  thickness
 */
import { _ } from "../words.js";
import { clamp, rowOf } from "./planes.js";

/** @type {Readonly<Record<Mode, string>>} */
export const MODE_WORDS = Object.freeze({ mip: "MIP", minip: "MinIP", average: _("Average") });

/** In the order that the key walks them. @type {readonly (Mode | null)[]} */
export const MODES = Object.freeze([null, "mip", "minip", "average"]);

export const THICKNESSES_MM = Object.freeze([5, 10, 15, 20, 30, 50]);

/** The HU of a pixel that no image has arrived for: below every CT's air, black in every window. */
const NOTHING = -32768;

/**
 * The slices of a slab, as many as come nearest to its thickness, around an index.
 * @param {Plane} plane
 * @param {Volume} volume
 * @param {number} index
 * @param {number} mm
 */
export function slabRange(plane, volume, index, mm) {
  const count = Math.max(1, Math.round(mm / volume.spacingMm[plane.through]));
  const last = volume.size[plane.through] - 1;
  const first = index - ((count - 1) >> 1);
  return { first: clamp(first, 0, last), last: clamp(first + count - 1, 0, last) };
}

/**
 * Fill `projected` with the HU of a slab; what has not arrived is left out.
 * @param {Int16Array} projected  size[plane.across] × size[plane.down], row by row
 * @param {Plane} plane
 * @param {Volume} volume
 * @param {{first: number, last: number}} range  slices
 * @param {Mode} mode
 */
export function projectSlab(projected, plane, volume, { first, last }, mode) {
  const { hu, size, arrived } = volume;
  const stride = [1, size[0], size[0] * size[1]];
  const width = size[plane.across];
  const height = size[plane.down];
  const step = stride[plane.across];
  const sums = new Int32Array(width);
  for (let row = 0, start = 0; row < height; row++, start += width) {
    const down = rowOf(plane, size, row);
    const end = start + width;
    let count = 0;
    for (let index = first; index <= last; index++) {
      if (!arrived[plane.through === 2 ? index : down]) continue;
      let p = index * stride[plane.through] + down * stride[plane.down];
      if (mode === "average") {
        if (count === 0) sums.fill(0);
        for (let i = 0; i < width; i++, p += step) sums[i] += hu[p];
      } else if (count === 0) {
        for (let k = start; k < end; k++, p += step) projected[k] = hu[p];
      } else if (mode === "mip") {
        for (let k = start; k < end; k++, p += step) if (hu[p] > projected[k]) projected[k] = hu[p];
      } else {
        for (let k = start; k < end; k++, p += step) if (hu[p] < projected[k]) projected[k] = hu[p];
      }
      count++;
    }
    if (count === 0) projected.fill(NOTHING, start, end);
    else if (mode === "average") {
      for (let i = 0; i < width; i++) projected[start + i] = Math.round(sums[i] / count);
    }
  }
}

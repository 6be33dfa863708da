/**
 * One slice of the volume as pixels. This is the inner loop of scrolling: no allocation, no calls.
 *
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./volume.js").Volume} Volume
 */
import { rowOf } from "./planes.js";
import { BLACK } from "./windowing.js";

/**
 * Fill `pixels` with the plane's slice at `index`; rows that have not arrived stay black.
 * @param {Uint32Array} pixels  size[plane.across] × size[plane.down], row by row
 * @param {Plane} plane
 * @param {Volume} volume
 * @param {number} index
 * @param {Uint32Array} table  pixel of each HU, see LookUpTable
 */
export function paintSlice(pixels, plane, volume, index, table) {
  const { hu, size, arrived } = volume;
  const stride = [1, size[0], size[0] * size[1]];
  const width = size[plane.across];
  const height = size[plane.down];
  const step = stride[plane.across];
  for (let row = 0, k = 0; row < height; row++) {
    const down = rowOf(plane, size, row);
    const z = plane.through === 2 ? index : down;
    if (!arrived[z]) {
      pixels.fill(BLACK, k, k + width);
      k += width;
      continue;
    }
    let p = index * stride[plane.through] + down * stride[plane.down];
    for (const end = k + width; k < end; k++, p += step) pixels[k] = table[hu[p] & 0xffff];
  }
}

/**
 * Fill `pixels` with HU that were put together beforehand.
 * @param {Uint32Array} pixels
 * @param {Int16Array} hu  as many
 * @param {Uint32Array} table  pixel of each HU, see LookUpTable
 */
export function paintHu(pixels, hu, table) {
  for (let k = 0; k < pixels.length; k++) pixels[k] = table[hu[k] & 0xffff];
}

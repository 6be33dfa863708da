/**
 * The lossless coding of slabs, below the transport's zstd or gzip: along x the difference to the
 * left neighbour (the first voxel of a row to 0), zigzag so that small differences of either sign
 * are small numbers, then all low bytes before all high bytes.
 */
import { bytesOf, fetchAgain } from "./fetching.js";

/**
 * @param {Uint8Array} bytes  2 × rows × columns
 * @param {number} columns  voxels in a row
 * @param {number} rows  rows of all slices together
 * @returns {Int16Array} HU, row by row
 */
export function decodeSlab(bytes, columns, rows) {
  const voxels = columns * rows;
  if (bytes.length !== 2 * voxels) {
    throw new Error(`slab of ${bytes.length} bytes, expected ${2 * voxels}`);
  }
  const hu = new Int16Array(voxels);
  for (let row = 0, p = 0; row < rows; row++) {
    let value = 0;
    for (let x = 0; x < columns; x++, p++) {
      const zigzag = bytes[p] | (bytes[voxels + p] << 8);
      value += (zigzag >>> 1) ^ -(zigzag & 1);
      hu[p] = value;
    }
  }
  return hu;
}

/**
 * Fetch and decode a slab; the browser undoes zstd or gzip itself.
 * @param {string} url
 * @param {number} columns
 * @param {number} rows
 */
export function fetchSlab(url, columns, rows) {
  return fetchAgain(url, async (response) => decodeSlab(await bytesOf(response), columns, rows));
}

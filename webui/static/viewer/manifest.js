/**
 * What the server says about one analysis: the volume's geometry, where its pieces lie, its lesions.
 * Positions are voxels in the order x, y, z (see planes.js).
 *
 * @typedef {import("./planes.js").Triple} Triple
 *
 * @typedef {object} Slab  slices `first` to `first` + `count` − 1 along z, coded as slab.js says
 * @property {string} url
 * @property {number} first
 * @property {number} count
 *
 * @typedef {object} LesionFacts
 * @property {number} id
 * @property {"left" | "right" | "both"} side  the patient's
 * @property {number} volume_ml
 * @property {number} diameter_mm
 * @property {number} mean_hu
 * @property {number | null} probability
 * @property {Triple} first  lowest voxel of its box
 * @property {Triple} last  highest voxel of its box, inclusive
 * @property {Triple} look_at  where to look first
 * @property {string} mask_url  one bit for each voxel of its box, see masks.js
 *
 * @typedef {object} HeatMapFacts
 * @property {string} answer  what the heat speaks for
 * @property {Triple} first  lowest voxel of its box
 * @property {Triple} last  highest voxel of its box, inclusive
 * @property {string} url  one byte for each voxel of its box, x fastest
 *
 * @typedef {object} Manifest
 * @property {Triple} size
 * @property {Triple} spacing_mm
 * @property {(number | null)[]} image_numbers  the scanner's number of each z, if it gave one
 * @property {Slab[]} key_slabs  one slice each: the lesions' key slices, first lesion first
 * @property {Slab[]} slabs
 * @property {LesionFacts[]} lesions
 * @property {HeatMapFacts[]} heat_maps  none unless they were asked for
 * @property {{first: Triple, last: Triple} | null} lungs  the box around both, null if none were found
 * @property {string} measurements_url
 */
import { bytesOf, fetchAgain } from "./fetching.js";
import { HeatMap } from "./heat_layer.js";
import { LesionMask } from "./masks.js";

/**
 * @param {string} url
 * @returns {Promise<Manifest>}
 */
export function fetchManifest(url) {
  return fetchAgain(url, (response) => response.json());
}

/**
 * @param {LesionFacts} lesion
 * @returns {Promise<LesionMask>}
 */
export function fetchMask({ id, mask_url, first, last }) {
  return fetchAgain(mask_url, async (response) => new LesionMask(id, first, last, await bytesOf(response)));
}

/**
 * @param {HeatMapFacts} heatMap
 * @returns {Promise<HeatMap>}
 */
export function fetchHeatMap({ url, first, last }) {
  return fetchAgain(url, async (response) => new HeatMap(first, last, await bytesOf(response)));
}

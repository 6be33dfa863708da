/**
 * The heat map drawn over a slice, under the lesions: more and more opaque from violet to yellow.
 *
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./planes.js").Triple} Triple
 * @typedef {import("./outlines.js").Section} Section
 * @typedef {import("./state.js").ViewState} ViewState
 */
import { _ } from "../words.js";
import { cutBox, extentOf } from "./masks.js";

/** Red, green and blue from no heat to the most. */
const STOPS = [[90, 30, 160], [220, 60, 100], [255, 225, 70]];
const MOST_OPACITY = 0.6;
const MOST_HEAT = 255;
/** Pictures are kept per slice, as the lesions' outlines are. */
const KEPT_PICTURES = 64;

export class HeatMap {
  /**
   * @param {Triple} first  lowest voxel of the box
   * @param {Triple} last  highest voxel of the box, inclusive
   * @param {Uint8Array} heat  0 to 255, x fastest
   */
  constructor(first, last, heat) {
    const extent = extentOf(first, last);
    const needed = extent[0] * extent[1] * extent[2];
    if (heat.length !== needed) throw new Error(`heat map: ${heat.length} bytes, expected ${needed}`);
    this.origin = first;
    this.extent = extent;
    this.heat = heat;
  }

  /**
   * The heat on one slice of a plane, or null where the slice misses its box.
   * @param {Plane} plane
   * @param {Triple} size  voxels of the whole volume
   * @param {number} index  slice index
   */
  section(plane, size, index) {
    return cutBox(this, plane, size, index, (p) => this.heat[p]);
  }
}

/** @typedef {{canvas: OffscreenCanvas, left: number, top: number}} Picture */

export class HeatLayer {
  #colours = colourTable();
  /** By their place in the manifest. @type {Map<number, HeatMap>} */
  #maps = new Map();
  /** @type {Map<string, Picture | null>} */
  #pictures = new Map();

  /** @param {readonly string[]} answers  what each heat map speaks for */
  constructor(answers) {
    this.answers = answers;
  }

  /**
   * @param {number} place
   * @param {HeatMap} map
   */
  add(place, map) {
    this.#maps.set(place, map);
  }

  /**
   * Draw into a context whose transform maps slice pixels to the canvas.
   * @param {CanvasRenderingContext2D} context
   * @param {Plane} plane
   * @param {ViewState} state
   */
  draw(context, plane, state) {
    if (state.heatMap === null) return;
    const picture = this.#picture(state.heatMap, plane, state.size, state.position[plane.through]);
    if (picture) context.drawImage(picture.canvas, picture.left, picture.top);
  }

  /**
   * What is to be said of the heat map in a plane, a line of its own: it may have nothing on a slice.
   * @param {Plane} plane
   * @param {ViewState} state
   */
  label(plane, state) {
    if (state.heatMap === null) return "";
    const answer = this.answers[state.heatMap];
    if (!this.#maps.has(state.heatMap)) return "\n" + _("heat map: %(answer)s, loading", { answer });
    const picture = this.#picture(state.heatMap, plane, state.size, state.position[plane.through]);
    return "\n" + (picture ? _("heat map: %(answer)s", { answer }) : _("heat map: %(answer)s, none here", { answer }));
  }

  /**
   * @param {number} place
   * @param {Plane} plane
   * @param {Triple} size
   * @param {number} index
   * @returns {Picture | null}
   */
  #picture(place, plane, size, index) {
    const map = this.#maps.get(place);
    if (map === undefined) return null;
    const key = `${place} ${plane.name} ${index}`;
    const kept = this.#pictures.get(key);
    if (kept !== undefined) return kept;
    const section = map.section(plane, size, index);
    const picture = section?.inside.some((heat) => heat > 0) ? { canvas: this.#paint(section), left: section.left, top: section.top } : null;
    if (this.#pictures.size >= KEPT_PICTURES) this.#pictures.clear();
    this.#pictures.set(key, picture);
    return picture;
  }

  /** @param {Section} section */
  #paint({ width, height, inside }) {
    const canvas = new OffscreenCanvas(width, height);
    const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    for (let k = 0; k < pixels.length; k++) pixels[k] = this.#colours[inside[k]];
    context.putImageData(image, 0, 0);
    return canvas;
  }
}

/** The pixel of each heat, as putImageData wants it on a little-endian machine (A B G R). */
function colourTable() {
  const table = new Uint32Array(MOST_HEAT + 1);
  for (let heat = 1; heat <= MOST_HEAT; heat++) {
    const along = (heat / MOST_HEAT) * (STOPS.length - 1);
    const stop = Math.min(Math.floor(along), STOPS.length - 2);
    const mixed = (/** @type {number} */ i) =>
      Math.round(STOPS[stop][i] + (along - stop) * (STOPS[stop + 1][i] - STOPS[stop][i]));
    const opacity = Math.round((heat / MOST_HEAT) * MOST_OPACITY * 255);
    table[heat] = ((opacity << 24) | (mixed(2) << 16) | (mixed(1) << 8) | mixed(0)) >>> 0;
  }
  return table;
}

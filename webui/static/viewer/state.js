/**
 * What the reader is looking at. Every part of the page reads it here and changes it here; a
 * change tells its listeners what kind of thing changed.
 *
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./planes.js").Triple} Triple
 * @typedef {import("./windowing.js").Window} Window
 * @typedef {"position" | "window" | "overlay" | "lesion" | "heat" | "drawing" | "arrived" | "slab"} Change
 */
import { clamp, sliceAfter, sliceNumber } from "./planes.js";
import { MODES, THICKNESSES_MM } from "./slab_projection.js";

const NARROWEST_WINDOW_HU = 1;
const WIDEST_WINDOW_HU = 8000;
const CENTRE_LIMIT_HU = 4000;

export class ViewState {
  /** @type {Set<(change: Change) => void>} */
  #listeners = new Set();

  /**
   * @param {Triple} size  voxels of the volume
   * @param {Window} window
   */
  constructor(size, window) {
    this.size = size;
    /** Where the cross-hair stands. @type {Triple} */
    this.position = [size[0] >> 1, size[1] >> 1, size[2] >> 1];
    /** @type {Window} */
    this.window = { width: window.width, centre: window.centre };
    /** @type {import("./slab_projection.js").Slab} */
    this.slab = { mode: null, mm: 10 };
    /** Lesions are drawn at all. */
    this.overlay = true;
    /** Lesions are filled, not only outlined. */
    this.fill = false;
    /** Place of the heat map that is shown. @type {number | null} */
    this.heatMap = null;
    /** Number of the chosen lesion. @type {number | null} */
    this.lesion = null;
  }

  /** @param {(change: Change) => void} listener */
  onChange(listener) {
    this.#listeners.add(listener);
  }

  /** @param {Change} change */
  #tell(change) {
    for (const listener of this.#listeners) listener(change);
  }

  /** @param {Triple} voxel */
  moveTo(voxel) {
    const [nx, ny, nz] = this.size;
    this.position = [
      clamp(Math.round(voxel[0]), 0, nx - 1),
      clamp(Math.round(voxel[1]), 0, ny - 1),
      clamp(Math.round(voxel[2]), 0, nz - 1),
    ];
    this.#tell("position");
  }

  /**
   * @param {Plane} plane
   * @param {number} index
   */
  showSlice(plane, index) {
    /** @type {Triple} */
    const voxel = [...this.position];
    voxel[plane.through] = index;
    this.moveTo(voxel);
  }

  /**
   * @param {Plane} plane
   * @param {number} steps  in reading order
   */
  scroll(plane, steps) {
    this.showSlice(plane, sliceAfter(plane, this.size, this.position[plane.through], steps));
  }

  /** @param {Window} window */
  setWindow({ width, centre }) {
    this.window = {
      width: Math.round(clamp(width, NARROWEST_WINDOW_HU, WIDEST_WINDOW_HU)),
      centre: Math.round(clamp(centre, -CENTRE_LIMIT_HU, CENTRE_LIMIT_HU)),
    };
    this.#tell("window");
  }

  /** What lies over the slices is to be drawn anew: a mask arrived, a tool moved. */
  redraw() {
    this.#tell("drawing");
  }

  /** Images have arrived in the volume. */
  imagesArrived() {
    this.#tell("arrived");
  }

  /**
   * Go to the next slice, after the last one to the first.
   * @param {Plane} plane
   */
  scrollRound(plane) {
    const count = this.size[plane.through];
    const last = sliceNumber(plane, this.size, this.position[plane.through]) === count;
    this.scroll(plane, last ? -count : 1);
  }

  /** @param {import("./slab_projection.js").Slab} slab */
  setSlab(slab) {
    this.slab = slab;
    this.#tell("slab");
  }

  /** Single slices, then a slab of the brightest, the darkest, the mean. */
  nextSlabMode() {
    const mode = MODES[(MODES.indexOf(this.slab.mode) + 1) % MODES.length];
    this.setSlab({ ...this.slab, mode });
  }

  /** @param {number} steps  1 for thicker, -1 for thinner */
  changeThickness(steps) {
    const at = THICKNESSES_MM.indexOf(this.slab.mm) + steps;
    this.setSlab({ mode: this.slab.mode ?? "mip", mm: THICKNESSES_MM[clamp(at, 0, THICKNESSES_MM.length - 1)] });
  }

  /**
   * @param {boolean} overlay  lesions are drawn at all
   * @param {boolean} fill  filled, not only outlined
   */
  showOverlay(overlay, fill) {
    this.overlay = overlay;
    this.fill = fill;
    this.#tell("overlay");
  }

  toggleOverlay() {
    this.showOverlay(!this.overlay, this.fill);
  }

  toggleFill() {
    this.showOverlay(true, !this.fill);
  }

  /**
   * Show the next heat map, after the last one none.
   * @param {number} count  how many there are
   */
  nextHeatMap(count) {
    const next = this.heatMap === null ? 0 : this.heatMap + 1;
    this.heatMap = next < count ? next : null;
    this.#tell("heat");
  }

  /**
   * Choose a lesion and move the cross-hair onto it.
   * @param {number} lesion
   * @param {Triple} voxel
   */
  chooseLesion(lesion, voxel) {
    this.lesion = lesion;
    this.#tell("lesion");
    this.moveTo(voxel);
  }
}

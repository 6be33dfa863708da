/**
 * One plane on the screen: the slice and the lesions on a canvas, the texts and the cross-hair as
 * elements over it. A change draws at most once per animation frame, and only what it touched:
 * scrolling one plane moves lines over the other two without painting them again.
 *
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./planes.js").Triple} Triple
 * @typedef {import("./state.js").ViewState} ViewState
 * @typedef {import("./volume.js").Volume} Volume
 * @typedef {import("./windowing.js").LookUpTable} LookUpTable
 * @typedef {import("./heat_layer.js").HeatLayer} HeatLayer
 * @typedef {import("./tools.js").Layer} Layer
 * @typedef {import("./view_transform.js").Orientation} Orientation
 */
import { element } from "../dom.js";
import { _ } from "../words.js";
import { paintHu, paintSlice } from "./painting.js";
import { clamp, nearestVoxel, rowOf, sliceNumber } from "./planes.js";
import { scaleBarMm } from "./scale_bar.js";
import { MODE_WORDS, projectSlab, slabRange } from "./slab_projection.js";
import { orientationMark, sidesOf, STANDARD, ViewTransform } from "./view_transform.js";

const SMALLEST_ZOOM = 0.5;
const LARGEST_ZOOM = 16;
/** Free space around the crossing point, so that the lines never cover what they point at. */
const CROSS_GAP_PX = 16;

export class Viewport {
  #imageStale = true;
  #drawingStale = true;
  #frame = 0;
  #zoom = 1;
  #panX = 0;
  #panY = 0;
  /** @type {Orientation} */
  #orientation = STANDARD;
  /** Slice pixels → CSS pixels, as last drawn. @type {ViewTransform} */
  #transform;
  /**
   * Where the mouse is on the page, if it is over this plane. Not the voxel there: the picture also
   * moves under a mouse that stands still.
   * @type {{clientX: number, clientY: number} | null}
   */
  #pointer = null;

  /**
   * @param {Plane} plane
   * @param {object} parts
   * @param {ViewState} parts.state
   * @param {Volume} parts.volume
   * @param {LookUpTable} parts.colours
   * @param {HeatLayer} parts.heat
   * @param {readonly Layer[]} parts.layers  over the slice, the lowest first
   * @param {(index: number) => string} parts.imageLabel  the scanner's own image number, or nothing
   */
  constructor(plane, { state, volume, colours, heat, layers, imageLabel }) {
    this.plane = plane;
    this.state = state;
    this.volume = volume;
    this.colours = colours;
    this.heat = heat;
    this.layers = layers;
    this.imageLabel = imageLabel;

    this.canvas = element("canvas");
    this.context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d", { alpha: false }));
    const { size } = volume;
    this.slice = new OffscreenCanvas(size[plane.across], size[plane.down]);
    this.sliceContext = /** @type {OffscreenCanvasRenderingContext2D} */ (
      this.slice.getContext("2d", { alpha: false, willReadFrequently: true })
    );
    this.image = this.sliceContext.createImageData(this.slice.width, this.slice.height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    /** HU of the slab that is shown, if one is. */
    this.projected = new Int16Array(0);
    this.#transform = this.#fitted(0, 0);

    this.title = element("p", { class: "corner top-left" });
    this.readout = element("p", { class: "corner bottom-left" });
    this.scale = element("p", { class: "scale-bar" });
    this.lines = ["west", "east", "north", "south"].map((side) => element("i", { class: `cross ${side}` }));
    this.sides = /** @type {[keyof Plane["sides"], HTMLElement][]} */ (
      Object.keys(plane.sides).map((side) => [side, element("b", { class: `side ${side}` })])
    );
    this.mark = element("p", { class: "orientation-mark" });
    this.box = element("section", { class: `viewport ${plane.name}`, tabindex: "0" },
      this.canvas, ...this.lines, ...this.sides.map(([, box]) => box), this.mark, this.title, this.readout, this.scale);
    this.box.setAttribute("aria-label", _("%(plane)s view", { plane: plane.title }));

    state.onChange((change) => this.#changed(change));
    new ResizeObserver(() => this.#redraw()).observe(this.box);
  }

  /** Slices `first` to `first` + `count` − 1 along z have arrived. @type {(first: number, count: number) => void} */
  arrived(first, count) {
    const shown = this.#slices();
    if (this.plane.through !== 2 || (shown.last >= first && shown.first < first + count)) this.#redraw(true);
  }

  /**
   * Where a point of the page lies on the drawn slice, in voxels: a voxel's centre is at whole
   * numbers. Not held inside the volume.
   * @param {number} clientX
   * @param {number} clientY
   * @returns {Triple}
   */
  placeAt(clientX, clientY) {
    const { plane, state } = this;
    const box = this.canvas.getBoundingClientRect();
    const [column, row] = this.#transform.toSlice(clientX - box.left, clientY - box.top);
    /** @type {Triple} */
    const place = [...state.position];
    place[plane.across] = column - 0.5;
    place[plane.down] = rowOf(plane, state.size, row - 0.5);
    return place;
  }

  /**
   * Zoom by a factor and keep the point under the mouse where it is.
   * @param {number} factor
   * @param {number} clientX
   * @param {number} clientY
   */
  zoomAt(factor, clientX, clientY) {
    const zoom = clamp(this.#zoom * factor, SMALLEST_ZOOM, LARGEST_ZOOM);
    const change = zoom / this.#zoom;
    const box = this.canvas.getBoundingClientRect();
    const x = clientX - box.left - box.width / 2;
    const y = clientY - box.top - box.height / 2;
    this.#panX = x - (x - this.#panX) * change;
    this.#panY = y - (y - this.#panY) * change;
    this.#zoom = zoom;
    this.#redraw();
  }

  /** @type {(dx: number, dy: number) => void} */
  panBy(dx, dy) {
    this.#panX += dx;
    this.#panY += dy;
    this.#redraw();
  }

  /** @param {{clientX: number, clientY: number} | null} point  where the mouse is, if over this plane */
  pointAt(point) {
    this.#pointer = point && { clientX: point.clientX, clientY: point.clientY };
    this.#schedule();
  }

  /** Turn or mirror the picture. @param {(old: Orientation) => Orientation} turn */
  turn(turn) {
    this.#orientation = turn(this.#orientation);
    this.#redraw();
  }

  /** The whole plane as radiologists read it. */
  resetView() {
    this.#orientation = STANDARD;
    this.#zoom = 1;
    this.#panX = 0;
    this.#panY = 0;
    this.#redraw();
  }

  /** @param {import("./state.js").Change} change */
  #changed(change) {
    if (change === "position") {
      const moved = this.#shownIndex !== this.state.position[this.plane.through];
      if (moved) this.#redraw(true);
      else this.#schedule();
    } else if (change === "window" || change === "slab") {
      this.#redraw(true);
    } else if (change !== "arrived") {
      this.#redraw();
    }
  }

  /** Index of the slice that `pixels` holds. */
  #shownIndex = -1;

  /** Draw again at the next frame, `image` also paint the slice again. @param {boolean} image */
  #redraw(image = false) {
    this.#drawingStale = true;
    this.#imageStale ||= image;
    this.#schedule();
  }

  #schedule() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  #draw() {
    if (this.#imageStale) this.#paint();
    if (this.#drawingStale) this.#compose();
    this.#imageStale = false;
    this.#drawingStale = false;
    this.#placeCross();
    this.#writeTexts();
  }

  #paint() {
    const { plane, volume, state, colours } = this;
    this.#shownIndex = state.position[plane.through];
    if (state.slab.mode === null) {
      paintSlice(this.pixels, plane, volume, this.#shownIndex, colours.table);
    } else {
      if (this.projected.length === 0) this.projected = new Int16Array(this.pixels.length);
      projectSlab(this.projected, plane, volume, this.#slices(), state.slab.mode);
      paintHu(this.pixels, this.projected, colours.table);
    }
    this.sliceContext.putImageData(this.image, 0, 0);
  }

  /** The first and the last slice of the picture. */
  #slices() {
    const { plane, volume, state } = this;
    const mm = state.slab.mode === null ? 0 : state.slab.mm;
    return slabRange(plane, volume, state.position[plane.through], mm);
  }

  #compose() {
    const { canvas, context, slice, plane, state } = this;
    // In fractions: a box of 745.6 pixels taken for 746 makes a ruler of 20 cm a tenth of a millimetre wrong.
    const room = canvas.getBoundingClientRect();
    const width = Math.round(room.width * devicePixelRatio);
    const height = Math.round(room.height * devicePixelRatio);
    if (width === 0 || height === 0) return; // another plane is shown alone
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    this.#transform = this.#fitted(room.width, room.height);
    this.#placeSides(room.width);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    this.#transform.applyTo(context, width / room.width, height / room.height);
    context.imageSmoothingEnabled = true;
    context.drawImage(slice, 0, 0);
    for (const layer of this.layers) layer.draw(context, plane, state);
  }

  /**
   * @param {number} width  of the canvas, CSS pixels
   * @param {number} height
   */
  #fitted(width, height) {
    const { slice, plane, volume } = this;
    return new ViewTransform(
      {
        width,
        height,
        columns: slice.width,
        rows: slice.height,
        mmAcross: volume.spacingMm[plane.across],
        mmDown: volume.spacingMm[plane.down],
      },
      { orientation: this.#orientation, zoom: this.#zoom, panX: this.#panX, panY: this.#panY },
    );
  }

  /** @param {number} width  of the canvas, CSS pixels */
  #placeSides(width) {
    const { pixelsPerMm } = this.#transform;
    const mm = scaleBarMm(width / 3 / pixelsPerMm);
    this.scale.style.width = `${mm * pixelsPerMm}px`;
    write(this.scale, mm < 10 ? `${mm} mm` : `${mm / 10} cm`);
    const letters = sidesOf(this.plane, this.#orientation);
    for (const [side, box] of this.sides) write(box, letters[side]);
    write(this.mark, orientationMark(this.#orientation));
  }

  #placeCross() {
    const { plane, state } = this;
    const row = rowOf(plane, state.size, state.position[plane.down]);
    const [x, y] = this.#transform.toScreen(state.position[plane.across] + 0.5, row + 0.5);
    const [west, east, north, south] = this.lines;
    west.style.transform = `translate(${x - CROSS_GAP_PX}px, ${y}px) translateX(-100%)`;
    east.style.transform = `translate(${x + CROSS_GAP_PX}px, ${y}px)`;
    north.style.transform = `translate(${x}px, ${y - CROSS_GAP_PX}px) translateY(-100%)`;
    south.style.transform = `translate(${x}px, ${y + CROSS_GAP_PX}px)`;
  }

  #writeTexts() {
    const { plane, state } = this;
    const index = state.position[plane.through];
    const number = sliceNumber(plane, state.size, index);
    const heat = plane.through === 2 ? this.heat.label(plane, state) : "";
    const slab = state.slab.mode === null ? "" : `\n${MODE_WORDS[state.slab.mode]} ${state.slab.mm} mm`;
    const missing = plane.through === 2 && this.#missing() ? " · " + _("loading") : "";
    write(this.title, `${plane.title}  ${number}/${state.size[plane.through]}${this.imageLabel(index)}${missing}${slab}${heat}`);
    const { width, centre } = state.window;
    const hu = this.#huUnderPointer();
    write(this.readout, `W ${width}  L ${centre}${hu === null ? "" : `  ·  ${hu} HU`}`);
  }

  /** Whether any of the shown axial slices has not arrived. */
  #missing() {
    const { first, last } = this.#slices();
    return this.volume.arrived.subarray(first, last + 1).includes(0);
  }

  /** The HU that the picture shows there: of a slab, the projected ones. */
  #huUnderPointer() {
    if (this.#pointer === null) return null;
    const { plane, volume, state } = this;
    const voxel = nearestVoxel(this.placeAt(this.#pointer.clientX, this.#pointer.clientY));
    const hu = volume.huAt(voxel);
    if (hu === null || state.slab.mode === null) return hu;
    return this.projected[rowOf(plane, state.size, voxel[plane.down]) * this.slice.width + voxel[plane.across]];
  }
}

/**
 * Set a text only where it differs: an equal write would still cost a layout.
 * @param {HTMLElement} target
 * @param {string} text
 */
function write(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

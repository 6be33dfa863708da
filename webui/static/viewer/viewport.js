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
 * @typedef {import("./lesion_layer.js").LesionLayer} LesionLayer
 */
import { element } from "../dom.js";
import { paintSlice } from "./painting.js";
import { clamp, rowOf, sliceNumber } from "./planes.js";
import { scaleBarMm } from "./scale_bar.js";

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
  /** Slice pixels → CSS pixels: origin and pixel size, set by #fit. */
  #left = 0;
  #top = 0;
  #stepX = 1;
  #stepY = 1;
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
   * @param {LesionLayer} parts.lesions
   * @param {(index: number) => string} parts.imageLabel  the scanner's own image number, or nothing
   */
  constructor(plane, { state, volume, colours, heat, lesions, imageLabel }) {
    this.plane = plane;
    this.state = state;
    this.volume = volume;
    this.colours = colours;
    this.heat = heat;
    this.lesions = lesions;
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

    this.title = element("p", { class: "corner top-left" });
    this.readout = element("p", { class: "corner bottom-left" });
    this.scale = element("p", { class: "scale-bar" });
    this.lines = ["west", "east", "north", "south"].map((side) => element("i", { class: `cross ${side}` }));
    const sides = Object.entries(plane.sides).map(([side, letter]) =>
      element("b", { class: `side ${side}`, text: letter }),
    );
    this.box = element("section", { class: `viewport ${plane.name}`, tabindex: "0" },
      this.canvas, ...this.lines, ...sides, this.title, this.readout, this.scale);
    this.box.setAttribute("aria-label", `${plane.title} view`);

    state.onChange((change) => this.#changed(change));
    new ResizeObserver(() => this.#redraw()).observe(this.box);
  }

  /** Slices `first` to `first` + `count` − 1 along z have arrived. @type {(first: number, count: number) => void} */
  arrived(first, count) {
    const z = this.state.position[2];
    if (this.plane.through !== 2 || (z >= first && z < first + count)) this.#redraw(true);
  }

  /** A lesion's mask or a heat map has arrived. */
  overlayArrived() {
    this.#redraw();
  }

  /**
   * The voxel of the drawn slice that a point of the page lies in, not held inside the volume.
   * @param {number} clientX
   * @param {number} clientY
   * @returns {Triple}
   */
  voxelAt(clientX, clientY) {
    const { plane, state } = this;
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((clientX - box.left - this.#left) / this.#stepX);
    const row = Math.floor((clientY - box.top - this.#top) / this.#stepY);
    /** @type {Triple} */
    const voxel = [...state.position];
    voxel[plane.across] = column;
    voxel[plane.down] = rowOf(plane, state.size, row);
    return voxel;
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

  resetView() {
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
    } else if (change === "window") {
      this.#redraw(true);
    } else {
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
    paintSlice(this.pixels, plane, volume, this.#shownIndex, colours.table);
    this.sliceContext.putImageData(this.image, 0, 0);
  }

  #compose() {
    const { canvas, context, slice, plane, state } = this;
    const ratio = devicePixelRatio;
    const width = Math.round(canvas.clientWidth * ratio);
    const height = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    this.#fit(canvas.clientWidth, canvas.clientHeight);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    const scaleX = this.#stepX * ratio;
    const scaleY = this.#stepY * ratio;
    context.setTransform(scaleX, 0, 0, scaleY, this.#left * ratio, this.#top * ratio);
    context.imageSmoothingEnabled = true;
    context.drawImage(slice, 0, 0);
    this.heat.draw(context, plane, state);
    if (state.overlay) this.lesions.draw(context, plane, state);
  }

  /** @type {(width: number, height: number) => void} */
  #fit(width, height) {
    const { slice, plane, volume } = this;
    const mmAcross = volume.spacingMm[plane.across];
    const mmDown = volume.spacingMm[plane.down];
    const fit = Math.min(width / (slice.width * mmAcross), height / (slice.height * mmDown));
    const pixelsPerMm = fit * this.#zoom;
    this.#stepX = mmAcross * pixelsPerMm;
    this.#stepY = mmDown * pixelsPerMm;
    this.#left = (width - slice.width * this.#stepX) / 2 + this.#panX;
    this.#top = (height - slice.height * this.#stepY) / 2 + this.#panY;
    const mm = scaleBarMm(width / 3 / pixelsPerMm);
    this.scale.style.width = `${mm * pixelsPerMm}px`;
    this.scale.textContent = mm < 10 ? `${mm} mm` : `${mm / 10} cm`;
  }

  #placeCross() {
    const { plane, state } = this;
    const x = this.#left + (state.position[plane.across] + 0.5) * this.#stepX;
    const y = this.#top + (rowOf(plane, state.size, state.position[plane.down]) + 0.5) * this.#stepY;
    const [west, east, north, south] = this.lines;
    west.style.transform = `translate(${x - CROSS_GAP_PX}px, ${y}px) translateX(-100%)`;
    east.style.transform = `translate(${x + CROSS_GAP_PX}px, ${y}px)`;
    north.style.transform = `translate(${x}px, ${y - CROSS_GAP_PX}px) translateY(-100%)`;
    south.style.transform = `translate(${x}px, ${y + CROSS_GAP_PX}px)`;
  }

  #writeTexts() {
    const { plane, state, volume } = this;
    const index = state.position[plane.through];
    const number = sliceNumber(plane, state.size, index);
    const heat = plane.through === 2 ? this.heat.label(plane, state) : "";
    const missing = plane.through === 2 && !volume.arrived[index] ? " · loading" : "";
    write(this.title, `${plane.title}  ${number}/${state.size[plane.through]}${this.imageLabel(index)}${missing}${heat}`);
    const { width, centre } = state.window;
    const hu = this.#pointer && volume.huAt(this.voxelAt(this.#pointer.clientX, this.#pointer.clientY));
    write(this.readout, `W ${width}  L ${centre}${hu === null ? "" : `  ·  ${hu} HU`}`);
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

/**
 * The tools that outline lesions: brush, eraser, and a region that grows from a seed; their options,
 * and undo and redo.
 *
 * @typedef {import("./edit_layer.js").EditLayer} EditLayer
 * @typedef {import("./edit_regions.js").EditRegions} EditRegions
 * @typedef {import("./keys.js").Command} Command
 * @typedef {import("./masks.js").LesionMask} LesionMask
 * @typedef {import("./planes.js").Triple} Triple
 * @typedef {import("./reading.js").Reading} Reading
 * @typedef {import("./tools.js").Tool} Tool
 * @typedef {import("./tools.js").Toolbox} Toolbox
 * @typedef {import("./viewport.js").Viewport} Viewport
 */
import { element } from "../dom.js";
import { _ } from "../words.js";
import { grow, stroke } from "./edit_brush.js";
import { clamp, nearestVoxel } from "./planes.js";

const BRUSH_MM = { least: 1, most: 60, step: 1, first: 10 };
const TOLERANCE_HU = { least: 10, most: 500, step: 10, first: 150 };
const RADIUS_MM = { least: 5, most: 60, step: 1, first: 20 };
/** A stroke that begins this near to the chosen lesion's box changes it; further away it adds another. */
const NEAR_MM = 10;
const NOT_NOW = _("Lesions can be outlined while you review or amend.");
const NOT_IN_SLAB = _("A thick slab shows several slices at once: show single slices to outline a lesion.");
const NOT_YET = _("Wait until all images have arrived.");

export class EditTools {
  /** The lesion that the stroke under way changes. @type {number | null} */
  #target = null;
  /** @type {Triple | null} */
  #from = null;
  /** The last seed, as long as nothing was done since. @type {{seed: Triple, number: number} | null} */
  #seeded = null;
  #startNew = false;

  /**
   * @param {Reading} reading  whose lesions are outlined
   * @param {EditRegions} regions
   * @param {EditLayer} layer
   */
  constructor({ state, volume }, regions, layer) {
    this.state = state;
    this.volume = volume;
    this.regions = regions;
    this.layer = layer;
    /** Whether the reader may outline lesions now; set by the review. */
    this.open = false;
    /** Null until all are here; set by the review. @type {readonly LesionMask[] | null} */
    this.lungs = null;
    this.brushMm = slider(_("Brush size"), "mm", BRUSH_MM, () => this.#showBrush(null));
    this.toleranceHu = slider(_("Tolerance"), "HU", TOLERANCE_HU, () => this.#growAgain());
    this.radiusMm = slider(_("Largest radius"), "mm", RADIUS_MM, () => this.#growAgain());
    this.message = element("p", { class: "message", role: "status" });
    this.what = element("p", { class: "what" });
    this.startNew = element("button", { type: "button", text: _("New lesion") });
    this.startNew.addEventListener("click", () => {
      this.#startNew = !this.#startNew;
      this.#show();
    });
    this.undoButton = element("button", { type: "button", text: _("Undo"), title: "Ctrl + Z" });
    this.undoButton.addEventListener("click", () => this.undo());
    this.redoButton = element("button", { type: "button", text: _("Redo"), title: "Ctrl + Shift + Z" });
    this.redoButton.addEventListener("click", () => this.redo());
    this.box = element("section", { class: "edit-options", "aria-label": _("Outlining lesions") },
      this.what, this.brushMm.box, this.toleranceHu.box, this.radiusMm.box,
      element("p", { class: "actions" }, this.startNew, this.undoButton, this.redoButton), this.message);
    this.box.hidden = true;
    /** @type {Tool[]} */
    this.tools = [
      this.#brush("brush", _("Brush"), "b", true),
      this.#brush("eraser", _("Erase"), "e", false),
      { name: "seed", label: _("Add by seed"), key: "a", down: (viewport, at) => this.#seed(viewport, at), move() {}, up() {} },
    ];
    regions.onChange(() => this.#show());
    state.onChange((change) => {
      if (change === "lesion") this.#show();
    });
  }

  /** Show the options of the active tool. @param {Toolbox} toolbox */
  follow(toolbox) {
    const show = () => {
      const { name } = toolbox.active;
      const painting = name === "brush" || name === "eraser";
      this.box.hidden = !this.tools.includes(toolbox.active);
      this.brushMm.box.hidden = !painting;
      this.startNew.hidden = name !== "brush";
      this.toleranceHu.box.hidden = name !== "seed";
      this.radiusMm.box.hidden = name !== "seed";
      this.active = name;
      this.#say(this.box.hidden || this.open ? "" : NOT_NOW);
      if (!painting) this.#showBrush(null);
      this.#show();
    };
    toolbox.onChange(show);
    show();
  }

  /** @returns {Command[]} */
  get commands() {
    const larger = (/** @type {number} */ steps) => this.brushMm.add(steps);
    return [
      { name: "undo", key: "ctrl+z", does: _("Undo the last stroke"), run: () => this.undo() },
      { name: "redo", key: "ctrl+shift+z", does: _("Redo the stroke that was undone"), run: () => this.redo() },
      { name: "brush-smaller", key: "[", does: _("Smaller brush"), run: () => larger(-1) },
      { name: "brush-larger", key: "]", does: _("Larger brush"), run: () => larger(1) },
    ];
  }

  undo() {
    this.#again(() => this.regions.undo());
  }

  redo() {
    this.#again(() => this.regions.redo());
  }

  /** @param {() => number | null} step */
  #again(step) {
    if (!this.open) return;
    this.#seeded = null;
    step();
    this.state.redraw();
  }

  /**
   * @param {string} name
   * @param {string} label
   * @param {string} key
   * @param {boolean} inside
   * @returns {Tool}
   */
  #brush(name, label, key, inside) {
    const paint = (/** @type {Viewport} */ { plane }, /** @type {Triple} */ at, /** @type {boolean} */ joined) => {
      if (this.#target === null || !this.open) return;
      const voxels = stroke(this.volume, plane, this.#from ?? at, at, this.brushMm.value);
      this.regions.paint(this.#target, voxels, inside, { joined });
      this.#from = at;
      this.state.redraw();
    };
    const end = () => {
      this.#target = null;
      this.#from = null;
      this.regions.endStroke();
    };
    return {
      name,
      label,
      key,
      down: (viewport, at) => {
        if (!this.#mayEdit(viewport)) return;
        this.#seeded = null;
        this.#target = inside ? this.#painted(at) : this.#erased(viewport, at);
        paint(viewport, at, false);
        if (inside && this.#target !== null) this.state.chooseLesion(this.#target, this.state.position);
      },
      move: (viewport, at) => {
        this.#showBrush({ viewport, at });
        paint(viewport, at, true);
      },
      up: end,
      hover: (viewport, at) => this.#showBrush({ viewport, at }),
      cancel: () => {
        end();
        this.#showBrush(null);
      },
    };
  }

  /** Whether lesions can be outlined there now; if not, it says why. @param {Viewport} viewport */
  #mayEdit(viewport) {
    const here = viewport.state === this.state;
    const single = this.state.slab.mode === null;
    const ready = this.regions.complete && this.lungs !== null;
    if (!this.open) this.#say(NOT_NOW);
    else if (!here) this.#say(_("Lesions are outlined on the current study, not on the prior one."));
    else if (!single) this.#say(NOT_IN_SLAB);
    else this.#say(ready ? "" : NOT_YET);
    return this.open && here && single && ready;
  }

  /** The lesion that a stroke of the brush adds to: the chosen one if it is near. @param {Triple} at */
  #painted(at) {
    const fresh = this.#startNew || !this.#near(this.state.lesion, at);
    this.#startNew = false;
    return fresh ? this.regions.nextNumber() : this.state.lesion;
  }

  /** The lesion that a stroke of the eraser takes from: the chosen one if it is near, else the one it meets. @param {Viewport} viewport @param {Triple} at */
  #erased({ plane }, at) {
    if (this.#near(this.state.lesion, at)) return this.state.lesion;
    for (const voxel of stroke(this.volume, plane, at, at, this.brushMm.value)) {
      const owner = this.regions.ownerOf(voxel, 0);
      if (owner !== null) return owner;
    }
    this.#say(_("There is no lesion to erase here."));
    return null;
  }

  /** @param {number | null} number @param {Triple} at */
  #near(number, at) {
    const away = number === null || this.regions.judged[number] === false ? null : this.regions.distance(number, nearestVoxel(at));
    if (away === null) return false;
    return Math.hypot(...away.map((voxels, axis) => voxels * this.volume.spacingMm[axis])) <= NEAR_MM;
  }

  /** @param {Viewport} viewport @param {Triple} at */
  #seed(viewport, at) {
    if (!this.#mayEdit(viewport)) return;
    this.#grow(nearestVoxel(at), this.regions.nextNumber());
  }

  /** With other limits, the region of the last seed is another one. */
  #growAgain() {
    if (this.#seeded === null || !this.open) return;
    const { seed, number } = this.#seeded;
    this.regions.undo();
    this.#grow(seed, number);
  }

  /** @param {Triple} seed @param {number} number */
  #grow(seed, number) {
    const { volume, regions, lungs } = this;
    const [nx, ny] = volume.size;
    this.#seeded = null;
    if (lungs === null || volume.huAt(seed) === null || volume.arrivedCount < volume.size[2]) {
      this.#say(NOT_YET);
      return;
    }
    const place = (seed[2] * ny + seed[1]) * nx + seed[0];
    const owner = regions.ownerOf(place, number);
    if (owner !== null) {
      this.#say(_("This is lesion %(number)s: correct it with the brush.", { number: owner }));
      return;
    }
    const inLungs = (/** @type {number} */ voxel) => lungs.some((lung) => lung.holds(voxel % nx, Math.floor(voxel / nx) % ny, Math.floor(voxel / (nx * ny))));
    if (!inLungs(place)) {
      this.#say(_("A region grows inside the lungs alone: click there, or use the brush."));
      return;
    }
    const voxels = grow(volume, seed, {
      toleranceHu: this.toleranceHu.value,
      radiusMm: this.radiusMm.value,
      allowed: (voxel) => inLungs(voxel) && regions.ownerOf(voxel, number) === null,
    });
    if (voxels.length === 0) {
      this.#say(_("Nothing grows here: raise the tolerance, or click elsewhere."));
      return;
    }
    this.#say("");
    regions.paint(number, voxels, true, { grown: true });
    regions.endStroke();
    this.#seeded = { seed, number };
    this.state.chooseLesion(number, seed);
  }

  /** @param {{viewport: Viewport, at: Triple} | null} where */
  #showBrush(where) {
    if (where !== null) {
      const { plane, state } = where.viewport;
      const brush = { plane, at: where.at, radiusMm: this.brushMm.value / 2, spacingMm: this.volume.spacingMm };
      this.layer.brush = state === this.state ? brush : null;
    } else if (this.layer.brush !== null) {
      this.layer.brush = this.active === "seed" || this.box.hidden ? null : { ...this.layer.brush, radiusMm: this.brushMm.value / 2 };
    }
    this.state.redraw();
  }

  /** @param {string} sentence */
  #say(sentence) {
    this.message.textContent = sentence;
  }

  #show() {
    const { lesion } = this.state;
    const { regions } = this;
    this.undoButton.disabled = !this.open || !regions.canUndo;
    this.redoButton.disabled = !this.open || !regions.canRedo;
    this.startNew.setAttribute("aria-pressed", String(this.#startNew));
    if (this.active === "seed") this.what.textContent = _("Click in a lesion that was missed.");
    else if (this.#startNew || lesion === null) this.what.textContent = _("The next stroke adds a lesion.");
    else if (this.active === "eraser") this.what.textContent = _("Erases from lesion %(number)s, elsewhere from the lesion it meets.", { number: lesion });
    else this.what.textContent = _("Corrects lesion %(number)s; away from it, adds a lesion.", { number: lesion });
  }
}

/**
 * A slider with its value beside it.
 * @param {string} label
 * @param {string} unit
 * @param {{least: number, most: number, step: number, first: number}} range
 * @param {() => void} changed
 */
function slider(label, unit, { least, most, step, first }, changed) {
  const input = element("input", { type: "range", min: String(least), max: String(most), step: String(step), value: String(first) });
  const shown = element("output", { text: `${first} ${unit}` });
  const box = element("label", {}, element("span", { text: label }), input, shown);
  const show = () => {
    shown.textContent = `${input.value} ${unit}`;
    changed();
  };
  input.addEventListener("input", show);
  return {
    box,
    get value() {
      return Number(input.value);
    },
    /** @param {number} steps */
    add(steps) {
      input.value = String(clamp(Number(input.value) + steps * step, least, most));
      show();
    },
  };
}

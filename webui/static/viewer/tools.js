/**
 * What the left button does. One tool is active at a time and gets the presses in every plane. A
 * place is a voxel in fractions: a voxel's centre is at whole numbers, and along the plane's
 * `through` axis it is the slice that is shown.
 *
 * A tool that shows something keeps a `Layer`, puts it among a reading's (reading.js) and calls
 * `state.redraw()` whenever it would draw otherwise than before.
 *
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./planes.js").Triple} Triple
 * @typedef {import("./state.js").ViewState} ViewState
 * @typedef {import("./viewport.js").Viewport} Viewport
 *
 * @typedef {object} Tool
 * @property {string} name  for the code and for what is remembered
 * @property {string} label  for people
 * @property {string} key  chooses it, until the reader chose another key
 * @property {(viewport: Viewport, at: Triple, event: PointerEvent) => void} down  the button was pressed
 * @property {(viewport: Viewport, at: Triple, event: PointerEvent) => void} move  the pointer moved while it is held
 * @property {(viewport: Viewport, at: Triple, event: PointerEvent) => void} up  it was released
 * @property {(viewport: Viewport, at: Triple, event: PointerEvent) => void} [hover]  the pointer moved, no button held
 * @property {() => void} [cancel]  forget what is half done: Escape, another tool, a lost pointer
 *
 * @typedef {object} Layer  drawn over the slice, in the order of the viewport's list
 * @property {(context: CanvasRenderingContext2D, plane: Plane, state: ViewState) => void} draw  the
 *   context's transform maps slice pixels to the canvas; `state` says which slice
 */
import { element } from "../dom.js";
import { _ } from "../words.js";

export class Toolbox {
  /** @type {Set<() => void>} */
  #listeners = new Set();

  /** @param {readonly Tool[]} tools  the first is active at first and after Escape */
  constructor(tools) {
    this.tools = tools;
    this.active = tools[0];
  }

  /** @param {readonly Tool[]} tools */
  add(tools) {
    this.tools = [...this.tools, ...tools];
  }

  /** Called when another tool became active. @param {() => void} listener */
  onChange(listener) {
    this.#listeners.add(listener);
  }

  /** @param {string} name */
  choose(name) {
    const tool = this.tools.find((one) => one.name === name);
    if (tool === undefined) throw new Error(`no tool "${name}"`);
    this.active.cancel?.();
    this.active = tool;
    for (const listener of this.#listeners) listener();
  }

  /** Escape: forget what is half done, back to the first tool. */
  leave() {
    this.choose(this.tools[0].name);
  }
}

/** Move the cross-hair of all planes. @returns {Tool} */
export function crossHair() {
  const go = (/** @type {Viewport} */ viewport, /** @type {Triple} */ at) => viewport.state.moveTo(at);
  return { name: "cross-hair", label: _("Cross-hair"), key: "q", down: go, move: go, up() {} };
}

/**
 * The buttons that choose the tools.
 * @param {Toolbox} toolbox
 * @param {HTMLElement} box
 */
export function toolButtons(toolbox, box) {
  const buttons = toolbox.tools.map(({ name, label }) => {
    const button = element("button", { type: "button", text: label });
    button.addEventListener("click", () => toolbox.choose(name));
    return button;
  });
  const show = () => {
    toolbox.tools.forEach((tool, i) => buttons[i].setAttribute("aria-pressed", String(tool === toolbox.active)));
  };
  toolbox.onChange(show);
  show();
  box.append(...buttons);
}

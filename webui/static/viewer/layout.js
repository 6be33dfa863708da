/**
 * Which planes are on the screen: all three, or the active one alone. Keys act on the active plane:
 * the one under the mouse or in focus, at first the axial one.
 *
 * @typedef {import("./viewport.js").Viewport} Viewport
 */

export class Layout {
  /** @type {Set<() => void>} */
  #listeners = new Set();
  /** @type {Viewport[]} */
  #viewports = [];

  /** @param {HTMLElement} box  holds the readings */
  constructor(box) {
    this.box = box;
    this.single = false;
    /** @type {Viewport} */
    this.active;
  }

  /** Called when other planes are shown. @param {() => void} listener */
  onChange(listener) {
    this.#listeners.add(listener);
  }

  /** Take part in the layout, the first of all as the active one. @param {readonly Viewport[]} viewports */
  add(viewports) {
    for (const viewport of viewports) {
      viewport.box.addEventListener("pointerenter", () => this.activate(viewport));
      viewport.box.addEventListener("focus", () => this.activate(viewport));
    }
    this.#viewports.push(...viewports);
    this.activate(this.active ?? viewports[0]);
  }

  /** @param {Viewport} viewport */
  activate(viewport) {
    this.active = viewport;
    this.#show();
  }

  /** The plane after the active one, of the same study. */
  activateNext() {
    const same = this.#viewports.filter(({ state }) => state === this.active.state);
    this.activate(same[(same.indexOf(this.active) + 1) % same.length]);
  }

  /** @param {boolean} single  the active plane alone */
  show(single) {
    this.single = single;
    this.#show();
    for (const listener of this.#listeners) listener();
  }

  resetViews() {
    for (const viewport of this.#viewports) viewport.resetView();
  }

  #show() {
    this.box.classList.toggle("single", this.single);
    for (const { box, plane } of this.#viewports) {
      box.classList.toggle("active", box === this.active.box);
      // Beside a prior study, both show the same plane.
      box.classList.toggle("shown", plane === this.active.plane);
    }
  }
}

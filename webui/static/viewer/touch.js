/**
 * Fingers on a plane: one scrolls, or draws with a tool other than the cross-hair; a tap is a click;
 * a long press windows; two zoom and pan.
 *
 * @typedef {import("./tools.js").Toolbox} Toolbox
 * @typedef {import("./viewport.js").Viewport} Viewport
 */
import { windowDrag } from "./window_drag.js";

const TRAVEL_PER_SLICE_PX = 12;
const LONG_PRESS_MS = 500;
/** A finger is never still: up to here it has not moved. */
const STILL_PX = 8;

/** @typedef {{x: number, y: number}} Point */

export class Touch {
  /** By pointer. @type {Map<number, PointerEvent>} */
  #fingers = new Map();
  /** What the fingers do until all are up. @type {"undecided" | "scroll" | "tool" | "window" | "zoom"} */
  #gesture = "undecided";
  /** @type {Point} */
  #start = { x: 0, y: 0 };
  #scrolledTo = 0;
  #longPress = 0;
  /** @type {(dx: number, dy: number) => void} */
  #window = () => {};

  /**
   * @param {Viewport} viewport
   * @param {Toolbox} toolbox
   */
  constructor(viewport, toolbox) {
    this.viewport = viewport;
    this.toolbox = toolbox;
  }

  /** @param {PointerEvent} event */
  down(event) {
    this.#fingers.set(event.pointerId, event);
    if (this.#fingers.size === 1) this.#begin(event);
    else {
      if (this.#gesture === "tool") this.toolbox.active.cancel?.();
      this.#gesture = "zoom";
      clearTimeout(this.#longPress);
    }
  }

  /** @param {PointerEvent} event */
  #begin(event) {
    const { viewport, toolbox } = this;
    this.#start = { x: event.clientX, y: event.clientY };
    this.#scrolledTo = event.clientY;
    this.#gesture = toolbox.active === toolbox.tools[0] ? "undecided" : "tool";
    if (this.#gesture === "tool") toolbox.active.down(viewport, viewport.placeAt(event.clientX, event.clientY), event);
    else {
      this.#longPress = setTimeout(() => {
        this.#gesture = "window";
        this.#window = windowDrag(viewport.state);
        viewport.box.classList.add("windowing");
      }, LONG_PRESS_MS);
    }
  }

  /** @param {PointerEvent} event */
  move(event) {
    const before = this.#fingers.get(event.pointerId);
    if (before === undefined) return;
    const { viewport, toolbox } = this;
    const dx = event.clientX - this.#start.x;
    const dy = event.clientY - this.#start.y;
    if (this.#gesture === "undecided" && Math.hypot(dx, dy) > STILL_PX) {
      this.#gesture = "scroll";
      clearTimeout(this.#longPress);
    }
    if (this.#gesture === "scroll") {
      const steps = Math.trunc((event.clientY - this.#scrolledTo) / TRAVEL_PER_SLICE_PX);
      this.#scrolledTo += steps * TRAVEL_PER_SLICE_PX;
      if (steps !== 0) viewport.state.scroll(viewport.plane, steps);
    } else if (this.#gesture === "tool") {
      toolbox.active.move(viewport, viewport.placeAt(event.clientX, event.clientY), event);
    } else if (this.#gesture === "window") {
      this.#window(dx, dy);
    } else if (this.#gesture === "zoom" && this.#fingers.size === 2) {
      this.#pinch(before, event);
    }
    this.#fingers.set(event.pointerId, event);
  }

  /**
   * One of two fingers moved: what lay between them still does.
   * @param {PointerEvent} before
   * @param {PointerEvent} now
   */
  #pinch(before, now) {
    const other = [...this.#fingers.values()].find(({ pointerId }) => pointerId !== now.pointerId);
    if (other === undefined) return;
    const distance = (/** @type {PointerEvent} */ one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    const middle = { x: (now.clientX + other.clientX) / 2, y: (now.clientY + other.clientY) / 2 };
    this.viewport.panBy((now.clientX - before.clientX) / 2, (now.clientY - before.clientY) / 2);
    if (distance(before) > 0) this.viewport.zoomAt(distance(now) / distance(before), middle.x, middle.y);
  }

  /** @param {PointerEvent} event */
  up(event) {
    if (!this.#fingers.delete(event.pointerId)) return;
    clearTimeout(this.#longPress);
    const { viewport, toolbox } = this;
    const at = viewport.placeAt(event.clientX, event.clientY);
    if (this.#gesture === "undecided") toolbox.active.down(viewport, at, event);
    if (this.#gesture === "undecided" || this.#gesture === "tool") toolbox.active.up(viewport, at, event);
    if (this.#fingers.size === 0) this.#end();
  }

  /** The browser took the finger away. @param {PointerEvent} event */
  cancel(event) {
    if (!this.#fingers.delete(event.pointerId)) return;
    clearTimeout(this.#longPress);
    if (this.#gesture === "tool") this.toolbox.active.cancel?.();
    if (this.#fingers.size === 0) this.#end();
  }

  #end() {
    this.#gesture = "undecided";
    this.viewport.box.classList.remove("windowing");
  }
}

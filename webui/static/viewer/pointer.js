/**
 * The mouse over a plane, as every PACS viewer has it: wheel scrolls, Ctrl-wheel zooms, the left
 * button is the active tool's, middle drag pans, right drag windows. Fingers are touch.js's.
 *
 * @typedef {import("./tools.js").Tool} Tool
 * @typedef {import("./tools.js").Toolbox} Toolbox
 * @typedef {import("./viewport.js").Viewport} Viewport
 * @typedef {import("./state.js").ViewState} ViewState
 */

import { Touch } from "./touch.js";
import { windowDrag } from "./window_drag.js";

/** Wheel travel, in CSS pixels, for one slice; a mouse's notch is always one slice. */
const TRAVEL_PER_SLICE_PX = 40;
const ZOOM_PER_STEP = 1.15;

const LEFT = 0;
const MIDDLE = 1;
const RIGHT = 2;

/**
 * @param {Viewport} viewport
 * @param {ViewState} state
 * @param {Toolbox} toolbox
 */
export function listenToPointer(viewport, state, toolbox) {
  const { box, canvas } = viewport;
  const touch = new Touch(viewport, toolbox);
  let travel = 0;
  /** `tool`: the one that was active when the left button went down; it gets the release, too.
   * @type {{button: number, x: number, y: number, window: (dx: number, dy: number) => void, tool: Tool} | null} */
  let drag = null;

  box.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.ctrlKey) {
      viewport.zoomAt(event.deltaY < 0 ? ZOOM_PER_STEP : 1 / ZOOM_PER_STEP, event.clientX, event.clientY);
      return;
    }
    // A touch pad reports many small movements, a mouse one large one for each notch.
    const notch = event.deltaMode !== WheelEvent.DOM_DELTA_PIXEL || Math.abs(event.deltaY) >= TRAVEL_PER_SLICE_PX;
    travel = notch ? Math.sign(event.deltaY) * TRAVEL_PER_SLICE_PX : travel + event.deltaY;
    const steps = Math.trunc(travel / TRAVEL_PER_SLICE_PX);
    travel -= steps * TRAVEL_PER_SLICE_PX;
    if (steps !== 0) state.scroll(viewport.plane, steps);
  }, { passive: false });

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button > RIGHT) return;
    // The middle button would start the browser's own scrolling; focus is then ours to set.
    event.preventDefault();
    box.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    if (event.pointerType === "touch") {
      touch.down(event);
      return;
    }
    drag = { button: event.button, x: event.clientX, y: event.clientY, window: windowDrag(state), tool: toolbox.active };
    if (event.button === LEFT) drag.tool.down(viewport, viewport.placeAt(event.clientX, event.clientY), event);
  });

  canvas.addEventListener("pointermove", (event) => {
    viewport.pointAt(event);
    if (event.pointerType === "touch") {
      touch.move(event);
      return;
    }
    if (drag === null) {
      toolbox.active.hover?.(viewport, viewport.placeAt(event.clientX, event.clientY), event);
      return;
    }
    const dx = event.clientX - drag.x;
    const dy = event.clientY - drag.y;
    if (drag.button === LEFT) {
      drag.tool.move(viewport, viewport.placeAt(event.clientX, event.clientY), event);
    } else if (drag.button === MIDDLE) {
      viewport.panBy(dx, dy);
      Object.assign(drag, { x: event.clientX, y: event.clientY });
    } else {
      drag.window(dx, dy);
    }
  });

  canvas.addEventListener("pointerup", (event) => {
    if (event.pointerType === "touch") touch.up(event);
    const { button, tool } = drag ?? {};
    drag = null;
    if (button === LEFT) tool?.up(viewport, viewport.placeAt(event.clientX, event.clientY), event);
  });
  canvas.addEventListener("pointercancel", (event) => {
    if (event.pointerType === "touch") touch.cancel(event);
    if (drag?.button === LEFT) drag.tool.cancel?.();
    drag = null;
  });
  canvas.addEventListener("pointerleave", () => viewport.pointAt(null));
  canvas.addEventListener("dblclick", () => viewport.resetView());
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
}

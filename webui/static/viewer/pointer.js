/**
 * The mouse over a plane, as every PACS viewer has it: wheel scrolls, Ctrl-wheel zooms, left drag
 * moves the cross-hair, middle drag pans, right drag windows.
 *
 * @typedef {import("./viewport.js").Viewport} Viewport
 * @typedef {import("./state.js").ViewState} ViewState
 */

/** Wheel travel, in CSS pixels, for one slice; a mouse's notch is always one slice. */
const TRAVEL_PER_SLICE_PX = 40;
const ZOOM_PER_STEP = 1.15;
/** A drag over this many pixels changes the window by its own width. */
const WINDOW_DRAG_PX = 300;

const LEFT = 0;
const MIDDLE = 1;
const RIGHT = 2;

/**
 * @param {Viewport} viewport
 * @param {ViewState} state
 */
export function listenToPointer(viewport, state) {
  const { box, canvas } = viewport;
  let travel = 0;
  /** @type {{button: number, x: number, y: number, window: {width: number, centre: number}} | null} */
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
    drag = { button: event.button, x: event.clientX, y: event.clientY, window: state.window };
    if (event.button === LEFT) state.moveTo(viewport.voxelAt(event.clientX, event.clientY));
  });

  canvas.addEventListener("pointermove", (event) => {
    viewport.pointAt(event);
    if (drag === null) return;
    const dx = event.clientX - drag.x;
    const dy = event.clientY - drag.y;
    if (drag.button === LEFT) {
      state.moveTo(viewport.voxelAt(event.clientX, event.clientY));
    } else if (drag.button === MIDDLE) {
      viewport.panBy(dx, dy);
      Object.assign(drag, { x: event.clientX, y: event.clientY });
    } else {
      const huPerPixel = Math.max(1, drag.window.width / WINDOW_DRAG_PX);
      state.setWindow({
        width: drag.window.width + dx * huPerPixel,
        centre: drag.window.centre + dy * huPerPixel,
      });
    }
  });

  const release = () => {
    drag = null;
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => viewport.pointAt(null));
  canvas.addEventListener("dblclick", () => viewport.resetView());
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
}

/**
 * A drag that changes the window: across for its width, up and down for its centre.
 *
 * @typedef {import("./state.js").ViewState} ViewState
 */

/** A drag over this many pixels changes the window by its own width. */
const WINDOW_DRAG_PX = 300;

/**
 * Begin a drag; the answer takes how far it has come.
 * @param {ViewState} state
 * @returns {(dx: number, dy: number) => void}
 */
export function windowDrag(state) {
  const { width, centre } = state.window;
  const huPerPixel = Math.max(1, width / WINDOW_DRAG_PX);
  return (dx, dy) => state.setWindow({ width: width + dx * huPerPixel, centre: centre + dy * huPerPixel });
}

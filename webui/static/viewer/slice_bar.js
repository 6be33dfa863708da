/**
 * The bar beside a plane: the whole stack at a glance, lesions as marks, a thumb where the reader is.
 * Top is slice 1. A press or a drag goes there.
 *
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./state.js").ViewState} ViewState
 * @typedef {import("./manifest.js").LesionFacts} LesionFacts
 */
import { element } from "../dom.js";
import { lesionColour } from "./lesion_layer.js";
import { clamp, sliceNumber } from "./planes.js";

/**
 * @param {Plane} plane
 * @param {ViewState} state
 * @param {readonly LesionFacts[]} lesions
 */
export function sliceBar(plane, state, lesions) {
  const count = state.size[plane.through];
  const thumb = element("b", { class: "thumb" });
  const arrived = element("canvas", { class: "arrived", width: "1", height: String(count) });
  const marks = lesions.map(({ id, first, last }) => {
    const ends = [first[plane.through], last[plane.through]];
    const numbers = ends.map((index) => sliceNumber(plane, state.size, index) - 1);
    const mark = element("i", { class: "mark" });
    mark.style.top = `${(Math.min(...numbers) / count) * 100}%`;
    mark.style.height = `${((ends[1] - ends[0] + 1) / count) * 100}%`;
    mark.style.backgroundColor = lesionColour(id);
    return mark;
  });
  const bar = element("div", { class: "slice-bar" }, arrived, ...marks, thumb);

  const place = () => {
    const number = sliceNumber(plane, state.size, state.position[plane.through]) - 1;
    thumb.style.top = `${(number / count) * 100}%`;
    thumb.style.height = `${100 / count}%`;
  };
  state.onChange((change) => {
    if (change === "position") place();
  });
  place();

  const goTo = (/** @type {PointerEvent} */ event) => {
    const box = bar.getBoundingClientRect();
    const number = clamp(Math.floor(((event.clientY - box.top) / box.height) * count), 0, count - 1);
    state.showSlice(plane, plane.fromEnd ? count - 1 - number : number);
  };
  bar.addEventListener("pointerdown", (event) => {
    bar.setPointerCapture(event.pointerId);
    goTo(event);
  });
  bar.addEventListener("pointermove", (event) => {
    if (bar.hasPointerCapture(event.pointerId)) goTo(event);
  });

  const ink = /** @type {CanvasRenderingContext2D} */ (arrived.getContext("2d"));
  ink.fillStyle = "#3b4650";
  return {
    bar,
    /** Mark slices of the stack as arrived. @type {(first: number, many: number) => void} */
    markArrived(first, many) {
      const top = plane.fromEnd ? count - first - many : first;
      ink.fillRect(0, top, 1, many);
    },
  };
}

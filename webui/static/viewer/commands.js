/**
 * What the keyboard can do in the viewer.
 *
 * @typedef {import("./cine.js").Cine} Cine
 * @typedef {import("./keys.js").Command} Command
 * @typedef {import("./layout.js").Layout} Layout
 * @typedef {import("./reading.js").Reading} Reading
 * @typedef {import("./tools.js").Toolbox} Toolbox
 */
import { TURNS } from "./view_transform.js";

const PAGE_OF_SLICES = 10;

/**
 * @param {object} parts
 * @param {Reading} parts.reading
 * @param {Layout} parts.layout
 * @param {Toolbox} parts.toolbox
 * @param {Cine} parts.cine
 * @param {readonly Command[]} parts.windows
 * @param {readonly Command[]} parts.page  what concerns the page beside the planes
 * @param {(steps: number) => void} parts.jumpBy
 * @param {(accepted: boolean) => void} parts.markChosen
 * @returns {Command[]}
 */
export function commandTable({ reading, layout, toolbox, cine, windows, page, jumpBy, markChosen }) {
  const { state, heatMaps } = reading;
  const scroll = (/** @type {number} */ steps) => layout.active.state.scroll(layout.active.plane, steps);
  const all = Math.max(...state.size);
  const heatMap = heatMaps.length > 0 ? `Heat map: ${heatMaps.join(", ")}, none` : "Heat map: not computed";
  return [
    { name: "next-lesion", key: "n", does: "Next lesion", run: () => jumpBy(1) },
    { name: "previous-lesion", key: "p", does: "Previous lesion", run: () => jumpBy(-1) },
    { name: "accept", key: "y", does: "Accept this lesion; again to take it back", run: () => markChosen(true) },
    { name: "reject", key: "x", does: "Reject this lesion; again to take it back", run: () => markChosen(false) },
    { name: "lesions", key: "s", does: "Lesions shown or hidden", run: () => state.toggleOverlay() },
    { name: "fill", key: "c", does: "Lesions as contour or filled", run: () => state.toggleFill() },
    { name: "heat-map", key: "g", does: heatMap, run: () => state.nextHeatMap(heatMaps.length) },
    ...windows,
    { name: "previous-slice", key: "arrowup", does: "Previous slice", run: () => scroll(-1) },
    { name: "next-slice", key: "arrowdown", does: "Next slice", run: () => scroll(1) },
    { name: "slices-back", key: "pageup", does: `${PAGE_OF_SLICES} slices back`, run: () => scroll(-PAGE_OF_SLICES) },
    { name: "slices-on", key: "pagedown", does: `${PAGE_OF_SLICES} slices on`, run: () => scroll(PAGE_OF_SLICES) },
    { name: "first-slice", key: "home", does: "First slice", run: () => scroll(-all) },
    { name: "last-slice", key: "end", does: "Last slice", run: () => scroll(all) },
    { name: "cine", key: "v", does: "Cine: start or stop", run: () => cine.toggle() },
    { name: "cine-slower", key: ",", does: "Cine: slower", run: () => cine.slower() },
    { name: "cine-faster", key: ".", does: "Cine: faster", run: () => cine.faster() },
    { name: "slab", key: "m", does: "Thick slab: MIP, MinIP, average, none", run: () => state.nextSlabMode() },
    { name: "thinner", key: "-", does: "Thinner slab", run: () => state.changeThickness(-1) },
    { name: "thicker", key: "+", does: "Thicker slab", run: () => state.changeThickness(1) },
    { name: "layout", key: "f", does: "One plane, or all three", run: () => layout.show(!layout.single) },
    { name: "next-plane", key: "l", does: "Next plane", run: () => layout.activateNext() },
    ...toolbox.tools.map(({ name, label, key }) => ({ name, key, does: `Tool: ${label}`, run: () => toolbox.choose(name) })),
    { name: "leave-tool", key: "escape", does: "Leave the tool", run: () => toolbox.leave() },
    { name: "delete-measurement", key: "delete", does: "Delete the chosen measurement", run: () => reading.measurements.removeChosen() },
    { name: "mirror", key: "shift+h", does: "Mirror this plane, left to right", run: () => layout.active.turn(TURNS.mirrored) },
    { name: "upside-down", key: "shift+v", does: "Mirror this plane, top to bottom", run: () => layout.active.turn(TURNS.upsideDown) },
    { name: "turn", key: "shift+r", does: "Turn this plane by 90°", run: () => layout.active.turn(TURNS.turned) },
    { name: "fit", key: "r", does: "This plane as it was at first", run: () => layout.active.resetView() },
    ...page,
  ];
}

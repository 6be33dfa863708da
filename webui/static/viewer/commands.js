/**
 * What the keyboard can do in the viewer.
 *
 * @typedef {import("./cine.js").Cine} Cine
 * @typedef {import("./keys.js").Command} Command
 * @typedef {import("./layout.js").Layout} Layout
 * @typedef {import("./reading.js").Reading} Reading
 * @typedef {import("./tools.js").Toolbox} Toolbox
 */
import { _ } from "../words.js";
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
  const heatMap = heatMaps.length > 0 ? _("Heat map: %(answers)s, none", { answers: heatMaps.join(", ") }) : _("Heat map: not computed");
  return [
    { name: "next-lesion", key: "n", does: _("Next lesion"), run: () => jumpBy(1) },
    { name: "previous-lesion", key: "p", does: _("Previous lesion"), run: () => jumpBy(-1) },
    { name: "accept", key: "y", does: _("Accept this lesion; again to take it back"), run: () => markChosen(true) },
    { name: "reject", key: "x", does: _("Reject this lesion; again to take it back"), run: () => markChosen(false) },
    { name: "lesions", key: "s", does: _("Lesions shown or hidden"), run: () => state.toggleOverlay() },
    { name: "fill", key: "c", does: _("Lesions as contour or filled"), run: () => state.toggleFill() },
    { name: "heat-map", key: "g", does: heatMap, run: () => state.nextHeatMap(heatMaps.length) },
    ...windows,
    { name: "previous-slice", key: "arrowup", does: _("Previous slice"), run: () => scroll(-1) },
    { name: "next-slice", key: "arrowdown", does: _("Next slice"), run: () => scroll(1) },
    { name: "slices-back", key: "pageup", does: _("%(count)s slices back", { count: PAGE_OF_SLICES }), run: () => scroll(-PAGE_OF_SLICES) },
    { name: "slices-on", key: "pagedown", does: _("%(count)s slices on", { count: PAGE_OF_SLICES }), run: () => scroll(PAGE_OF_SLICES) },
    { name: "first-slice", key: "home", does: _("First slice"), run: () => scroll(-all) },
    { name: "last-slice", key: "end", does: _("Last slice"), run: () => scroll(all) },
    { name: "cine", key: "v", does: _("Cine: start or stop"), run: () => cine.toggle() },
    { name: "cine-slower", key: ",", does: _("Cine: slower"), run: () => cine.slower() },
    { name: "cine-faster", key: ".", does: _("Cine: faster"), run: () => cine.faster() },
    { name: "slab", key: "m", does: _("Thick slab: MIP, MinIP, average, none"), run: () => state.nextSlabMode() },
    { name: "thinner", key: "-", does: _("Thinner slab"), run: () => state.changeThickness(-1) },
    { name: "thicker", key: "+", does: _("Thicker slab"), run: () => state.changeThickness(1) },
    { name: "layout", key: "f", does: _("One plane, or all three"), run: () => layout.show(!layout.single) },
    { name: "next-plane", key: "l", does: _("Next plane"), run: () => layout.activateNext() },
    ...toolbox.tools.map(({ name, label, key }) => ({ name, key, does: _("Tool: %(name)s", { name: label }), run: () => toolbox.choose(name) })),
    { name: "leave-tool", key: "escape", does: _("Leave the tool"), run: () => toolbox.leave() },
    { name: "delete-measurement", key: "delete", does: _("Delete the chosen measurement"), run: () => reading.measurements.removeChosen() },
    { name: "mirror", key: "shift+h", does: _("Mirror this plane, left to right"), run: () => layout.active.turn(TURNS.mirrored) },
    { name: "upside-down", key: "shift+v", does: _("Mirror this plane, top to bottom"), run: () => layout.active.turn(TURNS.upsideDown) },
    { name: "turn", key: "shift+r", does: _("Turn this plane by 90°"), run: () => layout.active.turn(TURNS.turned) },
    { name: "fit", key: "r", does: _("This plane as it was at first"), run: () => layout.active.resetView() },
    ...page,
  ];
}

/**
 * The buttons for how the planes are shown; each has a key, too.
 *
 * @typedef {import("./cine.js").Cine} Cine
 * @typedef {import("./layout.js").Layout} Layout
 * @typedef {import("./slab_projection.js").Mode} Mode
 * @typedef {import("./state.js").ViewState} ViewState
 */
import { byId, element } from "../dom.js";
import { _ } from "../words.js";
import { MODE_WORDS, THICKNESSES_MM } from "./slab_projection.js";

/**
 * @param {object} parts
 * @param {ViewState} parts.state
 * @param {Layout} parts.layout
 * @param {Cine} parts.cine
 * @param {() => void} parts.resetAll
 */
export function viewControls({ state, layout, cine, resetAll }) {
  const single = element("button", { type: "button", text: _("One plane") });
  single.addEventListener("click", () => layout.show(!layout.single));

  const mode = element("select", { "aria-label": _("Thick slab") },
    element("option", { value: "", text: _("Single slices") }),
    ...Object.entries(MODE_WORDS).map(([value, text]) => element("option", { value, text })));
  const thickness = element("select", { "aria-label": _("Slab thickness") },
    ...THICKNESSES_MM.map((mm) => element("option", { value: String(mm), text: `${mm} mm` })));
  const setSlab = () => state.setSlab({ mode: /** @type {Mode} */ (mode.value) || null, mm: Number(thickness.value) });
  mode.addEventListener("change", setSlab);
  thickness.addEventListener("change", setSlab);

  const play = element("button", { type: "button" });
  play.addEventListener("click", () => cine.toggle());

  const reset = element("button", { type: "button", text: _("Reset all") });
  reset.addEventListener("click", resetAll);

  const show = () => {
    single.setAttribute("aria-pressed", String(layout.single));
    mode.value = state.slab.mode ?? "";
    thickness.value = String(state.slab.mm);
    play.textContent = _("Cine %(rate)s/s", { rate: cine.rate });
    play.setAttribute("aria-pressed", String(cine.running));
  };
  layout.onChange(show);
  cine.onChange(show);
  state.onChange((change) => {
    if (change === "slab") show();
  });
  show();
  byId("view-controls").append(single, mode, thickness, play, reset);
}

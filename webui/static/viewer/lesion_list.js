/**
 * The lesions as a list, largest first; choosing one moves all planes onto it.
 *
 * @typedef {import("./state.js").ViewState} ViewState
 * @typedef {import("./manifest.js").LesionFacts} LesionFacts
 */
import { element } from "../dom.js";
import { lesionColour } from "./lesion_layer.js";
import { PLANES, sliceNumber } from "./planes.js";

const [AXIAL] = PLANES;

/**
 * @param {ViewState} state
 * @param {readonly LesionFacts[]} lesions
 */
export function lesionList(state, lesions) {
  const jump = (/** @type {LesionFacts} */ lesion) => state.chooseLesion(lesion.id, lesion.look_at);
  const items = new Map(lesions.map((lesion) => {
    const button = lesionButton(state, lesion);
    button.addEventListener("click", () => jump(lesion));
    return [lesion.id, button];
  }));
  const rows = new Map([...items].map(([id, button]) => [id, element("li", {}, button)]));

  state.onChange((change) => {
    if (change !== "lesion") return;
    for (const [id, button] of items) {
      const chosen = id === state.lesion;
      button.setAttribute("aria-current", String(chosen));
      if (chosen) button.scrollIntoView({ block: "nearest" });
    }
  });

  return {
    list: element("ol", { class: "lesions" }, ...rows.values()),
    /** The list's rows by lesion, for what others put beside a lesion. */
    rows,
    /** Jump `steps` lesions on, round the end. @param {number} steps */
    jumpBy(steps) {
      if (lesions.length === 0) return;
      const at = lesions.findIndex(({ id }) => id === state.lesion);
      const from = at < 0 && steps < 0 ? 0 : at;
      jump(lesions[(from + steps + lesions.length) % lesions.length]);
    },
  };
}

/**
 * @param {ViewState} state
 * @param {LesionFacts} lesion
 */
function lesionButton(state, lesion) {
  const number = element("b", { class: "number", text: String(lesion.id) });
  number.style.backgroundColor = lesionColour(lesion.id);
  const first = sliceNumber(AXIAL, state.size, lesion.last[2]);
  const last = sliceNumber(AXIAL, state.size, lesion.first[2]);
  const facts = [
    volumeText(lesion.volume_ml),
    `${lesion.diameter_mm.toFixed(0)} mm`,
    `${lesion.mean_hu.toFixed(0)} HU`,
  ];
  return element("button", { type: "button", class: "lesion", "aria-current": "false" },
    number,
    element("span", { class: "where", text: SIDES[lesion.side] }),
    element("span", { class: "slices", text: first === last ? `slice ${first}` : `slices ${first}–${last}` }),
    element("span", { class: "score", text: scoreText(lesion.probability) }),
    element("span", { class: "facts", text: facts.join(" · ") }));
}

/** @param {number} ml */
function volumeText(ml) {
  return ml < 0.05 ? "< 0.1 ml" : `${ml.toFixed(1)} ml`;
}

/** @type {Record<LesionFacts["side"], string>} */
const SIDES = { left: "Left lung", right: "Right lung", both: "Both lungs" };

/** @param {number | null} probability */
function scoreText(probability) {
  return probability === null ? "not scored" : `${Math.round(probability * 100)} %`;
}

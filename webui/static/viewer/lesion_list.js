/**
 * The lesions as a list in an order of the reader's choice; choosing one moves all planes onto it.
 *
 * @typedef {import("./state.js").ViewState} ViewState
 * @typedef {import("./manifest.js").LesionFacts} LesionFacts
 * @typedef {import("./preferences.js").Preferences} Preferences
 */
import { element } from "../dom.js";
import { _ } from "../words.js";
import { lesionColour } from "./lesion_layer.js";
import { PLANES, sliceNumber } from "./planes.js";

const [AXIAL] = PLANES;

/** @type {readonly {name: string, label: string, before: (one: LesionFacts, other: LesionFacts) => number}[]} */
const ORDERS = [
  { name: "volume", label: _("Volume"), before: (one, other) => other.volume_ml - one.volume_ml },
  { name: "score", label: _("Score"), before: (one, other) => (other.probability ?? -1) - (one.probability ?? -1) },
  { name: "diameter", label: _("Diameter"), before: (one, other) => other.diameter_mm - one.diameter_mm },
  { name: "hu", label: _("Mean HU"), before: (one, other) => other.mean_hu - one.mean_hu },
  { name: "side", label: _("Side, right first"), before: (one, other) => SIDE_ORDER.indexOf(one.side) - SIDE_ORDER.indexOf(other.side) },
  { name: "level", label: _("Level, head first"), before: (one, other) => other.look_at[2] - one.look_at[2] },
];

/** @type {readonly LesionFacts["side"][]} */
const SIDE_ORDER = ["right", "left", "both"];

/**
 * @param {ViewState} state
 * @param {readonly LesionFacts[]} lesions
 * @param {Preferences} preferences
 */
export function lesionList(state, lesions, preferences) {
  const jump = (/** @type {LesionFacts} */ lesion) => state.chooseLesion(lesion.id, lesion.look_at);
  const items = new Map(lesions.map((lesion) => {
    const button = lesionButton(state, lesion);
    button.addEventListener("click", () => jump(lesion));
    return [lesion.id, button];
  }));
  const rows = new Map([...items].map(([id, button]) => [id, element("li", {}, button)]));
  const list = element("ol", { class: "lesions" });
  const orders = element("select", {}, ...ORDERS.map(({ name, label }) => element("option", { value: name, text: label })));
  const choice = element("label", { class: "sort", text: _("Sort by") + " " }, orders);
  const sort = () => {
    const { before } = ORDERS.find(({ name }) => name === orders.value) ?? ORDERS[0];
    const listed = [...lesions].sort((one, other) => before(one, other) || one.id - other.id);
    list.replaceChildren(...listed.map(({ id }) => /** @type {HTMLElement} */ (rows.get(id))));
  };
  orders.value = preferences.settings.sort ?? ORDERS[0].name;
  orders.addEventListener("change", () => {
    sort();
    preferences.set({ sort: orders.value });
  });
  sort();

  state.onChange((change) => {
    if (change !== "lesion") return;
    for (const [id, button] of items) {
      const chosen = id === state.lesion;
      button.setAttribute("aria-current", String(chosen));
      if (chosen) button.scrollIntoView({ block: "nearest" });
    }
  });

  return {
    parts: lesions.length > 1 ? [choice, list] : [list],
    /** The list's rows by lesion, for what others put beside a lesion. */
    rows,
    /** Jump `steps` lesions on in the list, then in that of people's, round the end. @param {number} steps */
    jumpBy(steps) {
      /** @type {HTMLButtonElement[]} */
      const listed = [list, ...document.querySelectorAll(".lesions.added")].flatMap((each) => [...each.querySelectorAll("button.lesion")]);
      if (listed.length === 0) return;
      const at = listed.findIndex((button) => button.getAttribute("aria-current") === "true");
      const from = at < 0 && steps < 0 ? 0 : at;
      listed[(from + steps + listed.length) % listed.length].click();
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
    element("span", { class: "slices", text: first === last ? _("slice %(first)s", { first }) : _("slices %(first)s–%(last)s", { first, last }) }),
    element("span", { class: "score", text: scoreText(lesion.probability) }),
    element("span", { class: "facts", text: facts.join(" · ") }));
}

/** @param {number} ml */
export function volumeText(ml) {
  return ml < 0.05 ? "< 0.1 ml" : `${ml.toFixed(1)} ml`;
}

/** @type {Record<LesionFacts["side"], string>} */
export const SIDES = { left: _("Left lung"), right: _("Right lung"), both: _("Both lungs") };

/** @param {number | null} probability */
function scoreText(probability) {
  return probability === null ? _("not scored") : `${Math.round(probability * 100)} %`;
}

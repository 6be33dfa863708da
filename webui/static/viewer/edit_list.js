/**
 * Beside the machine's lesions: those that a person added, who outlined one anew, and the signs that
 * are seen in each.
 *
 * @typedef {import("./edit_regions.js").EditRegions} EditRegions
 * @typedef {import("./edit_regions.js").Region} Region
 * @typedef {import("./state.js").ViewState} ViewState
 *
 * @typedef {object} Shown
 * @property {EditRegions} regions
 * @property {Record<string, string[]>} signs  seen in a lesion, by its number
 * @property {boolean} open  they can be changed
 * @property {string} you  the reader's name
 * @property {Record<string, string>} words  of all signs, by code
 *
 * @typedef {object} Actions
 * @property {(number: number) => void} remove  an added lesion
 * @property {(number: number, sign: string, seen: boolean) => void} sign
 */
import { element } from "../dom.js";
import { _ } from "../words.js";
import { SIDES, volumeText } from "./lesion_list.js";

/**
 * @param {ViewState} state
 * @param {HTMLElement} box  of the list of lesions
 * @param {ReadonlyMap<number, HTMLElement>} rows  of the machine's lesions
 * @param {Actions} actions
 */
export function outlineList(state, box, rows, actions) {
  const heading = element("h3", { text: _("Added by a person") });
  const list = element("ol", { class: "lesions added" });
  const part = element("div", { class: "added-part" }, heading, list);
  part.hidden = true;
  box.append(part);
  /** @type {Map<number, {row: HTMLElement, show: (region: Region, shown: Shown) => void, choose: () => void}>} */
  const added = new Map();
  const notes = new Map([...rows].map(([number, row]) => {
    const note = element("span", { class: "outlined" });
    note.hidden = true;
    row.append(note);
    return [number, note];
  }));
  /** @type {Map<number, ReturnType<typeof signPicker>>} */
  const pickers = new Map();

  const choose = () => {
    for (const { choose } of added.values()) choose();
  };
  state.onChange((change) => {
    if (change === "lesion") choose();
  });

  /** @param {number} number @param {HTMLElement} row @param {Shown} shown */
  function showSigns(number, row, shown) {
    let picker = pickers.get(number);
    if (picker === undefined || picker.box.parentElement !== row) {
      picker = signPicker(number, shown.words, (sign, seen) => actions.sign(number, sign, seen));
      pickers.set(number, picker);
      row.append(picker.box);
    }
    picker.show(shown.signs[number] ?? [], shown.open);
  }

  return {
    /** @param {Shown} shown */
    show(shown) {
      const { regions } = shown;
      const standing = new Map(regions.standing());
      for (const [number, note] of notes) {
        const region = standing.get(number);
        note.hidden = region === undefined;
        if (region !== undefined) note.textContent = _("Outlined by %(name)s: %(measures)s", { name: nameOf(region, shown), measures: measuresOf(region) });
      }
      for (const [number, row] of rows) showSigns(number, row, shown);
      for (const [number, { row }] of added) {
        if (standing.has(number)) continue;
        row.remove();
        added.delete(number);
      }
      for (const [number, region] of standing) {
        if (!regions.isAdded(number)) continue;
        let entry = added.get(number);
        if (entry === undefined) {
          entry = addedRow(state, number, () => actions.remove(number));
          added.set(number, entry);
          list.append(entry.row);
        }
        entry.show(region, shown);
        showSigns(number, entry.row, shown);
      }
      part.hidden = added.size === 0;
      choose();
    },
  };
}

/**
 * @param {ViewState} state
 * @param {number} number
 * @param {() => void} remove
 */
function addedRow(state, number, remove) {
  /** @type {import("./planes.js").Triple | null} */
  let lookAt = null;
  const where = element("span", { class: "where" });
  const by = element("span", { class: "score" });
  const facts = element("span", { class: "facts" });
  const button = element("button", { type: "button", class: "lesion", "aria-current": "false" },
    element("b", { class: "number persons", text: `${number} ✎` }), where, by, facts);
  button.addEventListener("click", () => state.chooseLesion(number, lookAt ?? state.position));
  const away = element("button", { type: "button", class: "mark remove", text: "✗", title: _("Remove (X)"), "aria-label": _("Remove lesion %(number)s", { number }) });
  away.addEventListener("click", remove);
  return {
    row: element("li", {}, button, element("span", { class: "marks" }, away)),
    choose() {
      const chosen = number === state.lesion;
      button.setAttribute("aria-current", String(chosen));
      if (chosen) button.scrollIntoView({ block: "nearest" });
    },
    /** @param {Region} region @param {Shown} shown */
    show(region, shown) {
      const known = region.facts ?? region.kept;
      lookAt = known?.look_at ?? null;
      where.textContent = known === null ? "" : SIDES[known.side];
      by.textContent = _("added by %(name)s", { name: nameOf(region, shown) });
      facts.textContent = measuresOf(region);
      away.hidden = !shown.open;
    },
  };
}

/** @param {Region} region @param {Shown} shown */
function nameOf({ facts }, { you }) {
  return facts?.by ?? you;
}

/** @param {Region} region */
function measuresOf({ facts }) {
  if (facts === null) return _("being measured");
  return [volumeText(facts.volume_ml), `${facts.diameter_mm.toFixed(0)} mm`, `${facts.mean_hu.toFixed(0)} HU`].join(" · ");
}

/**
 * @param {number} number
 * @param {Record<string, string>} words
 * @param {(sign: string, seen: boolean) => void} changed
 */
function signPicker(number, words, changed) {
  const summary = element("summary", { text: _("Signs") });
  const choices = Object.entries(words).map(([sign, text]) => {
    const input = element("input", { type: "checkbox" });
    input.addEventListener("change", () => changed(sign, input.checked));
    return { sign, text, input, label: element("label", {}, input, element("span", { text })) };
  });
  const box = element("details", { class: "signs" }, summary,
    element("div", { role: "group", "aria-label": _("Signs in lesion %(number)s", { number }) }, ...choices.map(({ label }) => label)));
  return {
    box,
    /** @param {readonly string[]} seen @param {boolean} open */
    show(seen, open) {
      const chosen = choices.filter(({ sign }) => seen.includes(sign));
      summary.textContent = chosen.length > 0 ? _("Signs: %(signs)s", { signs: chosen.map(({ text }) => text).join(", ") }) : _("Signs");
      box.hidden = !open && chosen.length === 0;
      for (const { sign, input } of choices) {
        input.checked = seen.includes(sign);
        input.disabled = !open;
      }
    },
  };
}

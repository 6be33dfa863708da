/**
 * Beside each lesion of the list: accepted, rejected, or still to be judged.
 *
 * @typedef {(lesion: number, accepted: boolean) => void} Mark
 */
import { element } from "../dom.js";
import { _ } from "../words.js";

/** @type {[boolean, string, string][]} */
const MARKS = [[true, "✓", _("Accept (Y)")], [false, "✗", _("Reject (X)")]];

/**
 * @param {ReadonlyMap<number, HTMLElement>} rows  of the list, by lesion
 * @param {Mark} mark
 */
export function lesionMarks(rows, mark) {
  const groups = new Map([...rows].map(([lesion, row]) => {
    const buttons = MARKS.map(([accepted, sign, word]) => {
      const button = element("button", { type: "button", class: "mark", text: sign, title: word });
      button.setAttribute("aria-label", accepted ? _("Accept lesion %(lesion)s", { lesion }) : _("Reject lesion %(lesion)s", { lesion }));
      button.addEventListener("click", () => mark(lesion, accepted));
      return button;
    });
    const group = element("span", { class: "marks" }, ...buttons);
    row.append(group);
    return [lesion, { row, group, buttons }];
  }));

  return {
    /**
     * @param {Record<string, boolean>} lesions  accepted or not, by number
     * @param {boolean} open  they can be changed
     */
    show(lesions, open) {
      for (const [lesion, { row, group, buttons }] of groups) {
        const judged = lesions[lesion];
        row.classList.toggle("rejected", judged === false);
        group.hidden = !open && judged === undefined;
        buttons.forEach((button, i) => {
          const pressed = judged === MARKS[i][0];
          button.setAttribute("aria-pressed", String(pressed));
          button.disabled = !open;
          button.hidden = !open && !pressed;
        });
      }
    },
  };
}

/**
 * The measurements as a list: each can be shown, described and deleted.
 *
 * @typedef {import("./measurements.js").Measurement} Measurement
 * @typedef {import("./measurements.js").Measurements} Measurements
 */
import { element } from "../dom.js";
import { _ } from "../words.js";
import { linesOf, planeNamed } from "./measuring.js";
import { nearestVoxel, sliceNumber } from "./planes.js";

const TEXT_LIMIT = "200"; // appliance.measurements.TEXT_LIMIT

/** @type {Readonly<Record<Measurement["kind"], string>>} */
const WORDS = { distance: _("Distance"), angle: _("Angle"), ellipse: _("Ellipse"), probe: "HU", arrow: _("Arrow") };

/**
 * @param {Measurements} measurements
 * @param {HTMLElement} box
 */
export function measureList(measurements, box) {
  const problem = element("p", { class: "message", role: "alert" });
  const list = element("ol", { class: "measurements" });
  /** @type {Map<Measurement, {row: HTMLElement, text: HTMLInputElement, show: () => void}>} */
  const rows = new Map();

  measurements.onChange(() => {
    for (const measurement of measurements.all) {
      if (!rows.has(measurement)) {
        const made = listRow(measurements, measurement);
        rows.set(measurement, made);
        list.append(made.row);
        made.show();
        // An arrow without words says nothing.
        if (measurement.kind === "arrow" && measurement === measurements.chosen) made.text.focus();
      }
    }
    for (const [measurement, { row, show }] of rows) {
      if (measurements.all.includes(measurement)) show();
      else {
        row.remove();
        rows.delete(measurement);
      }
    }
    problem.textContent = measurements.problem;
    box.hidden = measurements.all.length === 0 && measurements.problem === "";
  });
  box.append(list, problem);
}

/**
 * @param {Measurements} measurements
 * @param {Measurement} measurement
 */
function listRow(measurements, measurement) {
  const plane = planeNamed(measurement.plane);
  const at = nearestVoxel(measurement.points[0]);
  const number = sliceNumber(plane, measurements.state.size, at[plane.through]);
  const kind = WORDS[measurement.kind];

  const values = element("span", { class: "values" });
  const jump = element("button", { type: "button", class: "jump" },
    element("b", { text: kind }),
    element("span", { class: "where", text: `${plane.title} ${number}` }),
    values);
  jump.addEventListener("click", () => {
    measurements.state.moveTo(at);
    measurements.choose(measurement);
  });

  const text = element("input", { type: "text", maxlength: TEXT_LIMIT, placeholder: _("Note"), "aria-label": _("Note on %(kind)s, %(plane)s %(number)s", { kind, plane: plane.title, number }) });
  text.value = measurement.text;
  text.addEventListener("change", () => measurements.describe(measurement, text.value.trim()));
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "Escape") text.blur();
  });

  const remove = element("button", { type: "button", class: "remove", text: "✕", title: _("Delete") });
  remove.setAttribute("aria-label", _("Delete %(kind)s, %(plane)s %(number)s", { kind, plane: plane.title, number }));
  remove.addEventListener("click", () => measurements.remove(measurement));

  const row = element("li", {}, jump, remove, text);
  return {
    row,
    text,
    show() {
      const lines = linesOf(measurement.kind, measurement.values).join("\n");
      if (values.textContent !== lines) values.textContent = lines;
      const chosen = measurements.chosen === measurement;
      jump.setAttribute("aria-current", String(chosen));
      text.hidden = !chosen && measurement.text === "";
    },
  };
}

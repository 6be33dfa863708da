/**
 * One row of the worklist.
 *
 * @typedef {object} RefusedSeries
 * @property {string} series
 * @property {number} images
 * @property {string | null} reason
 *
 * @typedef {object} Review
 * @property {string} by
 * @property {string} at  ISO 8601, UTC
 * @property {boolean} positive
 * @property {boolean} overridden
 *
 * @typedef {object} Row
 * @property {number} study_id
 * @property {string} url
 * @property {string} patient
 * @property {string} patient_id
 * @property {string} birth_date
 * @property {string} sex
 * @property {string} description
 * @property {string} accession_number
 * @property {string} study_date
 * @property {string} study_time
 * @property {string} source_ae
 * @property {boolean} urgent
 * @property {string | null} priority_reason
 * @property {string | null} priority_url  where to change the priority, if this reader may
 * @property {string} arrived_at  ISO 8601, UTC
 * @property {string} state
 * @property {string} state_word
 * @property {string | null} reason
 * @property {number} images
 * @property {number} conflicts
 * @property {boolean} shares_uid
 * @property {string | null} step
 * @property {number} step_done
 * @property {number} step_total
 * @property {boolean} has_result
 * @property {number | null} probability
 * @property {boolean | null} positive
 * @property {number | null} lesion_count
 * @property {number | null} lesion_volume_ml
 * @property {boolean} stale
 * @property {boolean} waits_for_review
 * @property {Review | null} review  what was last confirmed of the result
 * @property {RefusedSeries[]} refused_series
 *
 * @typedef {import("../live.js").Moving} Moving
 */
import { element } from "../dom.js";
import { localTime } from "../time.js";

/**
 * @param {Row} row
 * @param {Moving | undefined} moving  fresher facts, if the study is on its way
 */
export function rowElement(row, moving) {
  const state = moving?.state ?? row.state;
  const made = element("tr", { class: `${state}${row.positive ? " positive" : ""}` },
    element("td", { class: "suspicion" }, ...suspicion(row)),
    element("td", { class: "patient" },
      element("a", { href: row.url, text: row.patient }),
      second(`${row.patient_id} · ${row.birth_date} · ${row.sex}`)),
    element("td", {}, row.description, second(`${row.study_date} ${row.study_time} · Acc. ${row.accession_number}`)),
    element("td", {}, localTime(row.arrived_at), second(`from ${row.source_ae}`)),
    element("td", { text: String(moving?.images ?? row.images) }),
    element("td", { class: "state" }, ...stateCell(row, moving)),
    element("td", {}, ...result(row)));
  made.dataset.study = String(row.study_id);
  return made;
}

/** @param {Row} row */
function suspicion({ probability, positive }) {
  if (probability === null) return [element("span", { class: "second", text: "–" })];
  const percent = Math.round(probability * 100);
  const fill = element("i");
  fill.style.width = `${percent}%`;
  return [
    element("span", { class: "score" },
      element("b", { text: `${percent} %` }),
      element("span", { class: "meter" }, fill)),
    second(positive ? "suspicious" : "below threshold"),
  ];
}

/**
 * @param {Row} row
 * @param {Moving | undefined} moving
 */
function stateCell(row, moving) {
  const parts = [element("span", { class: "badge", text: moving?.state_word ?? row.state_word })];
  if (row.urgent) parts.push(element("span", { class: "urgent", text: `urgent: ${row.priority_reason ?? ""}` }));
  if (row.priority_url !== null) parts.push(priorityButton(row, row.priority_url));
  if (row.conflicts > 0) {
    const flag = element("span", { class: "flag", text: `${row.conflicts} conflicting image${row.conflicts > 1 ? "s" : ""}` });
    flag.title = "Other content came under the UID of an image that was already here. The first was kept and used.";
    parts.push(flag);
  }
  if (row.shares_uid) {
    const flag = element("span", { class: "flag", text: "also under another patient" });
    flag.title = "Images under different patient names or numbers came with one Study Instance UID. Each person has a line of their own here. If it is one person, correct it at the source and send the study under a new Study Instance UID.";
    parts.push(flag);
  }
  if (row.stale) parts.push(element("span", { class: "flag", text: "newer images than the result" }));
  if (row.review !== null) parts.push(reviewed(row.review));
  else if (row.waits_for_review && moving === undefined) {
    parts.push(element("span", { class: "review waiting", text: "waiting for review" }));
  }
  const { step, step_done, step_total } = moving ?? row;
  if ((moving?.state ?? row.state) === "ANALYSING" && step_total > 0) {
    const bar = element("progress", { max: String(step_total), value: String(step_done) });
    bar.setAttribute("aria-label", "Analysis");
    parts.push(element("span", { class: "step" }, bar, step ?? ""));
  }
  if (row.reason && moving === undefined) parts.push(element("span", { class: "reason", text: row.reason }));
  if (row.refused_series.length > 0) parts.push(refusals(row.refused_series));
  return parts;
}

/** @param {Review} review */
function reviewed({ by, at, positive, overridden }) {
  const text = `${overridden ? "overridden" : "confirmed"}: ${positive ? "positive" : "negative"}`;
  return element("span", { class: "review" }, text, second(`${by}, ${localTime(at)}`));
}

/**
 * The page listens for clicks; the row says what one would do.
 * @param {Row} row
 * @param {string} url
 */
function priorityButton({ urgent }, url) {
  const button = element("button", { class: "quiet", type: "button", text: urgent ? "Not urgent" : "Urgent" });
  button.title = urgent ? "Let it wait its turn" : "Let it overtake the studies that wait";
  button.dataset.priority = url;
  button.dataset.urgent = String(!urgent);
  return button;
}

/** @param {RefusedSeries[]} series */
function refusals(series) {
  const items = series.map(({ series: name, images, reason }) =>
    element("li", { text: `${name} (${images} image${images === 1 ? "" : "s"}): ${reason ?? "refused"}` }));
  return element("details", {},
    element("summary", { text: `${items.length} series refused` }),
    element("ul", {}, ...items));
}

/** @param {Row} row */
function result({ has_result, lesion_count, lesion_volume_ml }) {
  if (!has_result || lesion_count === null) return ["–"];
  if (lesion_count === 0) return ["No lesion"];
  return [
    `${lesion_count} lesion${lesion_count > 1 ? "s" : ""}`,
    second(`${(lesion_volume_ml ?? 0).toFixed(1)} ml`),
  ];
}

/** @param {string} text */
function second(text) {
  return element("span", { class: "second", text });
}

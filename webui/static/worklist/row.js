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
 * @property {number} lesion_count
 *
 * @typedef {object} Study  what is told of a study wherever it is named
 * @property {number} study_id
 * @property {string} url
 * @property {string} description
 * @property {string} study_date
 * @property {string} state
 * @property {string} state_word
 * @property {boolean} has_result
 * @property {number | null} probability
 * @property {boolean | null} positive
 * @property {number | null} lesion_count
 * @property {number | null} lesion_volume_ml
 * @property {Review | null} review  what was last confirmed of the result
 *
 * @typedef {object} OfRow
 * @property {string} rank  why it stands where it does: a key of `WHY`
 * @property {number} earlier  other studies of the patient
 * @property {number} later
 * @property {string} others_url  where they are listed
 * @property {string} patient
 * @property {string} patient_id
 * @property {string} birth_date
 * @property {string} sex
 * @property {string} accession_number
 * @property {string} study_time
 * @property {string} source_ae
 * @property {boolean} urgent
 * @property {string | null} priority_reason
 * @property {string | null} priority_url  where to change the priority, if this reader may
 * @property {string | null} retry_url  where to have it analysed anew, if this reader may
 * @property {string} arrived_at  ISO 8601, UTC
 * @property {string | null} reason
 * @property {number} images
 * @property {number} conflicts
 * @property {boolean} shares_uid
 * @property {string | null} step
 * @property {number} step_done
 * @property {number} step_total
 * @property {boolean} stale
 * @property {boolean} waits_for_review
 * @property {RefusedSeries[]} refused_series
 *
 * @typedef {Study & OfRow} Row
 *
 * @typedef {import("../live.js").Moving} Moving
 */
import { element } from "../dom.js";
import { ago, localTime } from "../time.js";

/** Why a line stands where it does, by its rank and by what the analysis says. */
const WHY = /** @type {Record<string, Record<"suspicious" | "below" | "none", string>>} */ ({
  urgent: { suspicious: "urgent, suspicious", below: "urgent, below threshold", none: "urgent" },
  suspicious: { suspicious: "suspicious", below: "below threshold", none: "" },
  open: { suspicious: "suspicious", below: "below threshold", none: "" },
  old: { suspicious: "older study, suspicious", below: "older study, below threshold", none: "older study" },
  confirmed: { suspicious: "confirmed, suspicious", below: "confirmed, below threshold", none: "confirmed" },
});

/**
 * @param {Row} row
 * @param {Moving | undefined} moving  fresher facts, if the study is on its way
 * @param {boolean} fresh  whether it came since the list was looked at
 */
export function rowElement(row, moving, fresh) {
  const state = moving?.state ?? row.state;
  const made = element("tr", { class: `${state}${row.positive ? " positive" : ""}${fresh ? " fresh" : ""}` },
    element("td", { class: "suspicion" }, ...suspicion(row)),
    element("td", { class: "patient" },
      element("a", { href: row.url, text: row.patient }),
      ...(fresh ? [element("span", { class: "new", text: "new" })] : []),
      second(`${row.patient_id} · ${row.birth_date} · ${row.sex}`)),
    element("td", {}, row.description,
      second(`${row.study_date} ${row.study_time} · Acc. ${row.accession_number}`),
      ...(row.earlier + row.later > 0 ? [others(row)] : [])),
    element("td", {}, localTime(row.arrived_at),
      element("span", { class: "second ago", text: ago(row.arrived_at), "data-at": row.arrived_at }),
      second(`from ${row.source_ae}`)),
    element("td", { text: String(moving?.images ?? row.images) }),
    element("td", { class: "state" }, ...stateCell(row, moving)),
    element("td", {}, ...result(row)));
  made.dataset.study = String(row.study_id);
  return made;
}

/** @param {Row} row */
function suspicion({ probability, positive, rank }) {
  const why = WHY[rank]?.[positive === null ? "none" : positive ? "suspicious" : "below"] ?? "";
  if (probability === null) return [element("span", { class: "second", text: "–" }), second(why)];
  const percent = Math.round(probability * 100);
  const fill = element("i");
  fill.style.width = `${percent}%`;
  return [
    element("span", { class: "score" },
      element("b", { text: `${percent} %` }),
      element("span", { class: "meter" }, fill)),
    second(why),
  ];
}

/**
 * Filled by `otherStudies` when it is opened.
 * @param {Row} row
 */
function others({ earlier, later, others_url }) {
  const made = element("details", { class: "others" },
    element("summary", { text: othersCount(earlier, later) }), element("ul"));
  made.dataset.url = others_url;
  return made;
}

/**
 * @param {number} earlier
 * @param {number} later
 */
function othersCount(earlier, later) {
  if (later === 0) return earlier === 1 ? "1 earlier study" : `${earlier} earlier studies`;
  if (earlier === 0) return later === 1 ? "1 later study" : `${later} later studies`;
  return `${earlier} earlier and ${later} later studies`;
}

/**
 * The other studies of a patient, as lines of a list.
 * @param {Study[]} studies
 */
export function otherStudies(studies) {
  return studies.map((study) => element("li", {},
    element("a", { href: study.url, text: `${study.study_date} ${study.description}` }),
    second([study.state_word, ...verdict(study), ...found(study)].join(" · "))));
}

/** @param {Study} study */
function verdict({ probability, positive, review }) {
  if (review !== null) return [review.positive ? `confirmed positive by ${review.by}` : `confirmed negative by ${review.by}`];
  if (probability === null) return [];
  const percent = Math.round(probability * 100);
  return [positive ? `${percent} %, suspicious` : `${percent} %, below threshold`];
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
  if (row.retry_url !== null) parts.push(retryButton(row.retry_url));
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

/** @param {string} url */
function retryButton(url) {
  const button = element("button", { class: "quiet", type: "button", text: "Try again" });
  button.title = "Analyse this study anew";
  button.dataset.retry = url;
  return button;
}

/** @param {RefusedSeries[]} series */
function refusals(series) {
  const items = series.map(({ series: name, images, reason }) =>
    element("li", { text: `${name} (${images} image${images === 1 ? "" : "s"}): ${reason ?? "refused"}` }));
  return element("details", { class: "refusals" },
    element("summary", { text: items.length === 1 ? "1 series refused" : `${items.length} series refused` }),
    element("ul", {}, ...items));
}

/** @param {Row} row */
function result(row) {
  const [count, volume] = found(row);
  return [count ?? "–", ...(volume === undefined ? [] : [second(volume)])];
}

/**
 * How many lesions, as last confirmed, and how much of them, which the analysis alone says.
 * @param {Study} study
 */
function found({ has_result, lesion_count, lesion_volume_ml, review }) {
  if (!has_result || lesion_count === null) return [];
  const count = review?.lesion_count ?? lesion_count;
  if (count === 0) return ["No lesion"];
  const ml = (lesion_volume_ml ?? 0).toFixed(1);
  return [count === 1 ? "1 lesion" : `${count} lesions`, review === null ? `${ml} ml` : `${ml} ml by the analysis`];
}

/** @param {string} text */
function second(text) {
  return element("span", { class: "second", text });
}

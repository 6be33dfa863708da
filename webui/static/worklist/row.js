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
import { _, _n } from "../words.js";

/** Why a line stands where it does, by its rank and by what the analysis says. */
const WHY = /** @type {Record<string, Record<"suspicious" | "below" | "none", string>>} */ ({
  urgent: { suspicious: _("urgent, suspicious"), below: _("urgent, below threshold"), none: _("urgent") },
  suspicious: { suspicious: _("suspicious"), below: _("below threshold"), none: "" },
  open: { suspicious: _("suspicious"), below: _("below threshold"), none: "" },
  old: { suspicious: _("older study, suspicious"), below: _("older study, below threshold"), none: _("older study") },
  confirmed: { suspicious: _("confirmed, suspicious"), below: _("confirmed, below threshold"), none: _("confirmed") },
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
      ...(fresh ? [element("span", { class: "new", text: _("new") })] : []),
      second(`${row.patient_id} · ${row.birth_date} · ${row.sex}`)),
    element("td", {}, row.description,
      second([`${row.study_date} ${row.study_time}`, _("Acc. %(number)s", { number: row.accession_number })].join(" · ")),
      ...(row.earlier + row.later > 0 ? [others(row)] : [])),
    element("td", {}, localTime(row.arrived_at),
      element("span", { class: "second ago", text: ago(row.arrived_at), "data-at": row.arrived_at }),
      second(_("from %(source)s", { source: row.source_ae }))),
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
  if (later === 0) return _n("%(num)s earlier study", "%(num)s earlier studies", earlier);
  if (earlier === 0) return _n("%(num)s later study", "%(num)s later studies", later);
  return _("%(earlier)s earlier and %(later)s later studies", { earlier, later });
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
  if (review !== null) {
    const { positive: is, by: name } = review;
    return [is ? _("confirmed positive by %(name)s", { name }) : _("confirmed negative by %(name)s", { name })];
  }
  if (probability === null) return [];
  const percent = `${Math.round(probability * 100)} %`;
  return [positive ? _("%(percent)s, suspicious", { percent }) : _("%(percent)s, below threshold", { percent })];
}

/**
 * @param {Row} row
 * @param {Moving | undefined} moving
 */
function stateCell(row, moving) {
  const parts = [element("span", { class: "badge", text: moving === undefined ? row.state_word : _(moving.state_word) })];
  if (row.urgent) parts.push(element("span", { class: "urgent", text: _("urgent: %(reason)s", { reason: row.priority_reason ?? "" }) }));
  if (row.priority_url !== null) parts.push(priorityButton(row, row.priority_url));
  if (row.conflicts > 0) {
    const flag = element("span", { class: "flag", text: _n("%(num)s conflicting image", "%(num)s conflicting images", row.conflicts) });
    flag.title = _("Other content came under the UID of an image that was already here. The first was kept and used.");
    parts.push(flag);
  }
  if (row.shares_uid) {
    const flag = element("span", { class: "flag", text: _("also under another patient") });
    flag.title = _("Images under different patient names or numbers came with one Study Instance UID. Each person has a line of their own here. If it is one person, correct it at the source and send the study under a new Study Instance UID.");
    parts.push(flag);
  }
  if (row.stale) parts.push(element("span", { class: "flag", text: _("newer images than the result") }));
  if (row.review !== null) parts.push(reviewed(row.review));
  else if (row.waits_for_review && moving === undefined) {
    parts.push(element("span", { class: "review waiting", text: _("waiting for review") }));
  }
  const { step, step_done, step_total } = moving ?? row;
  if ((moving?.state ?? row.state) === "ANALYSING" && step_total > 0) {
    const bar = element("progress", { max: String(step_total), value: String(step_done) });
    bar.setAttribute("aria-label", _("Analysis"));
    parts.push(element("span", { class: "step" }, bar, step === null ? "" : _(step)));
  }
  if (row.reason && moving === undefined) parts.push(element("span", { class: "reason", text: row.reason }));
  if (row.retry_url !== null) parts.push(retryButton(row.retry_url));
  if (row.refused_series.length > 0) parts.push(refusals(row.refused_series));
  return parts;
}

/** @param {Review} review */
function reviewed({ by, at, positive, overridden }) {
  const text = overridden
    ? positive ? _("overridden: positive") : _("overridden: negative")
    : positive ? _("confirmed: positive") : _("confirmed: negative");
  return element("span", { class: "review" }, text, second(`${by}, ${localTime(at)}`));
}

/**
 * The page listens for clicks; the row says what one would do.
 * @param {Row} row
 * @param {string} url
 */
function priorityButton({ urgent }, url) {
  const button = element("button", { class: "quiet", type: "button", text: urgent ? _("Not urgent") : _("Urgent") });
  button.title = urgent ? _("Let it wait its turn") : _("Let it overtake the studies that wait");
  button.dataset.priority = url;
  button.dataset.urgent = String(!urgent);
  return button;
}

/** @param {string} url */
function retryButton(url) {
  const button = element("button", { class: "quiet", type: "button", text: _("Try again") });
  button.title = _("Analyse this study anew");
  button.dataset.retry = url;
  return button;
}

/** @param {RefusedSeries[]} series */
function refusals(series) {
  const items = series.map(({ series: name, images, reason }) =>
    element("li", { text: _n("%(series)s (%(num)s image): %(reason)s", "%(series)s (%(num)s images): %(reason)s", images, { series: name, reason: reason ?? _("refused") }) }));
  return element("details", { class: "refusals" },
    element("summary", { text: _n("%(num)s series refused", "%(num)s series refused", items.length) }),
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
  if (count === 0) return [_("No lesion")];
  const ml = (lesion_volume_ml ?? 0).toFixed(1);
  return [
    _n("%(num)s lesion", "%(num)s lesions", count),
    review === null ? `${ml} ml` : _("%(volume)s ml by the analysis", { volume: ml }),
  ];
}

/** @param {string} text */
function second(text) {
  return element("span", { class: "second", text });
}

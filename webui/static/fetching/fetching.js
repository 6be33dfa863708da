/**
 * The page "Fetch from PACS": what a PACS answered and how far the retrievals are, looked up again
 * every few seconds. Each button is a form of its own, with the page's token.
 *
 * @typedef {object} RemoteStudy
 * @property {string} fetch_url
 * @property {string} patient
 * @property {string} patient_id
 * @property {string} birth_date
 * @property {string} description
 * @property {string} accession_number
 * @property {string} study_date
 * @property {string} study_time
 * @property {string} modalities
 * @property {number} images  0 where the PACS does not say
 *
 * @typedef {object} Query
 * @property {string} destination
 * @property {string} state
 * @property {string | null} problem
 * @property {boolean} cut_off
 * @property {RemoteStudy[]} [studies]
 *
 * @typedef {object} Retrieval
 * @property {number} retrieval_id
 * @property {string} destination
 * @property {string} study_uid
 * @property {string} why
 * @property {string} state
 * @property {string} state_word
 * @property {string | null} problem
 * @property {number} attempts
 * @property {number} images
 * @property {number} expected
 * @property {{name: string, url: string}[]} patients
 * @property {string | null} retry_url
 * @property {string | null} give_up_url
 *
 * @typedef {{query: Query | null, retrievals: Retrieval[]}} Lists
 */
import { byId, element } from "../dom.js";
import { fetchJson } from "../live.js";
import { _, _n } from "../words.js";

const LOOK_MS = 2000;

const { rows = "", query = "", token = "" } = byId("fetching").dataset;
const url = query ? `${rows}?query=${query}` : rows;

/** What is shown: a list that did not change keeps its focus. */
const drawn = { query: "", retrievals: "" };

async function look() {
  try {
    show(/** @type {Lists} */ (await fetchJson(url)));
    byId("connection").textContent = "";
  } catch {
    byId("connection").textContent = _("No connection. Trying again…");
  }
  setTimeout(look, LOOK_MS);
}

/** @param {Lists} lists */
function show(lists) {
  const [asked, listed] = [JSON.stringify(lists.query), JSON.stringify(lists.retrievals)];
  if (lists.query !== null && asked !== drawn.query) showAnswers(lists.query);
  if (listed !== drawn.retrievals) byId("retrievals").replaceChildren(...lists.retrievals.map(retrievalRow));
  Object.assign(drawn, { query: asked, retrievals: listed });
}

/** @param {Query} asked */
function showAnswers(asked) {
  byId("answers").hidden = false;
  byId("told").textContent = told(asked);
  byId("studies").replaceChildren(...(asked.studies ?? []).map(studyRow));
}

/** @param {Query} asked */
function told({ destination, state, problem, cut_off, studies = [] }) {
  if (state === "FAILED") return problem ?? _("The search failed.");
  if (state !== "DONE") return _("Asking %(node)s…", { node: destination });
  return cut_off
    ? _("%(count)s studies at %(node)s, and there are more: narrow the search.", { count: studies.length, node: destination })
    : _n("%(num)s study at %(node)s.", "%(num)s studies at %(node)s.", studies.length, { node: destination });
}

/** @param {RemoteStudy} study */
function studyRow(study) {
  return element("tr", {},
    element("td", {}, element("b", { text: study.patient }), second(`${study.patient_id} · ${study.birth_date}`)),
    element("td", {}, study.description, second([`${study.study_date} ${study.study_time}`, _("Acc. %(number)s", { number: study.accession_number })].join(" · "))),
    element("td", { text: study.modalities }),
    element("td", { text: study.images > 0 ? String(study.images) : "–" }),
    element("td", {}, button(study.fetch_url, _("Fetch"))));
}

/** @param {Retrieval} row */
function retrievalRow(row) {
  const links = row.patients.map(({ name, url: to }) => element("a", { href: to, text: name }));
  const buttons = [
    ...(row.retry_url ? [button(row.retry_url, row.state === "FAILED" ? _("Retry") : _("Retry now"))] : []),
    ...(row.give_up_url ? [button(row.give_up_url, _("Give up"))] : []),
  ];
  const made = element("tr", { class: row.state },
    element("td", { class: "patient" }, ...links, second(row.study_uid)),
    element("td", {}, row.destination, second(row.why)),
    element("td", { text: row.expected > 0 ? _("%(count)s of %(all)s", { count: row.images, all: row.expected }) : String(row.images) }),
    element("td", { class: "state" },
      element("span", { class: "badge", text: row.state_word }),
      ...(row.problem ? [element("span", { class: "reason", text: row.problem })] : [])),
    element("td", {}, ...buttons));
  made.dataset.retrieval = String(row.retrieval_id);
  return made;
}

/**
 * @param {string} action
 * @param {string} text
 */
function button(action, text) {
  return element("form", { method: "post", action },
    element("input", { type: "hidden", name: "csrf_token", value: token }),
    element("button", { type: "submit", text }));
}

/** @param {string} text */
function second(text) {
  return element("span", { class: "second", text });
}

look();

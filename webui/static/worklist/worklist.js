/**
 * The worklist page: fetches its rows again whenever a study changed its state, and moves the
 * progress of those on their way in between.
 *
 * @typedef {import("./row.js").Row} Row
 * @typedef {import("../live.js").Moving} Moving
 * @typedef {import("../live.js").Pulse} Pulse
 *
 * @typedef {object} Page
 * @property {string} marker
 * @property {number} page
 * @property {number} pages
 * @property {number} total
 * @property {Row[]} rows
 */
import { byId, element } from "../dom.js";
import { fetchJson, follow, postForm } from "../live.js";
import { rowElement } from "./row.js";

const COUNTED = [
  ["RECEIVING", "receiving"],
  ["QUEUED", "waiting"],
  ["ANALYSING", "analysing"],
  ["READY", "ready"],
  ["REJECTED", "refused"],
  ["FAILED", "failed"],
];

const RETRY_MS = 3000;

const { rows: rowsUrl = "", live: liveUrl = "", page: pageNumber = "1", token = "" } = byId("worklist").dataset;

/** @type {Page | null} */
let shown = null;
/** @type {Map<number, Moving>} */
let moving = new Map();
let fetching = false;
let retry = 0;
/** Something changed after the rows under way were asked for. */
let outdated = false;

async function refresh() {
  clearTimeout(retry);
  outdated = true;
  if (fetching) return;
  fetching = true;
  try {
    while (outdated) {
      outdated = false;
      shown = /** @type {Page} */ (await fetchJson(`${rowsUrl}?page=${pageNumber}`));
      show(shown);
    }
    say("");
  } catch {
    say("No connection. Trying again…");
    retry = setTimeout(refresh, RETRY_MS);
  } finally {
    fetching = false;
  }
}

/** @param {Page} page */
function show(page) {
  const focused = document.activeElement?.closest("tr")?.dataset.study;
  const opened = new Set([...document.querySelectorAll("tr:has(details[open])")].map((row) =>
    /** @type {HTMLElement} */ (row).dataset.study));
  const made = page.rows.map((row) => rowElement(row, moving.get(row.study_id)));
  for (const row of made) {
    const details = row.querySelector("details");
    if (details && opened.has(row.dataset.study)) details.open = true;
  }
  byId("rows").replaceChildren(...made);
  made.find((row) => focused !== undefined && row.dataset.study === focused)?.querySelector("a")?.focus();
  byId("empty").hidden = page.total > 0;
  showPages(page);
}

/** @param {Page} page */
function showPages({ page, pages, total }) {
  const link = (/** @type {string} */ text, /** @type {number} */ to) =>
    to >= 1 && to <= pages ? element("a", { class: "button", href: `?page=${to}`, text }) : "";
  const nav = byId("pages");
  nav.hidden = pages <= 1;
  nav.replaceChildren(link("Previous", page - 1), `Page ${page} of ${pages}, ${total} studies`, link("Next", page + 1));
}

/** @param {Pulse} pulse */
function onPulse(pulse) {
  const before = moving;
  moving = new Map(pulse.moving.map((study) => [study.study_id, study]));
  byId("counts").replaceChildren(...COUNTED.filter(([state]) => pulse.counts[state]).map(([state, word]) =>
    element("span", {}, element("b", { text: String(pulse.counts[state]) }), ` ${word}`)));
  if (shown === null || shown.marker !== pulse.marker) {
    refresh();
  } else {
    updateMoving(shown, before);
  }
}

/**
 * Replace only the rows of studies on their way, and of those that were until now: such a row may
 * have been drawn from a fetch that was newer than the pulse before.
 * @param {Page} page
 * @param {Map<number, Moving>} before
 */
function updateMoving(page, before) {
  for (const row of page.rows) {
    const now = moving.get(row.study_id);
    if (JSON.stringify(now) === JSON.stringify(before.get(row.study_id))) continue;
    byId("rows").querySelector(`tr[data-study="${row.study_id}"]`)?.replaceWith(rowElement(row, now));
  }
}

/** @param {MouseEvent} event */
async function changePriority({ target }) {
  if (!(target instanceof HTMLButtonElement) || target.dataset.priority === undefined) return;
  target.disabled = true;
  try {
    await postForm(target.dataset.priority, { urgent: target.dataset.urgent ?? "" }, token);
  } catch {
    say("The priority was not changed. Try again.");
    target.disabled = false;
    return;
  }
  refresh();
}

/** @param {string} text */
function say(text) {
  byId("connection").textContent = text;
}

byId("rows").addEventListener("click", changePriority);
// Without the stream, which a busy server refuses, each try to connect is at least a look.
follow(liveUrl, onPulse, refresh);
refresh();

/**
 * The worklist page: asks for its rows again whenever a study moved on, and shows the progress of
 * those under way in between. Under the pointer, or around what has the focus, no row moves: what
 * came or changed its place is announced and shown when the reader is elsewhere, or wants it.
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
 * @property {number} newest  the study that came last
 * @property {number} arrived  how many of this view came since the one that was asked about
 * @property {Row[]} rows
 */
import { byId, element } from "../dom.js";
import { fetchJson, follow, postForm, Refused } from "../live.js";
import { ago } from "../time.js";
import { _, _n } from "../words.js";
import { asked, changed, chosen, fill, href, lasting, offer, reordered } from "./address.js";
import "./keys.js";
import { otherStudies, rowElement } from "./row.js";

/** The stages of the headline; the last two only where there are any. */
const COUNTED = [
  ["waiting", _("waiting"), true],
  ["running", _("running"), true],
  ["review", _("to review"), true],
  ["failed", _("failed"), true],
  ["refused", _("refused"), false],
  ["confirmed", _("confirmed"), false],
];

const RETRY_MS = 3000;
const TYPING_MS = 300;
const MINUTE_MS = 60_000;
/** Where the viewer finds the view that a study was opened from. */
const VIEW_STORED = "worklist.view";

const { rows: rowsUrl = "", live: liveUrl = "", choices: choicesUrl = "", keep: keepUrl = "", token = "", ...told } =
  byId("worklist").dataset;
const body = byId("rows");
const form = /** @type {HTMLFormElement} */ (byId("filters"));

let address = "";
let defaultView = told.default ? lasting(new URLSearchParams(told.default)) : "";
/** @type {Page | null} */
let shown = null;
/** @type {Page | null} what is not shown yet, because rows would move under the reader's hand */
let held = null;
/** @type {Map<number, Moving>} */
let moving = new Map();
/** @type {Record<string, number>} */
let counts = {};
let fetching = false;
let retry = 0;
let typing = 0;
/** Something changed after the rows under way were asked for. */
let outdated = false;
let pointed = false;
/** The study that was the last when the reader last took note, and what was it before. */
let seen = 0;
let seenBefore = 0;

/**
 * Show what the address asks for.
 * @param {number} since  the last study that the reader knows, 0 for what is there
 */
function open(since) {
  address = asked().toString();
  sessionStorage.setItem(VIEW_STORED, address);
  [shown, held, seen, seenBefore] = [null, null, since, since];
  fill();
  showKeep();
  showCounts();
  announce();
  refresh();
}

/**
 * @param {URLSearchParams} values
 * @param {{instead?: boolean, since?: number}} [how]  instead of the address that the back button
 *   would lead to; since which study others are new
 */
function go(values, { instead = false, since = 0 } = {}) {
  clearTimeout(typing);
  if (href(values) === href(asked())) return;
  history[instead ? "replaceState" : "pushState"](null, "", href(values));
  open(since);
}

/** What to ask for: the view, and what is new to the reader. */
function query() {
  return shown === null ? address : `${address}&since=${seen}`;
}

async function refresh() {
  clearTimeout(retry);
  outdated = true;
  if (fetching) return;
  fetching = true;
  try {
    while (outdated) {
      outdated = false;
      const wanted = query();
      const page = /** @type {Page} */ (await fetchJson(`${rowsUrl}?${wanted}`));
      if (wanted === query()) take(page);
      else outdated = true;
    }
    say("");
  } catch (error) {
    if (error instanceof Refused) say(error.message);
    else {
      say(_("No connection. Trying again…"));
      retry = setTimeout(refresh, RETRY_MS);
    }
  } finally {
    fetching = false;
  }
}

/** @param {Page} page */
function take(page) {
  if (shown === null) {
    seen = page.newest;
    seenBefore ||= page.newest;
  }
  const still = shown !== null && isHeld() && ids(shown.rows) !== ids(page.rows);
  if (shown !== null && still) {
    const fresh = new Map(page.rows.map((row) => [row.study_id, row]));
    shown = { ...page, rows: shown.rows.map((row) => fresh.get(row.study_id) ?? row) };
    held = page;
    draw(shown.rows);
  } else {
    show(page);
  }
  announce();
}

/** @param {Page} page */
function show(page) {
  [shown, held] = [page, null];
  draw(page.rows);
  byId("empty").hidden = page.newest > 0;
  byId("none").hidden = page.newest === 0 || page.total > 0;
  showPages(page);
}

function isHeld() {
  return pointed || body.contains(document.activeElement);
}

/** Show what was held back, once no row can slip away under the reader's hand. */
function release() {
  if (held === null || isHeld()) return;
  show(held);
  announce();
}

function announce() {
  const arrived = (held ?? shown)?.arrived ?? 0;
  byId("show").hidden = arrived === 0 && held === null;
  byId("arrivals").textContent = arrived > 0 ? _n("%(num)s new study", "%(num)s new studies", arrived)
    : held !== null ? _("The order has changed") : "";
}

/** The reader wants to see what came, and takes note of it. */
function showArrivals() {
  const page = held ?? shown;
  if (page === null) return;
  const since = seen;
  const elsewhere = page.arrived > 0 && !page.rows.some((row) => row.study_id > since);
  if (elsewhere) {
    go(changed(asked(), { order: "arrival" }), { since });
    return;
  }
  [seenBefore, seen] = [since, page.newest];
  show({ ...page, arrived: 0 });
  announce();
}

/** @param {Row[]} rows */
function ids(rows) {
  return rows.map((row) => row.study_id).join();
}

/** @type {Map<number, {facts: string, made: HTMLElement}>} */
let drawn = new Map();

/**
 * Put these rows in this order; a row that says the same as before stays as it is.
 * @param {Row[]} rows
 */
function draw(rows) {
  const focused = document.activeElement?.closest("tbody tr");
  const next = new Map(rows.map((row) => [row.study_id, rowOf(row)]));
  const before = [...body.children];
  const made = [...next.values()].map((row) => row.made);
  drawn = next;
  if (before.length === made.length && before.every((row, i) => studyOf(row) === studyOf(made[i]))) {
    for (const [i, row] of made.entries()) if (row !== before[i]) before[i].replaceWith(row);
  } else {
    body.replaceChildren(...made);
  }
  if (focused && !focused.contains(document.activeElement)) {
    /** @type {HTMLElement | null} */ (body.querySelector(`tr[data-study="${studyOf(focused)}"] a`))?.focus();
  }
}

/** @param {Row} row */
function rowOf(row) {
  const now = moving.get(row.study_id);
  const fresh = row.study_id > seenBefore;
  const facts = JSON.stringify([row, now, fresh]);
  const before = drawn.get(row.study_id);
  if (before?.facts === facts) return before;
  const made = rowElement(row, now, fresh);
  for (const opened of before?.made.querySelectorAll("details[open]") ?? []) {
    const details = made.querySelector(`details.${opened.className}`);
    if (!(details instanceof HTMLDetailsElement)) continue;
    details.open = true;
    details.querySelector("ul")?.replaceChildren(...opened.querySelector("ul")?.children ?? []);
  }
  return { facts, made };
}

/** @param {Element} row */
function studyOf(row) {
  return /** @type {HTMLElement} */ (row).dataset.study;
}

/** @param {Page} page */
function showPages({ page, pages, total }) {
  const link = (/** @type {string} */ text, /** @type {number} */ to) =>
    to >= 1 && to <= pages
      ? element("a", { class: "button", href: href(changed(asked(), { page: String(to) })), text })
      : "";
  const nav = byId("pages");
  nav.hidden = pages <= 1;
  nav.replaceChildren(link(_("Previous"), page - 1), _("Page %(page)s of %(pages)s, %(total)s studies", { page, pages, total }), link(_("Next"), page + 1));
}

function showCounts() {
  const now = asked().get("state");
  byId("counts").replaceChildren(...COUNTED.filter(([stage, , always]) => always || counts[String(stage)]).map(([stage, word]) => {
    const link = element("a", { class: String(stage), href: `?state=${stage}` },
      element("b", { text: String(counts[String(stage)] ?? 0) }), ` ${word}`);
    if (stage === now) link.setAttribute("aria-current", "true");
    return link;
  }));
}

/** @param {Pulse} pulse */
function onPulse(pulse) {
  moving = new Map(pulse.moving.map((study) => [study.study_id, study]));
  if (JSON.stringify(counts) !== JSON.stringify(pulse.counts)) {
    counts = pulse.counts;
    showCounts();
  }
  if (shown !== null) draw(shown.rows);
  if (shown?.marker !== pulse.marker) refresh();
}

/** @param {MouseEvent} event */
async function act({ target }) {
  if (!(target instanceof HTMLButtonElement)) return;
  const { priority, urgent = "", retry: again } = target.dataset;
  const url = priority ?? again;
  if (url === undefined) return;
  target.disabled = true;
  try {
    await postForm(url, priority === undefined ? {} : { urgent }, token);
  } catch {
    say(priority === undefined ? _("The study was not started again. Look at its line.") : _("The priority was not changed. Try again."));
    target.disabled = false;
    return;
  }
  refresh();
}

/** @param {Event} event */
async function listOthers({ target }) {
  if (!(target instanceof HTMLDetailsElement) || !target.open || target.dataset.url === undefined) return;
  try {
    const { studies } = await fetchJson(target.dataset.url);
    target.querySelector("ul")?.replaceChildren(...otherStudies(studies));
  } catch {
    say(_("The other studies could not be listed. Close and open the list."));
  }
}

function isOwn() {
  return lasting(asked()) === defaultView;
}

function showKeep() {
  const own = isOwn();
  byId("keep").textContent = own ? _("Forget my default view") : _("Make this my default view");
}

async function keepView() {
  const own = isOwn();
  const wanted = own ? "" : lasting(asked());
  try {
    await postForm(keepUrl, { address: wanted }, token);
  } catch {
    say(_("Your default view was not changed. Try again."));
    return;
  }
  defaultView = wanted;
  showKeep();
  say(own ? _("The worklist opens with everything again.") : _("The worklist opens like this from now on."));
}

/** @param {string} text */
function say(text) {
  byId("connection").textContent = text;
}

/** Follow a link within the page, unless the reader wants a new one. @param {MouseEvent} event */
function follows(event) {
  const link = /** @type {Element} */ (event.target).closest("a");
  if (!link || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(new URLSearchParams(link.search));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  go(chosen());
});
form.addEventListener("change", () => go(chosen()));
form.addEventListener("input", ({ target }) => {
  if (!(target instanceof HTMLInputElement) || target.type !== "search") return;
  clearTimeout(typing);
  // The first letters are a step of their own, the next ones belong to it.
  typing = setTimeout(() => go(chosen(), { instead: asked().has("q") }), TYPING_MS);
});
for (const id of ["counts", "pages", "all"]) byId(id).addEventListener("click", follows);
document.querySelector("thead")?.addEventListener("click", ({ target }) => {
  const by = /** @type {HTMLElement} */ (target).dataset.order;
  if (by !== undefined) go(changed(asked(), { order: reordered(by) }));
});
body.addEventListener("click", act);
body.addEventListener("toggle", listOthers, true);
body.addEventListener("pointermove", () => { pointed = true; });
body.addEventListener("pointerleave", () => {
  pointed = false;
  release();
});
body.addEventListener("focusout", () => setTimeout(release));
byId("show").addEventListener("click", showArrivals);
byId("keep").addEventListener("click", keepView);
addEventListener("popstate", () => open(0));
setInterval(() => {
  for (const each of body.querySelectorAll(".ago")) {
    each.textContent = ago(/** @type {HTMLElement} */ (each).dataset.at ?? "");
  }
}, MINUTE_MS);
// Without the stream, which a busy server refuses, each try to connect is at least a look.
follow(liveUrl, onPulse, refresh);
open(0);
fetchJson(choicesUrl).then(offer, () => say(_("The filters could not be filled. Reload the page.")));

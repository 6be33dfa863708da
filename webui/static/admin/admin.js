/**
 * The administrators' pages stay up to date: each part marked `data-live` is looked up again in the
 * page as the server makes it now, and replaced where it differs. A part in which somebody is stays
 * as it is until they leave it. Without this module the pages work, as of the time they were opened.
 */
import { byId } from "../dom.js";
import { _ } from "../words.js";
import { draw } from "./chart.js";

const LOOK_MS = 4000;

/** What the server said of each part, without the pictures that were drawn since. @type {Map<string, Element>} */
const said = new Map();

for (const part of live(document)) said.set(part.id, copy(part));
drawAll(document);
if (said.size > 0) setTimeout(look, LOOK_MS);

async function look() {
  try {
    const response = await fetch(byId("admin").dataset.page ?? "", { headers: { "X-Unattended": "true" } });
    if (response.status === 403) location.reload(); // not an administrator any more: the page says so
    if (!response.ok) throw new Error(`status ${response.status}`);
    show(new DOMParser().parseFromString(await response.text(), "text/html"));
    byId("connection").textContent = "";
  } catch {
    byId("connection").textContent = _("No connection. Trying again…");
  }
  setTimeout(look, LOOK_MS);
}

/** @param {Document} page */
function show(page) {
  for (const part of live(page)) {
    const shown = document.getElementById(part.id);
    if (shown === null || copy(part).isEqualNode(said.get(part.id) ?? null)) continue;
    if (shown.contains(document.activeElement)) continue;
    const open = [...shown.querySelectorAll("details")].map((details) => details.open);
    said.set(part.id, copy(part));
    shown.replaceChildren(...document.adoptNode(part).childNodes);
    drawAll(shown);
    shown.querySelectorAll("details").forEach((details, i) => { details.open = open[i] ?? false; });
  }
}

/**
 * A part with what the server says of it alone: each page has a form token of its own.
 * @param {Element} part
 */
function copy(part) {
  const copied = /** @type {Element} */ (part.cloneNode(true));
  for (const token of copied.querySelectorAll("input[name=csrf_token]")) token.remove();
  return copied;
}

/** @param {ParentNode} node */
function live(node) {
  return /** @type {NodeListOf<HTMLElement>} */ (node.querySelectorAll("[data-live]"));
}

/** @param {ParentNode} node */
function drawAll(node) {
  for (const figure of node.querySelectorAll("[data-chart]")) draw(/** @type {HTMLElement} */ (figure));
}

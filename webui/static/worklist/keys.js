/**
 * The worklist without a mouse: up and down, Enter (each line is a link), "/" for the search. Who
 * does not want it, or speaks to the computer, switches it off in this browser.
 */
import { byId } from "../dom.js";

const STORED = "worklist.keys";

const wanted = /** @type {HTMLInputElement} */ (byId("keys"));
wanted.checked = localStorage.getItem(STORED) !== "off";
wanted.addEventListener("change", () => localStorage.setItem(STORED, wanted.checked ? "on" : "off"));

/** @param {KeyboardEvent} event */
function pressed(event) {
  if (!wanted.checked || event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
  const at = /** @type {HTMLElement} */ (event.target);
  const leavesSearch = event.key === "ArrowDown" && at.matches("input[type=search]");
  if (at.closest("input, select, textarea, summary") && !leavesSearch) return;
  if (event.key === "/") byId("filters").querySelector("input")?.focus();
  else if (event.key === "ArrowDown") step(1);
  else if (event.key === "ArrowUp") step(-1);
  else return;
  event.preventDefault();
}

/** @param {number} by */
function step(by) {
  const rows = [...byId("rows").children];
  const now = document.activeElement?.closest("tbody tr") ?? null;
  const next = now === null ? (by > 0 ? 0 : rows.length - 1) : rows.indexOf(now) + by;
  /** @type {HTMLElement | null | undefined} */ (rows[next]?.querySelector(".patient a"))?.focus();
}

document.addEventListener("keydown", pressed);

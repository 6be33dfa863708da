/**
 * The address and the form that shows it: filters, search and order live in the address, so that a
 * bookmark and the back button lead to what was seen.
 *
 * @typedef {{value: string, text: string}} Choice
 */
import { byId, element } from "../dom.js";

const form = /** @type {HTMLFormElement} */ (byId("filters"));

/** "/" alone is the person's own view; everything has an address of its own. */
const EVERYTHING = "order=suspicion";
const ORDERED_BY = "suspicion";
const DATES = "dates";

/** What the address asks for. */
export function asked() {
  return new URLSearchParams(location.search);
}

/** What the form asks for: an address without what matters not. */
export function chosen() {
  const values = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    const idle = name === "order" && value === ORDERED_BY;
    if (typeof value === "string" && value.trim() !== "" && !idle) values.set(name, value.trim());
  }
  if (values.get("period") !== DATES) for (const day of ["from", "to"]) values.delete(day);
  return values;
}

/**
 * What a default view keeps: neither whom somebody looked for nor days that pass.
 * @param {URLSearchParams} from
 */
export function lasting(from) {
  const values = changed(from, { q: null, from: null, to: null });
  if (values.get("period") === DATES) values.delete("period");
  values.sort();
  return values.toString() || EVERYTHING;
}

/**
 * Where the address leads with these changes; null takes something out. Another page is not meant
 * of what is found then.
 * @param {URLSearchParams} from
 * @param {Record<string, string | null>} changes
 */
export function changed(from, changes) {
  const values = new URLSearchParams(from);
  values.delete("page");
  for (const [name, value] of Object.entries(changes)) {
    if (value === null) values.delete(name);
    else values.set(name, value);
  }
  return values;
}

/** @param {URLSearchParams} values */
export function href(values) {
  return `?${values.toString() || EVERYTHING}`;
}

/** Show in the form what the address asks for. */
export function fill() {
  const values = asked();
  for (const field of form.elements) {
    if (!(field instanceof HTMLSelectElement || field instanceof HTMLInputElement)) continue;
    if (field.type === "search" && field === document.activeElement) continue;
    const value = values.get(field.name) ?? (field.name === "order" ? ORDERED_BY : "");
    if (field instanceof HTMLSelectElement && ![...field.options].some((option) => option.value === value)) {
      field.append(element("option", { value, text: value.replace("\\", " ") }));
    }
    field.value = value;
  }
  for (const label of form.querySelectorAll("label.dates")) {
    /** @type {HTMLElement} */ (label).hidden = values.get("period") !== DATES;
  }
  const order = values.get("order") ?? ORDERED_BY;
  for (const button of document.querySelectorAll("th [data-order]")) {
    const by = /** @type {HTMLElement} */ (button).dataset.order ?? "";
    const rises = (order === by) === (by === "patient");
    const sort = order.replace("-", "") !== by ? "none" : rises ? "ascending" : "descending";
    button.closest("th")?.setAttribute("aria-sort", sort);
  }
}

/**
 * Offer what there is to choose from.
 * @param {Record<string, Choice[]>} choices
 */
export function offer(choices) {
  for (const [name, found] of Object.entries(choices)) {
    const select = form.elements.namedItem(name);
    if (!(select instanceof HTMLSelectElement)) continue;
    select.replaceChildren(select.options[0], ...found.map(({ value, text }) => element("option", { value, text })));
  }
  fill();
}

/**
 * The order that a click on a heading asks for: its own, then the other way round.
 * @param {string} by
 */
export function reordered(by) {
  const order = asked().get("order") ?? ORDERED_BY;
  return order === by && by !== ORDERED_BY ? `-${by}` : by;
}

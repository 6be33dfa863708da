import { _ } from "./words.js";

/** The reader's own clock, unambiguous everywhere: 2020-03-05 14:05. @param {string} iso */
export function localTime(iso) {
  const at = new Date(iso);
  const two = (/** @type {number} */ number) => String(number).padStart(2, "0");
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}`;
}

/** How long ago that was, roughly. @param {string} iso */
export function ago(iso) {
  const minutes = Math.floor((Date.now() - new Date(iso).getTime()) / 60_000);
  if (minutes < 1) return _("just now");
  if (minutes < 60) return _("%(minutes)s min ago", { minutes });
  if (minutes < 48 * 60) return _("%(hours)s h ago", { hours: Math.floor(minutes / 60) });
  return _("%(days)s days ago", { days: Math.floor(minutes / (24 * 60)) });
}

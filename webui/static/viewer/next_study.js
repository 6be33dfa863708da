/**
 * On to the next study that waits for a review, without the way over the worklist.
 */
import { _ } from "../words.js";
import { RefusedError } from "./review_server.js";

/** Where the worklist keeps the view that a study was opened from (worklist.js). */
const VIEW_STORED = "worklist.view";

/**
 * @param {string} url  answers with the address of the next study of a view, null for none
 * @param {() => Promise<void>} flush  saves what was judged here
 * @param {(sentence: string) => void} tell
 */
export async function openNext(url, flush, tell) {
  try {
    await flush();
    const response = await fetch(`${url}&${sessionStorage.getItem(VIEW_STORED) ?? ""}`);
    if (!response.ok) throw new Error(`${url}: status ${response.status}`);
    const next = (await response.json()).url;
    if (next === null) tell(_("No other study waits for a review."));
    else location.assign(next);
  } catch (error) {
    console.warn(error);
    tell(error instanceof RefusedError ? error.message : _("The next study could not be asked for. Try again, or go to the worklist."));
  }
}

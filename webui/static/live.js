/**
 * The server's event stream: what moves right now. The browser connects again by itself when the
 * stream ends; when the server refuses (restart, too many readers, signed out) this module does.
 *
 * @typedef {object} StepDone
 * @property {string} step
 * @property {number} seconds
 * @property {Record<string, unknown>} summary
 *
 * @typedef {object} Moving  a study being received or analysed
 * @property {number} study_id
 * @property {string} state
 * @property {string} state_word
 * @property {number} images
 * @property {string | null} step
 * @property {number} step_done
 * @property {number} step_total
 * @property {StepDone[]} steps
 *
 * @typedef {object} Pulse
 * @property {string} marker  differs whenever a study entered another state
 * @property {Record<string, number>} counts  studies by state
 * @property {Moving[]} moving
 */

const RECONNECT_MS = 5000;

/**
 * @param {string} url
 * @param {(pulse: Pulse) => void} onPulse
 * @param {(connected: boolean) => void} onConnection
 */
export function follow(url, onPulse, onConnection) {
  const source = new EventSource(url);
  source.addEventListener("open", () => onConnection(true));
  source.addEventListener("message", (event) => onPulse(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    onConnection(false);
    if (source.readyState === EventSource.CLOSED) {
      setTimeout(() => follow(url, onPulse, onConnection), RECONNECT_MS);
    }
  });
}

/**
 * JSON from the server; a signed-out reader is sent to the sign-in.
 * @param {string} url
 */
export async function fetchJson(url) {
  const response = await fetch(url);
  if (response.status === 401) location.reload();
  if (!response.ok) throw new Error(`${url}: status ${response.status}`);
  return response.json();
}

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
 * @property {Record<string, number>} counts  studies by stage: waiting, running, review, confirmed, failed, refused
 * @property {Moving[]} moving
 */

const RECONNECT_MS = 5000;
/** The server says something every 2 s; after this long the connection is dead without knowing it. */
const SILENCE_MS = 25_000;

/**
 * @param {string} url
 * @param {(pulse: Pulse) => void} onPulse
 * @param {() => void} onLost  the stream ended, was refused or fell silent; it is being opened again
 */
export function follow(url, onPulse, onLost) {
  const source = new EventSource(url);
  const again = () => {
    source.close();
    clearTimeout(silence);
    onLost();
    setTimeout(() => follow(url, onPulse, onLost), RECONNECT_MS);
  };
  let silence = setTimeout(again, SILENCE_MS);
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(again, SILENCE_MS);
  };
  source.addEventListener("alive", heard);
  source.addEventListener("message", (event) => {
    heard();
    onPulse(JSON.parse(event.data));
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) again();
    else onLost();
  });
}

/**
 * JSON from the server; a signed-out reader is sent to the sign-in.
 * @param {string} url
 */
export async function fetchJson(url) {
  const response = await fetch(url);
  if (response.status === 401) location.reload();
  if (response.status === 400) throw new Refused((await response.json()).error);
  if (!response.ok) throw new Error(`${url}: status ${response.status}`);
  return response.json();
}

/** The server does not understand what is asked; the message says why, for people. */
export class Refused extends Error {}

/**
 * Ask the server for a change; it answers without content.
 * @param {string} url
 * @param {Record<string, string>} values
 * @param {string} token  the form token, without which the server refuses
 */
export async function postForm(url, values, token) {
  const headers = { "X-CSRFToken": token };
  const response = await fetch(url, { method: "POST", headers, body: new URLSearchParams(values) });
  if (response.status === 401) location.reload();
  if (!response.ok) throw new Error(`${url}: status ${response.status}`);
}

/**
 * Changes that are sent as JSON.
 */
import { fetchJson } from "./live.js";

/**
 * @param {string} url
 * @param {"PUT" | "DELETE"} method
 * @param {string} tokenUrl  answers with the form token: a page that outlived its session gets one of the new one
 * @param {unknown} [content]
 * @throws {Error} it was refused, or did not arrive
 */
export async function send(url, method, tokenUrl, content) {
  const { csrf_token } = /** @type {{csrf_token: string}} */ (await fetchJson(tokenUrl));
  const headers = { "Content-Type": "application/json", "X-CSRFToken": csrf_token };
  const body = content === undefined ? null : JSON.stringify(content);
  const response = await fetch(url, { method, headers, body });
  if (!response.ok) throw new Error(`${url}: status ${response.status}`);
}

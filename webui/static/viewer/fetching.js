/**
 * Requests that try again: one lost packet or a server that starts anew must not blank the viewer.
 */

const TRIES = 3;
const RETRY_AFTER_MS = 500;
/** The server understood and says no: asking again would not change it. */
const FINAL_STATUSES = [401, 403, 404];

/**
 * What `take` makes of the answer, which includes reading and decoding it.
 * @template Taken
 * @param {string} url
 * @param {(response: Response) => Promise<Taken>} take
 * @returns {Promise<Taken>}
 * @throws {Error} it did not come in spite of several tries
 */
export async function fetchAgain(url, take) {
  for (let attempt = 1; ; attempt++) {
    let final = attempt === TRIES;
    try {
      const response = await fetch(url);
      final ||= FINAL_STATUSES.includes(response.status);
      if (!response.ok) throw new Error(`${url}: status ${response.status}`);
      return await take(response);
    } catch (error) {
      if (final) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_AFTER_MS * attempt));
  }
}

/**
 * The bytes of an answer.
 * @param {Response} response
 */
export async function bytesOf(response) {
  return new Uint8Array(await response.arrayBuffer());
}

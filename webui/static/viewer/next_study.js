/**
 * On to the next study that waits for a review, without the way over the worklist.
 */

/**
 * @param {string} url  answers with the address of the next study, or with nothing
 * @param {(sentence: string) => void} tell
 */
export async function openNext(url, tell) {
  try {
    const response = await fetch(url);
    if (response.status === 204) tell("No other study waits for a review.");
    else if (response.ok) location.assign((await response.json()).url);
    else throw new Error(`${url}: status ${response.status}`);
  } catch (error) {
    console.warn(error);
    tell("The next study could not be asked for. Try again, or go to the worklist.");
  }
}

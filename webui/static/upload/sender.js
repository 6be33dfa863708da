/**
 * Sends the files of one upload piece by piece, and goes on after whatever interrupts it: a lost connection, a server
 * that starts anew, a session that ended. The server knows how far each file has come.
 *
 * @typedef {object} Place
 * @property {string} name
 * @property {number} size
 * @property {number} modified
 * @property {number} offset  bytes that the server has
 * @property {string} url
 *
 * @typedef {object} Outcome
 * @property {number} new
 * @property {number} duplicate
 * @property {number} conflict
 * @property {{name: string, reason: string}[]} left_out
 * @property {number} left_out_count
 * @property {{url: string, patient: string, patient_id: string, study_date: string, description: string}[]} studies
 *
 * @typedef {object} Upload
 * @property {string} name
 * @property {string} url
 * @property {string} take_url
 * @property {Place[]} files
 * @property {Outcome | null} outcome
 * @property {string} [csrf_token]
 */
import { _ } from "../words.js";

const AT_ONCE = 3;
const AGAIN_MS = [500, 1000, 2000, 4000, 8000];
const FORBIDDEN = [400, 403, 404, 413];

/** What will not get better by trying again. */
export class Refused extends Error {}

export class Sender {
  #aborted = new AbortController();

  /**
   * @param {string} token  of the page
   * @param {number} pieceBytes
   * @param {(trouble: string) => void} tell  hears what it waits for, "" when it goes on
   */
  constructor(token, pieceBytes, tell) {
    this.token = token;
    this.pieceBytes = pieceBytes;
    this.tell = tell;
  }

  stop() {
    this.#aborted.abort();
  }

  /**
   * @param {string} url
   * @param {{name: string, size: number, modified: number}[]} files
   * @returns {Promise<Upload>}
   */
  begin(url, files) {
    return this.#post(url, url, { files });
  }

  /**
   * @param {Upload} upload
   * @param {Map<number, File>} files  by their numbers
   * @param {(number: number, offset: number) => void} progress
   */
  async send(upload, files, progress) {
    const left = [...files.keys()].filter((number) => upload.files[number].offset < upload.files[number].size);
    const worker = async () => {
      for (let number = left.shift(); number !== undefined; number = left.shift()) {
        await this.#file(upload, number, /** @type {File} */ (files.get(number)), progress);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
  }

  /**
   * @param {Upload} upload
   * @param {Record<string, string>} person
   * @returns {Promise<Upload>}
   */
  take(upload, person) {
    return this.#post(upload.url, upload.take_url, person);
  }

  /** @param {Upload} upload */
  async discard(upload) {
    await fetch(upload.url, { method: "DELETE", headers: { "X-CSRFToken": this.token } });
  }

  /**
   * @param {Upload} upload
   * @param {number} number
   * @param {File} file
   * @param {(number: number, offset: number) => void} progress
   */
  async #file(upload, number, file, progress) {
    const place = upload.files[number];
    while (place.offset < place.size) {
      const piece = file.slice(place.offset, place.offset + this.pieceBytes);
      const answer = await this.#persist(upload.url, place.url, {
        method: "PATCH",
        headers: { "Content-Type": "application/offset+octet-stream", "Upload-Offset": String(place.offset) },
        body: piece,
      }, async () => {
        const { files } = /** @type {Upload} */ (await this.#ask(upload.url));
        const moved = files[number].offset !== place.offset;
        place.offset = files[number].offset;
        return moved;
      });
      if (answer !== null) place.offset = Number(answer.headers.get("Upload-Offset"));
      progress(number, place.offset);
    }
  }

  /**
   * @param {string} state
   * @param {string} url
   * @param {unknown} content
   */
  async #post(state, url, content) {
    const answer = await this.#persist(state, url, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
    }, async () => false);
    return /** @type {Promise<Upload>} */ (/** @type {Response} */ (answer).json());
  }

  /**
   * Ask until there is an answer; null where `look` found that the question is another by now.
   * @param {string} state  where a new token comes from
   * @param {string} url
   * @param {RequestInit & {headers: Record<string, string>}} request
   * @param {() => Promise<boolean>} look  at what the server has, after each failure
   */
  async #persist(state, url, request, look) {
    let hasNewToken = false;
    for (let failures = 0; ; failures++) {
      let trouble = _("No connection. It goes on by itself…");
      try {
        const headers = { ...request.headers, "X-CSRFToken": this.token };
        const answer = await fetch(url, { ...request, headers, signal: this.#aborted.signal });
        if (answer.ok || answer.status === 409) {
          this.tell("");
          return answer;
        }
        if (answer.status === 401) trouble = _("Your session has ended. Sign in in another tab; it goes on by itself.");
        else {
          const said = /** @type {{error?: string}} */ (await answer.json().catch(() => ({})));
          trouble = said.error ?? _("The server answered %(status)s.", { status: answer.status });
          if (answer.status === 400 && !hasNewToken) {
            await this.#ask(state); // after another sign-in the page's token is an old one
            hasNewToken = true;
            continue;
          }
          if (FORBIDDEN.includes(answer.status)) throw new Refused(trouble);
        }
      } catch (error) {
        if (error instanceof Refused || this.#aborted.signal.aborted) throw error;
      }
      this.tell(trouble);
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS[Math.min(failures, AGAIN_MS.length - 1)]));
      try {
        if (await look()) return null;
      } catch (error) {
        if (error instanceof Refused || this.#aborted.signal.aborted) throw error;
      }
    }
  }

  /** @param {string} url @returns {Promise<unknown>} */
  async #ask(url) {
    const answer = await fetch(url, { signal: this.#aborted.signal });
    if (answer.status === 404) throw new Refused(_("This upload is not here any more: choose the files again."));
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    const said = await answer.json();
    if (said.csrf_token) this.token = said.csrf_token;
    return said;
  }
}

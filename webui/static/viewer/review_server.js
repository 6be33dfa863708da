/**
 * What the review tells the server and asks of it. A request that meets a locked session waits for
 * the password and is sent again (session.js).
 */
import { _ } from "../words.js";

/** The server did not take it; the message is for the reader. */
export class RefusedError extends Error {
  /**
   * @param {number} status  0 where there was no answer
   * @param {string} sentence
   */
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

const NO_CONNECTION = _("No connection. Your marks are kept in this window and saved as soon as it is back.");

export class ReviewServer {
  #token = "";

  /** @param {string} url  of the review; what belongs to it lies beside */
  constructor(url) {
    this.url = url;
    this.base = url.slice(0, url.lastIndexOf("/"));
  }

  /** @returns {Promise<import("./review_panel.js").Review>} */
  async state() {
    const said = await this.#ask("GET", this.url);
    this.#token = said.csrf_token;
    return said;
  }

  /** @param {object} judgement @returns {Promise<import("./review_panel.js").Review>} */
  confirm(judgement) {
    return this.#change("POST", this.url, JSON.stringify(judgement));
  }

  /** @param {object} draft @returns {Promise<{revision: number}>} */
  saveDraft(draft) {
    return this.#change("PUT", `${this.base}/draft`, JSON.stringify(draft));
  }

  /** Save a draft while the page goes: nobody waits for the answer. @param {object} draft */
  saveLast(draft) {
    this.#ask("PUT", `${this.base}/draft`, JSON.stringify(draft), true).catch((error) => console.warn(error));
  }

  async discardDraft() {
    await this.#change("DELETE", `${this.base}/draft`);
  }

  /** @param {import("./edit_mask.js").Packed} region @returns {Promise<import("./edit_regions.js").RegionFacts>} */
  saveRegion({ box, bits }) {
    return this.#change("POST", `${this.base}/marks?box=${box.join(",")}`, bits);
  }

  /** @returns {Promise<{present: string[], drafts: {name: string, at: string}[]}>} */
  others() {
    return this.#ask("GET", `${this.base}/others`);
  }

  /**
   * @param {string} method
   * @param {string} url
   * @param {string | Uint8Array} [body]
   */
  async #change(method, url, body) {
    // A token of an earlier session is refused, and the state has one of this session.
    if (this.#token === "") await this.state();
    try {
      return await this.#ask(method, url, body);
    } catch (error) {
      if (!(error instanceof RefusedError) || error.status !== 400) throw error;
      const before = this.#token;
      await this.state();
      if (this.#token === before) throw error;
      return this.#ask(method, url, body);
    }
  }

  /**
   * @param {string} method
   * @param {string} url
   * @param {string | Uint8Array} [body]
   * @param {boolean} [keepalive]  also when the page goes
   */
  async #ask(method, url, body, keepalive = false) {
    /** @type {Record<string, string>} */
    const headers = method === "GET" ? {} : { "X-CSRFToken": this.#token };
    if (body !== undefined) headers["Content-Type"] = typeof body === "string" ? "application/json" : "application/octet-stream";
    let response;
    let said;
    try {
      response = await fetch(url, { method, headers, keepalive, body: /** @type {BodyInit | undefined} */ (body) });
      if (response.status !== 204) said = await response.json();
    } catch (error) {
      console.warn(error);
      throw new RefusedError(0, NO_CONNECTION);
    }
    if (!response.ok) throw new RefusedError(response.status, said.error);
    return said;
  }
}

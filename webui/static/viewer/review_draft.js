/**
 * What a reader has judged and not yet confirmed. It is kept in this tab's session storage under the
 * row ids of the result and the account, so that a reload or a new sign-in loses nothing.
 *
 * @typedef {object} Judged
 * @property {number} seen  the version that the reader started from; 0 for none
 * @property {Record<string, boolean>} lesions  accepted or not, by number; those not judged are absent
 * @property {boolean | null} positive  the case; null while not decided
 * @property {string} reason  a code, "" for none
 * @property {string} reason_text
 * @property {string} comment
 */
const PREFIX = "review:";

/** @returns {Judged} */
function nothing() {
  return { seen: 0, lesions: {}, positive: null, reason: "", reason_text: "", comment: "" };
}

export class ReviewDraft {
  /** @type {Set<() => void>} */
  #listeners = new Set();
  /** @type {string} */
  #key;

  /**
   * @param {string} analysis  row id
   * @param {string} account  row id
   */
  constructor(analysis, account) {
    this.#key = `${PREFIX}${analysis}:${account}`;
    forgetOthers(account);
    const kept = sessionStorage.getItem(this.#key);
    /** @type {Judged} */
    this.judged = kept === null ? nothing() : JSON.parse(kept);
  }

  /** @param {() => void} listener */
  onChange(listener) {
    this.#listeners.add(listener);
  }

  /** Whether the reader has judged anything. */
  get begun() {
    const { lesions, positive, reason_text, comment } = this.judged;
    return positive !== null || Object.keys(lesions).length > 0 || reason_text !== "" || comment !== "";
  }

  /** @param {Partial<Judged>} changes */
  change(changes) {
    this.judged = { ...this.judged, ...changes };
    sessionStorage.setItem(this.#key, JSON.stringify(this.judged));
    for (const listener of this.#listeners) listener();
  }

  /**
   * Accept or reject a lesion; the same mark again takes it back.
   * @param {number} lesion
   * @param {boolean} accepted
   */
  mark(lesion, accepted) {
    const { [lesion]: before, ...others } = this.judged.lesions;
    this.change({ lesions: before === accepted ? others : { ...others, [lesion]: accepted } });
  }

  /** Accept the lesions that are not judged yet. @param {readonly number[]} lesions */
  acceptRest(lesions) {
    const accepted = Object.fromEntries(lesions.map((lesion) => [lesion, true]));
    this.change({ lesions: { ...accepted, ...this.judged.lesions } });
  }

  forget() {
    sessionStorage.removeItem(this.#key);
    this.judged = nothing();
    for (const listener of this.#listeners) listener();
  }
}

/** Another person's marks are none of this one's business. @param {string} account */
function forgetOthers(account) {
  for (const key of Object.keys(sessionStorage)) {
    if (key.startsWith(PREFIX) && !key.endsWith(`:${account}`)) sessionStorage.removeItem(key);
  }
}

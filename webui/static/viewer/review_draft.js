/**
 * What a reader has judged and not yet confirmed. The server keeps it, a second after each change;
 * until it has, this tab's session storage does, outlines and all, under the row ids of the result
 * and the account: neither a sign-out, whoever signs in then, nor a lost connection loses anything.
 * Who closes the window before all is saved is asked whether they mean it.
 *
 * @typedef {import("./edit_regions.js").EditRegions} EditRegions
 * @typedef {import("./edit_regions.js").Mark} Mark
 * @typedef {import("./review_server.js").ReviewServer} ReviewServer
 *
 * @typedef {object} Judged
 * @property {number} seen  the version that the reader started from; 0 for none
 * @property {Record<string, boolean>} lesions  accepted or not, by number; those not judged are absent
 * @property {boolean | null} positive  the case; null while not decided
 * @property {string} reason  a code, "" for none
 * @property {string} reason_text
 * @property {string} comment
 * @property {Record<string, string[]>} signs  seen in a lesion, by its number
 * @property {Record<string, Mark>} marks  the outlines that the server has
 * @property {string} [window]  that saved it
 *
 * @typedef {object} Outline  one that the server does not have yet
 * @property {[number, number, number, number, number, number]} box  half-open x0, y0, z0, x1, y1, z1
 * @property {string} bits  base64
 * @property {boolean} grown
 *
 * @typedef {object} Kept  in the session storage
 * @property {Judged} judged
 * @property {number} revision
 * @property {string} window
 * @property {string | null} after
 * @property {Record<string, Outline>} outlines
 */
import { _ } from "../words.js";
import { RefusedError } from "./review_server.js";

const PREFIX = "review:";
const SAVE_AFTER_MS = 1000;
const TRY_AGAIN_MS = 5000;
const TOO_LARGE = _("The outlines are too large for this browser to keep: leave the page open until they are saved.");

/** @returns {Judged} */
function nothing() {
  return { seen: 0, lesions: {}, positive: null, reason: "", reason_text: "", comment: "", signs: {}, marks: {} };
}

export class ReviewDraft {
  /** @type {Set<() => void>} */
  #listeners = new Set();
  /** @type {string} */
  #key;
  #server;
  #regions;
  /** The revision that the server has; 0 for none. */
  #revision = 0;
  /** Tells what this window saved, though its answer was lost, from what another one did. */
  #window = crypto.getRandomValues(new Uint32Array(4)).join("-");
  /** This tab before it was loaded anew, whose last save may have been answered to nobody; a tab that was duplicated has the same. @type {string | null} */
  #after = null;
  /** Counts changes here, and up to which the server has them. */
  #changes = 0;
  #savedChanges = 0;
  #timer = 0;
  /** @type {Promise<void>} */
  #saving = Promise.resolve();

  /**
   * @param {string} analysis  row id
   * @param {string} account  row id
   * @param {ReviewServer} server
   * @param {EditRegions} regions
   */
  constructor(analysis, account, server, regions) {
    this.#key = `${PREFIX}${analysis}:${account}`;
    this.#server = server;
    this.#regions = regions;
    this.judged = nothing();
    /** Why it is not saved; null while all is well. @type {RefusedError | null} */
    this.problem = null;
    /** Whether another window of the reader saved another draft since. */
    this.overtaken = false;
  }

  /** @param {() => void} listener */
  onChange(listener) {
    this.#listeners.add(listener);
  }

  /** Whether the reader has judged anything. */
  get begun() {
    const { lesions, positive, reason_text, comment, signs } = this.judged;
    const judged = positive !== null || reason_text !== "" || comment !== "";
    return judged || [lesions, signs].some((by) => Object.keys(by).length > 0) || this.#regions.standing().length > 0;
  }

  /** Whether the server has all of it. */
  get saved() {
    return this.#changes === this.#savedChanges;
  }

  /**
   * Begin with what was kept: in this tab if it had more than the server, else by the server.
   * @param {{revision: number, judged: Judged} | null} served
   * @returns {Record<string, Outline>} outlines that only this tab has
   */
  begin(served) {
    const kept = this.keptHere();
    const revision = served?.revision ?? 0;
    if (kept === null) {
      this.adopt(served);
      return {};
    }
    this.judged = kept.judged;
    this.#after = kept.window;
    const ours = [kept.window, kept.after].includes(served?.judged.window ?? "");
    this.#revision = ours ? revision : kept.revision;
    this.#changes += 1;
    sessionStorage.setItem(this.#key, JSON.stringify({ ...kept, window: this.#window, after: this.#after, revision: this.#revision }));
    if (revision === this.#revision) this.#saveSoon();
    else this.overtaken = true;
    return kept.outlines;
  }

  /** What this tab has and the server may not have. @returns {Kept | null} */
  keptHere() {
    const text = sessionStorage.getItem(this.#key);
    return text === null ? null : JSON.parse(text);
  }

  /** Take what the server has in place of what is here. @param {{revision: number, judged: Judged} | null} served */
  adopt(served) {
    this.#settle(served?.revision ?? 0, served?.judged ?? nothing());
  }

  /** Let what is here replace what another window saved. @param {number} revision  that was seen */
  replaceSaved(revision) {
    this.overtaken = false;
    this.#revision = revision;
    this.change({});
  }

  /** @param {Partial<Judged>} changes */
  change(changes) {
    this.judged = { ...this.judged, ...changes };
    this.#changes += 1;
    this.#keepHere();
    if (!this.overtaken) this.#saveSoon();
    this.#tell();
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

  /**
   * Save what is not saved yet, and wait until it is.
   * @throws {RefusedError}
   */
  async flush() {
    clearTimeout(this.#timer);
    await this.#saving;
    if (this.saved) return;
    this.#saving = this.#save();
    await this.#saving;
    if (this.problem !== null) throw this.problem;
  }

  /** The page goes: send what one request can take; outlines that are not saved stay in this tab. */
  leave() {
    if (this.saved || this.overtaken) return;
    const judged = { ...this.judged, marks: this.#regions.marks(), window: this.#window };
    this.#server.saveLast({ revision: this.#revision, judged });
  }

  /** It was confirmed: the server has forgotten it. */
  confirmed() {
    this.#settle(0, nothing());
  }

  /** Forget it, here and on the server. */
  async forget() {
    clearTimeout(this.#timer);
    await this.#saving;
    await this.#server.discardDraft();
    this.#settle(0, nothing());
  }

  /** @type {(revision: number, judged: Judged) => void} */
  #settle(revision, judged) {
    clearTimeout(this.#timer);
    sessionStorage.removeItem(this.#key);
    this.judged = judged;
    this.#revision = revision;
    this.#savedChanges = this.#changes;
    this.problem = null;
    this.overtaken = false;
    this.#tell();
  }

  #saveSoon(afterMs = SAVE_AFTER_MS) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#saving = this.#saving.then(() => this.#save());
    }, afterMs);
  }

  async #save() {
    const changes = this.#changes;
    try {
      await this.#saveOutlines();
      const marks = this.#regions.marks();
      this.judged = { ...this.judged, marks, window: this.#window };
      this.#revision = await this.#send(this.judged);
      this.#savedChanges = changes;
      this.#after = null;
      this.problem = null;
      if (this.saved) sessionStorage.removeItem(this.#key);
      else this.#keepHere();
    } catch (error) {
      if (!(error instanceof RefusedError)) throw error;
      this.problem = error;
      this.overtaken = error.status === 409;
      if (this.overtaken) {
        // What the other window took out, the server has forgotten.
        this.#regions.sendAgain();
        this.#keepHere();
      } else {
        this.#saveSoon(TRY_AGAIN_MS);
      }
    }
    this.#tell();
  }

  /** @param {Judged} judged @returns {Promise<number>} its revision */
  async #send(judged) {
    try {
      return (await this.#server.saveDraft({ revision: this.#revision, judged })).revision;
    } catch (error) {
      if (!(error instanceof RefusedError) || error.status !== 409) throw error;
      const { draft } = await this.#server.state();
      if (draft === null || ![this.#window, this.#after].includes(draft.judged.window ?? "")) throw error;
      // The server has what this window saved before, only its answer was lost.
      return (await this.#server.saveDraft({ revision: draft.revision, judged })).revision;
    }
  }

  async #saveOutlines() {
    for (const [, region] of this.#regions.standing()) {
      if (region.facts !== null) continue;
      const packed = region.mask.packed();
      if (packed === null) continue;
      const { version } = region.mask;
      region.kept = await this.#server.saveRegion(packed);
      // Painted on meanwhile: these are measures of what it was.
      if (region.mask.version === version) region.facts = region.kept;
    }
  }

  #keepHere() {
    /** @type {Kept} */
    const kept = { judged: { ...this.judged, marks: this.#regions.marks() }, revision: this.#revision, window: this.#window, after: this.#after, outlines: {} };
    for (const [number, { mask, grown, facts }] of this.#regions.standing()) {
      const packed = facts === null ? mask.packed() : null;
      if (packed !== null) kept.outlines[number] = { box: packed.box, bits: toBase64(packed.bits), grown };
    }
    try {
      sessionStorage.setItem(this.#key, JSON.stringify(kept));
    } catch (error) {
      // What is there is older than what is shown: it must not come back in its place.
      console.warn(error);
      sessionStorage.removeItem(this.#key);
      this.problem = new RefusedError(0, TOO_LARGE);
    }
  }

  #tell() {
    for (const listener of this.#listeners) listener();
  }
}

/** @param {Uint8Array} bytes */
function toBase64(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

/** @param {string} base64 */
export function fromBase64(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

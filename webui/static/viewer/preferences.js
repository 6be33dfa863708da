/**
 * What the reader set for themselves, kept on the server for every computer they sit down at.
 *
 * @typedef {import("./windowing.js").Window} Window
 *
 * @typedef {object} Settings
 * @property {Window} [window]  the preset that was chosen last
 * @property {Window[]} [windows]  presets of their own
 * @property {boolean} [single]  one plane alone
 * @property {boolean} [fill]  lesions are filled
 * @property {number} [slab_mm]
 * @property {number} [cine_rate]
 * @property {string} [sort]  what the lesions are sorted by
 * @property {Record<string, string>} [keys]  of commands that have another key, by name
 */
import { send } from "../sending.js";

export class Preferences {
  #sending = false;
  #changed = false;

  /**
   * @param {string} url
   * @param {Settings} settings  as the page brought them
   */
  constructor(url, settings) {
    this.url = url;
    this.settings = settings;
  }

  /** @param {Settings} changes */
  set(changes) {
    const before = JSON.stringify(this.settings);
    this.settings = { ...this.settings, ...changes };
    if (JSON.stringify(this.settings) === before) return;
    this.#changed = true;
    this.#send();
  }

  /** One after the other, so that the last one stays. */
  async #send() {
    if (this.#sending) return;
    this.#sending = true;
    try {
      while (this.#changed) {
        this.#changed = false;
        await send(this.url, "PUT", this.url, this.settings);
      }
    } catch (error) {
      // They hold on this page; the next change sends all of them again.
      console.warn(error);
    }
    this.#sending = false;
  }
}

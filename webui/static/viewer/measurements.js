/**
 * One reader's measurements of one result: in memory, and on the server as soon as they are drawn.
 * What the server did not take stays in this tab's session storage and is sent again later.
 *
 * @typedef {import("./measuring.js").Shape} Shape
 * @typedef {import("./measuring.js").Values} Values
 * @typedef {import("./volume.js").Volume} Volume
 * @typedef {import("./state.js").ViewState} ViewState
 *
 * @typedef {Shape & {key: string, text: string, values: Values}} Measurement  `key`: its name on the
 *   server, chosen here, so that sending twice makes one
 */
import { send } from "../sending.js";
import { fetchJson } from "../live.js";
import { _ } from "../words.js";
import { valuesOf } from "./measuring.js";

const PREFIX = "measurements:";
const AGAIN_MS = 15_000;
const KEY_BYTES = 16;

export class Measurements {
  /** @type {Set<() => void>} */
  #listeners = new Set();
  /** Keys of those that are not on the server as they are here, or not gone there. @type {Set<string>} */
  #unsaved = new Set();
  /** Whether any is on its way to the server. */
  #sending = false;
  /** @type {string} */
  #storageKey;

  /**
   * @param {string} url  of this result's measurements
   * @param {Volume} volume
   * @param {ViewState} state
   * @param {string} account  row id
   */
  constructor(url, volume, state, account) {
    this.url = url;
    this.volume = volume;
    this.state = state;
    this.#storageKey = `${PREFIX}${url}:${account}`;
    /** @type {Measurement[]} */
    this.all = [];
    /** What is being drawn now. @type {Shape | null} */
    this.draft = null;
    /** The one that Delete removes. @type {Measurement | null} */
    this.chosen = null;
    /** Why some are not saved, for people. */
    this.problem = "";
    state.onChange((change) => {
      if (change === "arrived") this.#measureAnew();
    });
  }

  /** @param {() => void} listener */
  onChange(listener) {
    this.#listeners.add(listener);
  }

  #tell() {
    for (const listener of this.#listeners) listener();
    this.state.redraw();
  }

  /** Fetch those that were kept; those that were not saved last time come first. */
  async load() {
    const kept = JSON.parse(sessionStorage.getItem(this.#storageKey) ?? "[]");
    this.#take(kept);
    for (const { key } of kept) this.#unsaved.add(key);
    try {
      const { measurements } = /** @type {{measurements: Measurement[]}} */ (await fetchJson(this.url));
      this.#take(measurements);
    } catch (error) {
      console.warn(error);
      this.problem = _("Your earlier measurements could not be fetched. Reload the page to see them.");
      this.#tell();
      return;
    }
    this.#tell();
    await this.#save();
  }

  /** @param {Measurement[]} more */
  #take(more) {
    const known = new Set([...this.#unsaved, ...this.all.map(({ key }) => key)]);
    this.all.push(...more.filter(({ key }) => !known.has(key)));
    // What was not saved yet came first, but stays where it was in the list.
    const rank = new Map(more.map(({ key }, index) => [key, index]));
    const placeOf = (/** @type {Measurement} */ { key }) => rank.get(key) ?? more.length;
    this.all.sort((one, other) => placeOf(one) - placeOf(other));
  }

  /** @param {Shape | null} shape */
  drafting(shape) {
    this.draft = shape;
    this.state.redraw();
  }

  /** Keep what was drawn. @param {Shape} shape */
  add(shape) {
    /** @type {Measurement} */
    const measurement = { ...shape, key: newKey(), text: "", values: valuesOf(shape, this.volume) };
    this.draft = null;
    this.chosen = measurement;
    this.all.push(measurement);
    this.#changed(measurement);
  }

  /**
   * @param {Measurement} measurement
   * @param {string} text
   */
  describe(measurement, text) {
    if (measurement.text === text) return;
    measurement.text = text;
    this.#changed(measurement);
  }

  /** @param {Measurement | null} measurement */
  choose(measurement) {
    this.chosen = measurement;
    this.#tell();
  }

  /** @param {Measurement} measurement */
  remove(measurement) {
    this.all = this.all.filter((one) => one !== measurement);
    if (this.chosen === measurement) this.chosen = null;
    this.#changed(measurement);
  }

  removeChosen() {
    if (this.chosen !== null) this.remove(this.chosen);
  }

  /** @param {Measurement} measurement */
  #changed(measurement) {
    this.#unsaved.add(measurement.key);
    this.#store();
    this.#tell();
    this.#save();
  }

  #store() {
    const unsaved = this.all.filter(({ key }) => this.#unsaved.has(key));
    if (unsaved.length > 0) sessionStorage.setItem(this.#storageKey, JSON.stringify(unsaved));
    else sessionStorage.removeItem(this.#storageKey);
  }

  /** Tell the server what it does not know, one after the other, again and again until it does. */
  async #save() {
    if (this.#sending) return;
    this.#sending = true;
    try {
      for (const key of this.#unsaved) {
        this.#unsaved.delete(key); // a change while it is on its way puts it back
        try {
          await this.#sendOne(key);
        } catch (error) {
          this.#unsaved.add(key);
          throw error;
        }
      }
      this.problem = "";
    } catch (error) {
      console.warn(error);
      this.problem = _("Not saved yet. It is tried again by itself; keep this page open.");
      setTimeout(() => this.#save(), AGAIN_MS);
    }
    this.#sending = false;
    this.#store();
    this.#tell();
  }

  /** @param {string} key */
  async #sendOne(key) {
    const measurement = this.all.find((one) => one.key === key);
    if (measurement === undefined) {
      await send(`${this.url}/${key}`, "DELETE", this.url);
      return;
    }
    const { kind, plane, points, text, values } = measurement;
    await send(`${this.url}/${key}`, "PUT", this.url, { kind, plane, points, text, values });
  }

  /** Images arrived: what could not be measured before may be now. */
  #measureAnew() {
    for (const measurement of this.all) {
      if (Object.keys(measurement.values).length > 0 || measurement.kind === "arrow") continue;
      measurement.values = valuesOf(measurement, this.volume);
      if (Object.keys(measurement.values).length > 0) this.#changed(measurement);
    }
  }
}

function newKey() {
  // Not crypto.randomUUID, which plain HTTP does not have.
  return Array.from(crypto.getRandomValues(new Uint8Array(KEY_BYTES)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

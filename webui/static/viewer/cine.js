/**
 * Cine: the active plane scrolls by itself, round the end.
 */
import { clamp } from "./planes.js";

const FIRST_RATE = 15;
const SLOWEST = 2;
const FASTEST = 60;
const FASTER = 1.25;

export class Cine {
  /** @type {Set<() => void>} */
  #listeners = new Set();
  #frame = 0;
  /** When the last slice was due, on the page's clock. */
  #due = 0;

  /**
   * @param {() => void} step  shows the next slice
   * @param {number} [rate]  slices a second
   */
  constructor(step, rate = FIRST_RATE) {
    this.step = step;
    this.rate = rate;
  }

  /** Called when it was started or stopped, or its rate changed. @param {() => void} listener */
  onChange(listener) {
    this.#listeners.add(listener);
  }

  #tell() {
    for (const listener of this.#listeners) listener();
  }

  get running() {
    return this.#frame !== 0;
  }

  toggle() {
    if (this.running) this.stop();
    else {
      this.#due = performance.now();
      this.#schedule();
      this.#tell();
    }
  }

  stop() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#tell();
  }

  faster() {
    this.#setRate(this.rate * FASTER);
  }

  slower() {
    this.#setRate(this.rate / FASTER);
  }

  /** @param {number} rate */
  #setRate(rate) {
    this.rate = clamp(Math.round(rate), SLOWEST, FASTEST);
    this.#tell();
  }

  #schedule() {
    this.#frame = requestAnimationFrame((now) => {
      const period = 1000 / this.rate;
      if (now - this.#due >= period) {
        // A slow machine shows every slice later; it leaves none out.
        this.#due = Math.max(this.#due + period, now - period);
        this.step();
      }
      this.#schedule();
    });
  }
}

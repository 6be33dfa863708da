/**
 * Brings the volume in: first the one slice that shows the first lesion, then the other lesions'
 * slices, then slabs outward from wherever the reader is.
 *
 * @typedef {import("./manifest.js").Slab} Slab
 * @typedef {import("./slab_worker.js").SlabAnswer} SlabAnswer
 * @typedef {import("./slab_worker.js").SlabOrder} SlabOrder
 * @typedef {import("./volume.js").Volume} Volume
 */
import { fetchSlab } from "./slab.js";

/** Also where there are few cores: one fetches while the other decodes. */
const LEAST_WORKERS = 2;
const MOST_WORKERS = 3;

export class SlabLoader {
  /** @type {Slab[]} */
  #urgent;
  /** @type {Slab[]} */
  #waiting;
  /** @type {Worker[]} */
  #workers;

  /**
   * @param {Volume} volume
   * @param {object} slabs
   * @param {readonly Slab[]} slabs.urgent  loaded before all others, in this order
   * @param {readonly Slab[]} slabs.rest  loaded nearest first
   * @param {object} reader
   * @param {() => number} reader.position  the slice the reader is at
   * @param {(slab: Slab) => void} reader.arrived
   */
  constructor(volume, { urgent, rest }, { position, arrived }) {
    this.volume = volume;
    this.#urgent = [...urgent];
    this.#waiting = [...rest];
    this.position = position;
    this.arrived = arrived;
    const count = Math.max(LEAST_WORKERS, Math.min(MOST_WORKERS, navigator.hardwareConcurrency - 1));
    const address = new URL("slab_worker.js", import.meta.url);
    this.#workers = Array.from({ length: count }, () => new Worker(address, { type: "module" }));
  }

  /** Load the slab the reader waits for, here and not in a worker: it is there before one has started. */
  async loadFirst() {
    const slab = this.#next();
    if (slab === undefined) return;
    const { url, columns, rows } = this.#order(slab);
    this.#put(slab, await fetchSlab(url, columns, rows));
  }

  /**
   * Load all others.
   * @throws {Error} a slab did not come in spite of several tries
   */
  async loadRest() {
    await Promise.all(this.#workers.map((worker) => this.#drain(worker)));
  }

  /** @param {Worker} worker */
  async #drain(worker) {
    for (let slab = this.#next(); slab !== undefined; slab = this.#next()) {
      const answer = await ask(worker, this.#order(slab));
      if ("error" in answer) throw new Error(answer.error);
      this.#put(slab, answer.hu);
    }
    worker.terminate();
  }

  /** @returns {Slab | undefined} */
  #next() {
    const urgent = this.#urgent.shift();
    if (urgent !== undefined) return urgent;
    const z = this.position();
    const distance = (/** @type {Slab} */ { first, count }) => Math.max(first - z, z - (first + count - 1), 0);
    let nearest = 0;
    for (let i = 1; i < this.#waiting.length; i++) {
      if (distance(this.#waiting[i]) < distance(this.#waiting[nearest])) nearest = i;
    }
    return this.#waiting.splice(nearest, 1)[0];
  }

  /**
   * @param {Slab} slab
   * @returns {SlabOrder}
   */
  #order({ url, count }) {
    const [columns, lines] = this.volume.size;
    return { url, columns, rows: lines * count };
  }

  /** @type {(slab: Slab, hu: Int16Array) => void} */
  #put(slab, hu) {
    this.volume.put(slab.first, slab.count, hu);
    this.arrived(slab);
  }
}

/**
 * @param {Worker} worker
 * @param {SlabOrder} order
 * @returns {Promise<SlabAnswer>}
 */
function ask(worker, order) {
  return new Promise((resolve) => {
    worker.onmessage = (/** @type {MessageEvent<SlabAnswer>} */ { data }) => resolve(data);
    worker.onerror = (event) => resolve({ error: event.message || "the decoder did not start" });
    worker.postMessage(order);
  });
}

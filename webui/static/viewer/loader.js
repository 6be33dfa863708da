/**
 * Brings the volume in: first the one slice that shows the first lesion, then the other lesions'
 * slices, then slabs outward from wherever the reader is.
 *
 * @typedef {import("./manifest.js").Slab} Slab
 * @typedef {import("./slab_worker.js").SlabAnswer} SlabAnswer
 * @typedef {import("./volume.js").Volume} Volume
 */

const MOST_WORKERS = 3;
const TRIES = 3;
const RETRY_AFTER_MS = 500;

export class SlabLoader {
  /** @type {Slab[]} */
  #urgent;
  /** @type {Slab[]} */
  #waiting;

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
  }

  /**
   * Load everything.
   * @throws {Error} a slab did not come in spite of several tries
   */
  async load() {
    const count = Math.max(1, Math.min(MOST_WORKERS, navigator.hardwareConcurrency - 1));
    await Promise.all(Array.from({ length: count }, () => this.#drain()));
  }

  async #drain() {
    const worker = new Worker(new URL("slab_worker.js", import.meta.url), { type: "module" });
    try {
      for (let slab = this.#next(); slab !== undefined; slab = this.#next()) {
        this.volume.put(slab.first, slab.count, await this.#fetch(worker, slab));
        this.arrived(slab);
      }
    } finally {
      worker.terminate();
    }
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
   * @param {Worker} worker
   * @param {Slab} slab
   */
  async #fetch(worker, slab) {
    const [columns, lines] = this.volume.size;
    const order = { url: slab.url, columns, rows: lines * slab.count };
    for (let attempt = 1; ; attempt++) {
      const answer = await ask(worker, order);
      if ("hu" in answer) return answer.hu;
      if (attempt === TRIES) throw new Error(`slices ${slab.first}+${slab.count}: ${answer.error}`);
      await new Promise((resolve) => setTimeout(resolve, RETRY_AFTER_MS * attempt));
    }
  }
}

/**
 * @param {Worker} worker
 * @param {import("./slab_worker.js").SlabOrder} order
 * @returns {Promise<SlabAnswer>}
 */
function ask(worker, order) {
  return new Promise((resolve) => {
    worker.onmessage = (/** @type {MessageEvent<SlabAnswer>} */ { data }) => resolve(data);
    worker.onerror = (event) => resolve({ error: event.message || "the decoder did not start" });
    worker.postMessage(order);
  });
}

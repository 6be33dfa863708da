/**
 * A web worker that fetches and decodes one slab at a time; the browser undoes zstd or gzip itself.
 *
 * @typedef {object} SlabOrder
 * @property {string} url
 * @property {number} columns
 * @property {number} rows
 *
 * @typedef {{hu: Int16Array} | {error: string}} SlabAnswer
 */
import { decodeSlab } from "./slab_codec.js";

addEventListener("message", async (/** @type {MessageEvent<SlabOrder>} */ { data }) => {
  try {
    const response = await fetch(data.url);
    if (!response.ok) throw new Error(`status ${response.status}`);
    const hu = decodeSlab(new Uint8Array(await response.arrayBuffer()), data.columns, data.rows);
    postMessage({ hu }, { transfer: [hu.buffer] });
  } catch (error) {
    postMessage({ error: String(error) });
  }
});

/**
 * A web worker that fetches and decodes one slab after another, so that the page never stutters.
 *
 * @typedef {object} SlabOrder
 * @property {string} url
 * @property {number} columns
 * @property {number} rows
 *
 * @typedef {{hu: Int16Array} | {error: string}} SlabAnswer
 */
import { fetchSlab } from "./slab.js";

addEventListener("message", async (/** @type {MessageEvent<SlabOrder>} */ { data }) => {
  try {
    const hu = await fetchSlab(data.url, data.columns, data.rows);
    postMessage({ hu }, { transfer: [hu.buffer] });
  } catch (error) {
    postMessage({ error: String(error) });
  }
});

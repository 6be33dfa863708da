/**
 * Windows: which HU are shown from black to white (PS3.3 C.11.2.1.2).
 *
 * @typedef {object} Window
 * @property {number} width  HU from black to white
 * @property {number} centre  HU shown as middle grey
 *
 * @typedef {Window & {name: string}} Preset
 */
import { _ } from "../words.js";

/** Chosen by the keys 1 to 4, in this order. @type {readonly Preset[]} */
export const PRESETS = Object.freeze([
  { name: _("Lung"), width: 1500, centre: -600 },
  { name: _("Soft tissue"), width: 400, centre: 40 },
  { name: _("Bone"), width: 2500, centre: 480 },
  { name: _("Wide"), width: 2000, centre: 0 },
]);

/** An opaque black pixel as putImageData wants it on a little-endian machine (A B G R). */
export const BLACK = 0xff000000;

const HU_VALUES = 65536;

/** Colours of every int16 HU: `table[hu & 0xffff]` is the pixel. */
export class LookUpTable {
  constructor() {
    this.table = new Uint32Array(HU_VALUES);
  }

  /** @param {Window} window */
  show({ width, centre }) {
    const lowest = centre - width / 2;
    for (let i = 0; i < HU_VALUES; i++) {
      const hu = (i << 16) >> 16;
      const shade = ((hu - lowest) / width) * 255;
      const grey = shade <= 0 ? 0 : shade >= 255 ? 255 : shade | 0;
      this.table[i] = BLACK | (grey << 16) | (grey << 8) | grey;
    }
  }
}

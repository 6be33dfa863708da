/**
 * The lesions that a person outlines: their voxels, what is undone and redone, and what the server
 * measured of them. A number that the analysis has is another outline of that lesion, a higher one a
 * lesion that it missed.
 *
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./planes.js").Triple} Triple
 * @typedef {import("./masks.js").LesionMask} LesionMask
 * @typedef {import("./edit_mask.js").Packed} Packed
 *
 * @typedef {object} RegionFacts  what the server says of a region
 * @property {string} digest
 * @property {string} by  who outlined it
 * @property {"left" | "right" | "both"} side
 * @property {number} volume_ml
 * @property {number} diameter_mm
 * @property {number} mean_hu
 * @property {Triple} first  lowest voxel of its box
 * @property {Triple} last  highest voxel of its box, inclusive
 * @property {Triple} look_at
 * @property {string} mask_url
 *
 * @typedef {{digest: string, grown: boolean}} Mark
 *
 * @typedef {object} Region
 * @property {EditMask} mask
 * @property {boolean} grown  a computer spread it from a seed
 * @property {RegionFacts | null} facts  null until the server has measured it as it is now
 * @property {RegionFacts | null} kept  as the server has it, perhaps without the last strokes
 *
 * @typedef {{number: number, mask: LesionMask, grown: boolean, facts: RegionFacts | null}} Kept  an outline that was kept
 *
 * @typedef {object} Step  one stroke: what it put in or took out
 * @property {number} number
 * @property {boolean} first  before it the person had not outlined this lesion
 * @property {boolean} inside  put in
 * @property {number[]} voxels
 * @property {[boolean, boolean]} grown  before and after
 * @property {boolean | undefined} judged  whether the lesion was accepted before it
 */
import { distanceTo, EditMask } from "./edit_mask.js";

export class EditRegions {
  /** @type {Map<number, LesionMask>} */
  #machine = new Map();
  /** @type {Step[]} */
  #done = [];
  /** @type {Step[]} */
  #undone = [];
  /** The lesion of the stroke under way. @type {number | null} */
  #painted = null;
  /** @type {Set<(number: number, judged: boolean | undefined) => void>} */
  #listeners = new Set();

  /**
   * @param {Triple} size  voxels of the volume
   * @param {readonly number[]} lesions  of the analysis
   */
  constructor(size, lesions) {
    this.size = size;
    this.lesions = lesions;
    /** By lesion, those without a voxel left among them. @type {Map<number, Region>} */
    this.regions = new Map();
    /** Numbers that other versions of the review gave away. @type {Set<number>} */
    this.taken = new Set();
    /** Lesions of the analysis that the reader accepted or not; those rejected keep no voxel from another. @type {Record<number, boolean>} */
    this.judged = {};
  }

  /**
   * Called with the lesion whose outline was changed by the person, at the end of a stroke, and with what that makes of the judgement:
   * who outlines a lesion takes it for one, who erases all of it does not, who undoes that did neither.
   * @param {(number: number, judged: boolean | undefined) => void} listener
   */
  onChange(listener) {
    this.#listeners.add(listener);
  }

  /** A lesion's mask as the network marked it. @param {LesionMask} mask */
  addMachine(mask) {
    this.#machine.set(mask.lesion, mask);
  }

  /** Whether all masks of the analysis are here: before, a stroke could take voxels of a lesion. */
  get complete() {
    return this.lesions.every((number) => this.#machine.has(number));
  }

  /** @param {number} number */
  isAdded(number) {
    return !this.lesions.includes(number);
  }

  /** The outlined lesions that have a voxel, by ascending number. @returns {[number, Region][]} */
  standing() {
    return [...this.regions].filter(([, { mask }]) => mask.count > 0).sort(([a], [b]) => a - b);
  }

  /** The number of the next lesion that is added. */
  nextNumber() {
    return Math.max(0, ...this.lesions, ...this.taken, ...this.regions.keys()) + 1;
  }

  /** How far a voxel is from a lesion's box along each axis; null if there is no such lesion. @param {number} number @param {Triple} voxel */
  distance(number, voxel) {
    const box = this.regions.get(number)?.mask ?? this.#machine.get(number);
    return box === undefined ? null : distanceTo(box, voxel);
  }

  /** The lesion that a voxel belongs to, other than `except`; null for none. @param {number} voxel @param {number} except @returns {number | null} */
  ownerOf(voxel, except) {
    const [nx, ny] = this.size;
    const [x, y, z] = [voxel % nx, Math.floor(voxel / nx) % ny, Math.floor(voxel / (nx * ny))];
    for (const [number, { mask }] of this.regions) if (number !== except && mask.has(voxel)) return number;
    for (const [number, mask] of this.#machine) {
      if (number === except || this.regions.has(number) || this.judged[number] === false) continue;
      if (mask.holds(x, y, z)) return number;
    }
    return null;
  }

  /**
   * Put voxels into a lesion's outline that are no other lesion's, or take them out.
   * @param {number} number
   * @param {readonly number[]} voxels
   * @param {boolean} inside
   * @param {{grown?: boolean, joined?: boolean}} [how]  `joined`: it goes on with the stroke before
   * It is told to nobody before `endStroke`.
   */
  paint(number, voxels, inside, { grown = false, joined = false } = {}) {
    const first = !this.regions.has(number);
    if (first && !inside && !this.#machine.has(number)) return;
    const region = this.#begin(number);
    const free = inside ? voxels.filter((voxel) => this.ownerOf(voxel, number) === null) : voxels;
    const changed = region.mask.change(free, inside);
    const before = region.grown;
    region.grown ||= grown;
    if (changed.length === 0) {
      if (first) this.regions.delete(number);
      return;
    }
    const last = this.#done.at(-1);
    if (joined && last !== undefined && last.number === number && last.inside === inside) {
      for (const voxel of changed) last.voxels.push(voxel);
    } else {
      this.#done.push({ number, first, inside, voxels: changed, grown: [before, region.grown], judged: this.judged[number] });
    }
    this.#undone = [];
    region.facts = null;
    this.#painted = number;
  }

  /** Tell what a stroke changed. */
  endStroke() {
    const number = this.#painted;
    this.#painted = null;
    if (number !== null) this.#tell(number, this.#outlined(number));
  }

  /** Take out all that an outline has. @param {number} number */
  eraseAll(number) {
    const region = this.regions.get(number);
    if (region === undefined) return;
    const { inside } = region.mask;
    const voxels = [];
    const [ex, ey] = region.mask.extent;
    const [ox, oy, oz] = region.mask.origin;
    for (let p = 0; p < inside.length; p++) {
      if (inside[p] === 0) continue;
      const [x, y, z] = [p % ex, Math.floor(p / ex) % ey, Math.floor(p / (ex * ey))];
      voxels.push(((z + oz) * this.size[1] + y + oy) * this.size[0] + x + ox);
    }
    this.paint(number, voxels, false);
    this.endStroke();
  }

  get canUndo() {
    return this.#done.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  /** @returns {number | null} the lesion that was changed */
  undo() {
    const step = this.#done.pop();
    if (step === undefined) return null;
    const region = /** @type {Region} */ (this.regions.get(step.number));
    // What was judged after the stroke stays.
    const now = this.judged[step.number];
    const judged = now === this.#outlined(step.number) ? step.judged : now;
    region.mask.change(step.voxels, !step.inside);
    region.grown = step.grown[0];
    region.facts = null;
    if (step.first) this.regions.delete(step.number);
    this.#undone.push(step);
    this.#tell(step.number, judged);
    return step.number;
  }

  /** @returns {number | null} the lesion that was changed */
  redo() {
    const step = this.#undone.pop();
    if (step === undefined) return null;
    const region = this.#begin(step.number);
    region.mask.change(step.voxels, step.inside);
    region.grown = step.grown[1];
    region.facts = null;
    this.#done.push(step);
    this.#tell(step.number, this.#outlined(step.number));
    return step.number;
  }

  /**
   * Take over what was kept, in place of all that is here.
   * @param {readonly Kept[]} kept
   */
  take(kept) {
    this.regions = new Map();
    this.add(kept);
    this.#done = [];
    this.#undone = [];
  }

  /** Show beside what is here what another version has. @param {readonly Kept[]} kept */
  add(kept) {
    for (const { number, mask, grown, facts } of kept) this.regions.set(number, { mask: EditMask.of(this.size, mask), grown, facts, kept: facts });
  }

  /**
   * Give added lesions other numbers, for somebody else gave theirs away.
   * @param {readonly number[]} numbers
   * @returns {Map<number, number>} the new ones by the old
   */
  renumber(numbers) {
    const moved = new Map();
    for (const number of numbers) {
      const region = this.regions.get(number);
      if (region === undefined) continue;
      const fresh = this.nextNumber();
      this.regions.delete(number);
      this.regions.set(fresh, region);
      moved.set(number, fresh);
    }
    this.#done = [];
    this.#undone = [];
    return moved;
  }

  /** The server may have forgotten outlines that it had: they are all sent again. */
  sendAgain() {
    for (const region of this.regions.values()) region.facts = null;
  }

  /** What the server has of each outline that stands. @returns {Record<string, Mark>} */
  marks() {
    return Object.fromEntries(
      this.standing().flatMap(([number, { kept, grown }]) => (kept === null ? [] : [[String(number), { digest: kept.digest, grown }]])),
    );
  }

  /** @param {number} number */
  #begin(number) {
    const known = this.regions.get(number);
    if (known !== undefined) return known;
    const machine = this.#machine.get(number);
    const mask = machine === undefined ? new EditMask(this.size) : EditMask.of(this.size, machine);
    /** @type {Region} */
    const made = { mask, grown: false, facts: null, kept: null };
    this.regions.set(number, made);
    return made;
  }

  /** Whether an outline has a voxel left. @param {number} number */
  #outlined(number) {
    return (this.regions.get(number)?.mask.count ?? 0) > 0;
  }

  /** @param {number} number @param {boolean | undefined} judged */
  #tell(number, judged) {
    for (const listener of this.#listeners) listener(number, judged);
  }
}

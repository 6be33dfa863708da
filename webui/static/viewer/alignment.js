/**
 * Where one study lies in another of the same patient. Two scans share no coordinates: the table, the
 * field and the breath differ. The lungs are what both have. Along each axis the ends of the lungs'
 * box lie on one another, what is between in proportion; beyond them a millimetre is a millimetre.
 * Without lungs in either study the middles of the volumes lie on one another.
 *
 * @typedef {import("./planes.js").Triple} Triple
 *
 * @typedef {object} Placed
 * @property {Triple} size
 * @property {Triple} spacing_mm
 * @property {{first: Triple, last: Triple} | null} lungs
 */

/**
 * The voxel of `to` at the level of a voxel of `from`, in fractions.
 * @param {Triple} voxel
 * @param {Placed} from
 * @param {Placed} to
 * @returns {Triple}
 */
export function aligned(voxel, from, to) {
  const both = from.lungs !== null && to.lungs !== null;
  const along = (/** @type {0 | 1 | 2} */ axis) => {
    const [low, high] = ends(from, axis, both);
    const [otherLow, otherHigh] = ends(to, axis, both);
    const mm = voxel[axis] * from.spacing_mm[axis];
    let there = otherLow + (mm - low);
    if (mm > high) there = otherHigh + (mm - high);
    else if (mm > low) there = otherLow + ((mm - low) / (high - low)) * (otherHigh - otherLow);
    return there / to.spacing_mm[axis];
  };
  return [along(0), along(1), along(2)];
}

/**
 * The ends of the lungs, or twice the middle of the volume, in mm from its first voxel.
 * @param {Placed} study
 * @param {0 | 1 | 2} axis
 * @param {boolean} byLungs
 * @returns {[number, number]}
 */
function ends({ size, spacing_mm, lungs }, axis, byLungs) {
  if (byLungs && lungs !== null) return [lungs.first[axis] * spacing_mm[axis], lungs.last[axis] * spacing_mm[axis]];
  const middle = ((size[axis] - 1) / 2) * spacing_mm[axis];
  return [middle, middle];
}

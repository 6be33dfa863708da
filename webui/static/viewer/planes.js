/**
 * The three display planes of a canonical volume, and how an index travels to the screen and back.
 *
 * The server stores every volume in one orientation: x towards the patient's left, y towards the
 * back, z towards the head (DICOM's LPS, PS3.3 C.7.6.2). Display is radiological: the patient's
 * right is on the viewer's left, the head is up.
 *
 * @typedef {0 | 1 | 2} Axis  index into [x, y, z]
 * @typedef {[number, number, number]} Triple  one number per axis, in the order x, y, z
 *
 * @typedef {object} Plane
 * @property {"axial" | "coronal" | "sagittal"} name
 * @property {string} title
 * @property {Axis} across    the axis that runs to the right on the screen
 * @property {Axis} down      the axis along the screen's height
 * @property {boolean} upward  the down axis grows towards the top of the screen
 * @property {Axis} through   the axis that scrolling travels along
 * @property {boolean} fromEnd  slice 1 has the highest index (the head comes first)
 * @property {{left: string, right: string, top: string, bottom: string}} sides
 */
import { _ } from "../words.js";

/** @type {readonly Plane[]} */
export const PLANES = Object.freeze([
  {
    name: "axial", title: _("Axial"), across: 0, down: 1, upward: false, through: 2, fromEnd: true,
    sides: { left: "R", right: "L", top: "A", bottom: "P" },
  },
  {
    name: "coronal", title: _("Coronal"), across: 0, down: 2, upward: true, through: 1, fromEnd: false,
    sides: { left: "R", right: "L", top: "S", bottom: "I" },
  },
  {
    name: "sagittal", title: _("Sagittal"), across: 1, down: 2, upward: true, through: 0, fromEnd: false,
    sides: { left: "A", right: "P", top: "S", bottom: "I" },
  },
]);

/**
 * The number a reader sees for a slice index: 1 is the first slice of the plane.
 * @param {Plane} plane
 * @param {Triple} size
 * @param {number} index
 */
export function sliceNumber(plane, size, index) {
  return plane.fromEnd ? size[plane.through] - index : index + 1;
}

/**
 * The slice index `steps` further on in reading order, held inside the volume.
 * @param {Plane} plane
 * @param {Triple} size
 * @param {number} index
 * @param {number} steps
 */
export function sliceAfter(plane, size, index, steps) {
  return clamp(index + (plane.fromEnd ? -steps : steps), 0, size[plane.through] - 1);
}

/**
 * The row on the screen (0 at the top) that shows an index of the plane's down axis; its own inverse.
 * @param {Plane} plane
 * @param {Triple} size
 * @param {number} index
 */
export function rowOf(plane, size, index) {
  return plane.upward ? size[plane.down] - 1 - index : index;
}

/**
 * The voxel that a place lies in.
 * @param {Triple} place
 * @returns {Triple}
 */
export function nearestVoxel([x, y, z]) {
  return [Math.round(x), Math.round(y), Math.round(z)];
}

/**
 * @param {number} value
 * @param {number} lowest
 * @param {number} highest
 */
export function clamp(value, lowest, highest) {
  return Math.max(lowest, Math.min(highest, value));
}

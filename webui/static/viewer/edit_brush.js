/**
 * A round brush on one slice of a plane, true to mm; and the region that grows from a seed.
 *
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./planes.js").Triple} Triple
 * @typedef {import("./volume.js").Volume} Volume
 */
import { clamp, nearestVoxel } from "./planes.js";

/**
 * The voxels whose centres lie under a stroke of the brush from one place to another.
 * @param {{size: Triple, spacingMm: Triple}} volume
 * @param {Plane} plane
 * @param {Triple} from
 * @param {Triple} to  on the same slice
 * @param {number} diameterMm
 * @returns {number[]}
 */
export function stroke({ size, spacingMm }, plane, from, to, diameterMm) {
  const { across, down, through } = plane;
  const radius = diameterMm / 2;
  const index = clamp(Math.round(to[through]), 0, size[through] - 1);
  const strides = [1, size[0], size[0] * size[1]];
  const [dx, dy] = [(to[across] - from[across]) * spacingMm[across], (to[down] - from[down]) * spacingMm[down]];
  const length2 = dx * dx + dy * dy;
  const reach = (/** @type {0 | 1 | 2} */ axis) => [
    clamp(Math.floor(Math.min(from[axis], to[axis]) - radius / spacingMm[axis]), 0, size[axis] - 1),
    clamp(Math.ceil(Math.max(from[axis], to[axis]) + radius / spacingMm[axis]), 0, size[axis] - 1),
  ];
  const [[i0, i1], [j0, j1]] = [reach(across), reach(down)];
  const voxels = [];
  for (let j = j0; j <= j1; j++) {
    for (let i = i0; i <= i1; i++) {
      const [px, py] = [(i - from[across]) * spacingMm[across], (j - from[down]) * spacingMm[down]];
      // The nearest place of the stroke's line, from 0 at its start to 1 at its end.
      const along = length2 === 0 ? 0 : clamp((px * dx + py * dy) / length2, 0, 1);
      if ((px - along * dx) ** 2 + (py - along * dy) ** 2 > radius * radius) continue;
      voxels.push(i * strides[across] + j * strides[down] + index * strides[through]);
    }
  }
  // A brush smaller than a voxel still paints the one that it is in.
  if (voxels.length === 0) {
    const [x, y, z] = nearestVoxel(to);
    if (x >= 0 && x < size[0] && y >= 0 && y < size[1] && z >= 0 && z < size[2]) voxels.push((z * size[1] + y) * size[0] + x);
  }
  return voxels;
}

/**
 * The voxels that hang together with a seed by faces and differ little from it: 3 × 3 voxels of its
 * axial slice say how dense it is, so that noise in one of them decides nothing.
 * @param {Volume} volume
 * @param {Triple} seed
 * @param {object} limits
 * @param {number} limits.toleranceHu
 * @param {number} limits.radiusMm
 * @param {(voxel: number) => boolean} limits.allowed  in the lungs, and no other lesion's
 * @returns {number[]} none if the seed is not allowed or too unlike its surroundings
 */
export function grow({ hu, size, spacingMm }, seed, { toleranceHu, radiusMm, allowed }) {
  const [nx, ny] = size;
  const low = seed.map((at, axis) => Math.max(0, Math.ceil(at - radiusMm / spacingMm[axis])));
  const high = seed.map((at, axis) => Math.min(size[axis] - 1, Math.floor(at + radiusMm / spacingMm[axis])));
  const [ex, ey, ez] = high.map((last, axis) => last - low[axis] + 1);
  const seen = new Uint8Array(ex * ey * ez);
  const waiting = new Int32Array(ex * ey * ez);
  const level = levelAround(hu, size, seed);
  const found = [];
  let count = 0;
  const look = (/** @type {number} */ p) => {
    if (!seen[p]) waiting[count++] = p;
    seen[p] = 1;
  };
  look(((seed[2] - low[2]) * ey + seed[1] - low[1]) * ex + seed[0] - low[0]);
  while (count > 0) {
    const p = waiting[--count];
    const i = p % ex;
    const j = Math.floor(p / ex) % ey;
    const k = Math.floor(p / (ex * ey));
    const voxel = ((k + low[2]) * ny + j + low[1]) * nx + i + low[0];
    const [dx, dy, dz] = [(i + low[0] - seed[0]) * spacingMm[0], (j + low[1] - seed[1]) * spacingMm[1], (k + low[2] - seed[2]) * spacingMm[2]];
    if (dx * dx + dy * dy + dz * dz > radiusMm * radiusMm || Math.abs(hu[voxel] - level) > toleranceHu || !allowed(voxel)) continue;
    found.push(voxel);
    if (i > 0) look(p - 1);
    if (i < ex - 1) look(p + 1);
    if (j > 0) look(p - ex);
    if (j < ey - 1) look(p + ex);
    if (k > 0) look(p - ex * ey);
    if (k < ez - 1) look(p + ex * ey);
  }
  return found;
}

/**
 * @param {Int16Array} hu
 * @param {Triple} size
 * @param {Triple} seed
 */
function levelAround(hu, [nx, ny], [x, y, z]) {
  let sum = 0;
  let count = 0;
  for (let j = Math.max(0, y - 1); j <= Math.min(ny - 1, y + 1); j++) {
    for (let i = Math.max(0, x - 1); i <= Math.min(nx - 1, x + 1); i++, count++) sum += hu[(z * ny + j) * nx + i];
  }
  return sum / count;
}

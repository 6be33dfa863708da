/**
 * The CT volume in memory: HU values that arrive slab by slab.
 *
 * @typedef {import("./planes.js").Triple} Triple
 */

export class Volume {
  /**
   * @param {Triple} size  voxels along x, y, z
   * @param {Triple} spacingMm  distance between voxel centres along x, y, z
   */
  constructor(size, spacingMm) {
    this.size = size;
    this.spacingMm = spacingMm;
    /** HU, x fastest, then y, then z. */
    this.hu = new Int16Array(size[0] * size[1] * size[2]);
    /** 1 for each z whose slice has arrived. */
    this.arrived = new Uint8Array(size[2]);
    this.arrivedCount = 0;
  }

  /**
   * Take the slices `first`, `first` + 1, … of one decoded slab.
   * @param {number} first
   * @param {number} count
   * @param {Int16Array} hu
   */
  put(first, count, hu) {
    this.hu.set(hu, first * this.size[0] * this.size[1]);
    for (let z = first; z < first + count; z++) {
      this.arrivedCount += 1 - this.arrived[z];
      this.arrived[z] = 1;
    }
  }

  /**
   * The HU at a voxel, or null outside the volume and where the slice has not arrived.
   * @param {Triple} voxel
   * @returns {number | null}
   */
  huAt([x, y, z]) {
    const [nx, ny] = this.size;
    return this.holds([x, y, z]) && this.arrived[z] ? this.hu[(z * ny + y) * nx + x] : null;
  }

  /** Whether a voxel lies in the volume. @param {Triple} voxel */
  holds(voxel) {
    return voxel.every((at, axis) => at >= 0 && at < this.size[axis]);
  }
}

/**
 * What measurements measure: lengths in mm by the volume's spacing, HU of the voxels themselves.
 * Always of one slice, also where a thick slab is shown over it.
 *
 * @typedef {import("./planes.js").Plane} Plane
 * @typedef {import("./planes.js").Triple} Triple
 * @typedef {import("./volume.js").Volume} Volume
 *
 * @typedef {"distance" | "angle" | "ellipse" | "probe" | "arrow"} Kind
 *
 * @typedef {object} Shape
 * @property {Kind} kind
 * @property {Plane["name"]} plane
 * @property {readonly Triple[]} points  voxels in fractions, a voxel's centre at whole numbers
 *
 * @typedef {Record<string, number>} Values  by name and unit; none while the images are on their way
 */
import { _ } from "../words.js";
import { clamp, nearestVoxel, PLANES } from "./planes.js";

/** How many points make each kind. @type {Readonly<Record<Kind, number>>} */
export const POINTS_OF = Object.freeze({ distance: 2, angle: 3, ellipse: 2, probe: 1, arrow: 2 });

/**
 * @param {Triple} from
 * @param {Triple} to
 * @param {Triple} spacingMm
 */
export function lengthMm(from, to, spacingMm) {
  return Math.hypot(...from.map((at, axis) => (to[axis] - at) * spacingMm[axis]));
}

/**
 * The angle at the middle one of three points.
 * @param {readonly Triple[]} points
 * @param {Triple} spacingMm
 */
export function angleDegrees([from, corner, to], spacingMm) {
  const arm = (/** @type {Triple} */ end) => end.map((at, axis) => (at - corner[axis]) * spacingMm[axis]);
  const [one, other] = [arm(from), arm(to)];
  const product = one.reduce((sum, length, axis) => sum + length * other[axis], 0);
  const lengths = Math.hypot(...one) * Math.hypot(...other);
  return lengths === 0 ? 0 : (Math.acos(clamp(product / lengths, -1, 1)) * 180) / Math.PI;
}

/**
 * HU of the voxels whose centres lie in an ellipse, given by two corners of its box.
 * @param {Volume} volume
 * @param {Plane} plane
 * @param {readonly Triple[]} corners
 * @returns {Values}
 */
function ellipseValues(volume, plane, [one, other]) {
  const { across, down } = plane;
  const middle = one.map((at, axis) => (at + other[axis]) / 2);
  const radius = one.map((at, axis) => Math.abs(at - other[axis]) / 2);
  const area_mm2 = Math.PI * radius[across] * volume.spacingMm[across] * radius[down] * volume.spacingMm[down];
  const voxel = nearestVoxel(one);
  let [count, sum, squares, min_hu, max_hu] = [0, 0, 0, Infinity, -Infinity];
  for (let v = Math.ceil(middle[down] - radius[down]); v <= middle[down] + radius[down]; v++) {
    for (let u = Math.ceil(middle[across] - radius[across]); u <= middle[across] + radius[across]; u++) {
      if (((u - middle[across]) / radius[across]) ** 2 + ((v - middle[down]) / radius[down]) ** 2 > 1) continue;
      voxel[across] = u;
      voxel[down] = v;
      const hu = volume.huAt(voxel);
      if (hu === null) {
        if (volume.holds(voxel)) return {}; // on its way
        continue;
      }
      count++;
      sum += hu;
      squares += hu * hu;
      min_hu = Math.min(min_hu, hu);
      max_hu = Math.max(max_hu, hu);
    }
  }
  if (count === 0) return { area_mm2 };
  const mean_hu = sum / count;
  const sd_hu = Math.sqrt(Math.max(0, squares / count - mean_hu * mean_hu));
  return { area_mm2, mean_hu, sd_hu, min_hu, max_hu };
}

/**
 * @param {Shape} shape  all its points
 * @param {Volume} volume
 * @returns {Values}
 */
export function valuesOf({ kind, plane, points }, volume) {
  switch (kind) {
    case "distance":
      return { length_mm: lengthMm(points[0], points[1], volume.spacingMm) };
    case "angle":
      return { angle_deg: angleDegrees(points, volume.spacingMm) };
    case "ellipse":
      return ellipseValues(volume, planeNamed(plane), points);
    case "probe": {
      const hu = volume.huAt(nearestVoxel(points[0]));
      return hu === null ? {} : { hu };
    }
    case "arrow":
      return {};
  }
}

/**
 * The values for people, a line each.
 * @param {Kind} kind
 * @param {Values} values
 */
export function linesOf(kind, { length_mm, angle_deg, hu, area_mm2, mean_hu, sd_hu, min_hu, max_hu }) {
  switch (kind) {
    case "distance":
      return [`${length_mm.toFixed(1)} mm`];
    case "angle":
      return [`${angle_deg.toFixed(1)}°`];
    case "probe":
      return [hu === undefined ? _("no image here") : `${hu} HU`];
    case "ellipse": {
      if (area_mm2 === undefined) return [_("loading")];
      const area = `${area_mm2.toFixed(1)} mm²`;
      if (mean_hu === undefined) return [area];
      return [
        _("mean %(mean)s HU, SD %(sd)s", { mean: mean_hu.toFixed(1), sd: sd_hu.toFixed(1) }),
        _("min %(min)s, max %(max)s", { min: min_hu, max: max_hu }),
        area,
      ];
    }
    case "arrow":
      return [];
  }
}

/** @param {Plane["name"]} name */
export function planeNamed(name) {
  return /** @type {Plane} */ (PLANES.find((plane) => plane.name === name));
}

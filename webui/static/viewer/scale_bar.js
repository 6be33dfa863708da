/** Lengths a scale bar may have, in millimetres. */
const LENGTHS_MM = [100, 50, 20, 10, 5, 2, 1];

/**
 * The longest round length that fits.
 * @param {number} roomMm
 */
export function scaleBarMm(roomMm) {
  return LENGTHS_MM.find((length) => length <= roomMm) ?? 1;
}

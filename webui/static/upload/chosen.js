/**
 * What a person chose or dropped, as files with their places in folders.
 *
 * @typedef {object} Chosen
 * @property {string} name  with its folders
 * @property {File} file
 */

/** @param {FileList | null} list @returns {Chosen[]} */
export function fromInput(list) {
  return [...(list ?? [])].map((file) => ({ name: file.webkitRelativePath || file.name, file }));
}

/**
 * Folders are walked through; their entries are gone once the event has ended, so they are asked for at once.
 * @param {DataTransfer} dropped
 * @returns {Promise<Chosen[]>}
 */
export async function fromDrop(dropped) {
  const entries = [...dropped.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  return (await Promise.all(entries.map(walk))).flat();
}

/** @param {FileSystemEntry} entry @returns {Promise<Chosen[]>} */
async function walk(entry) {
  if (entry.isFile) {
    const file = await /** @type {Promise<File>} */ (
      new Promise((resolve, reject) => /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject))
    );
    return [{ name: entry.fullPath.replace(/^\//, ""), file }];
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  /** @type {Chosen[]} */
  const found = [];
  for (;;) {
    const some = await /** @type {Promise<FileSystemEntry[]>} */ (
      new Promise((resolve, reject) => reader.readEntries(resolve, reject))
    );
    if (some.length === 0) return found; // a reader gives a hundred entries at a time
    for (const one of some) found.push(...(await walk(one)));
  }
}

/** What tells a file from others after the page was loaded anew. @param {{name: string, size: number, modified: number}} file */
export function keyOf({ name, size, modified }) {
  return JSON.stringify([name, size, modified]);
}

/** @param {Chosen} chosen */
export function announced({ name, file }) {
  return { name, size: file.size, modified: file.lastModified };
}

/** @param {number} bytes */
export function inWords(bytes) {
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(1)} GB`;
  return bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(bytes / 1e3)} kB`;
}

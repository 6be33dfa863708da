/**
 * The keyboard: one table that both acts and explains itself in the help.
 *
 * @typedef {object} Command
 * @property {readonly string[]} keys  values of KeyboardEvent.key, lower case
 * @property {string} label  the keys as the help shows them
 * @property {string} does
 * @property {(key: string) => void} run
 */

/**
 * Run a command when one of its keys is pressed anywhere on the page.
 * @param {readonly Command[]} commands
 */
export function listenToKeys(commands) {
  const byKey = new Map(commands.flatMap((command) => command.keys.map((key) => [key, command])));
  addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    const command = byKey.get(key);
    const forBrowser = event.ctrlKey || event.altKey || event.metaKey;
    if (command === undefined || forBrowser || takesText(event.target)) return;
    event.preventDefault();
    command.run(key);
  });
}

/** @param {EventTarget | null} target */
function takesText(target) {
  return [HTMLInputElement, HTMLTextAreaElement, HTMLSelectElement].some((kind) => target instanceof kind);
}

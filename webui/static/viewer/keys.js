/**
 * The keyboard: one table of commands that acts, explains itself in the help and can be remapped.
 *
 * @typedef {object} Command
 * @property {string} name  for the code and for what is remembered
 * @property {string} does  for people
 * @property {string} key  as `keyOf` names it, until the reader chooses another
 * @property {() => void} run
 */
import { _ } from "../words.js";

/** Keys that act on a button or link in focus. */
const FOR_CONTROLS = ["enter", "space"];
/** Without these the page cannot be used by the keyboard, or the browser takes them. */
const RESERVED = ["tab", "shift+tab", "enter", "escape", "f5", "f11", "f12"];
const MODIFIERS = ["shift", "control", "alt", "meta", "altgraph", "capslock", "dead", "process", "unidentified"];

/**
 * The name of what was pressed: "n", "shift+n", "ctrl+z", "arrowup", "?", "space".
 * @param {KeyboardEvent} event
 */
export function keyOf({ key, shiftKey, ctrlKey, altKey, metaKey }) {
  const name = key === " " ? "space" : key.toLowerCase();
  // Shift is part of "?" already, but not of letters and named keys.
  const shift = shiftKey && (name.length > 1 || name !== name.toUpperCase());
  return `${ctrlKey || metaKey ? "ctrl+" : ""}${altKey ? "alt+" : ""}${shift ? "shift+" : ""}${name}`;
}

export class Keyboard {
  /** @type {Map<string, Command>} */
  #byKey = new Map();
  /** Whoever waits for the next key. @type {((key: string) => void) | null} */
  #asking = null;

  /**
   * @param {readonly Command[]} commands
   * @param {Readonly<Record<string, string>>} own  the reader's keys, by the command's name
   */
  constructor(commands, own) {
    this.commands = commands;
    this.own = own;
    this.#map();
    addEventListener("keydown", (event) => this.#pressed(event), { capture: true });
  }

  /** The key of a command, "" if the reader gave it to another. @param {Command} command */
  keyFor(command) {
    const key = this.own[command.name] ?? command.key;
    return this.#byKey.get(key) === command ? key : "";
  }

  /** Keys of the reader's own go before what a release brings. */
  #map() {
    this.#byKey.clear();
    for (const command of this.commands) {
      if (this.own[command.name] !== undefined) this.#byKey.set(this.own[command.name], command);
    }
    for (const command of this.commands) {
      if (this.own[command.name] === undefined && !this.#byKey.has(command.key)) this.#byKey.set(command.key, command);
    }
  }

  /**
   * Give a command another key.
   * @param {Command} command
   * @param {string} key
   * @returns {string} why it cannot have it, "" if it has it now
   */
  remap(command, key) {
    if (RESERVED.includes(key) || key.startsWith("ctrl+") || key.startsWith("alt+")) {
      return _("The browser needs this key: choose another one.");
    }
    const other = this.#byKey.get(key);
    if (other !== undefined && other !== command) {
      return _("This key is taken: %(command)s. Choose another one.", { command: other.does });
    }
    this.#setOwn({ ...this.own, [command.name]: key });
    return "";
  }

  /** The keys that the viewer comes with. */
  reset() {
    this.#setOwn({});
  }

  /** @param {Readonly<Record<string, string>>} own */
  #setOwn(own) {
    this.own = own;
    this.#map();
  }

  /** Hand the next key to somebody instead of running it; none for nobody. @param {((key: string) => void) | null} asking */
  ask(asking) {
    this.#asking = asking;
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    const key = keyOf(event);
    if (this.#asking !== null) {
      if (MODIFIERS.includes(event.key.toLowerCase())) return;
      event.preventDefault();
      event.stopPropagation();
      this.#asking(key);
      return;
    }
    const command = this.#byKey.get(key);
    if (command === undefined || takesKey(event.target, key)) return;
    // A dialogue over the page has the keys to itself; the help's own key closes it again.
    if (document.querySelector("dialog[open]") && command.name !== "help") return;
    if (FOR_CONTROLS.includes(key) && event.target instanceof Element && event.target.closest("button, a, summary")) return;
    event.preventDefault();
    command.run();
  }
}

/**
 * Whether a control in focus wants a key for itself: a slider its arrows alone, a tick box nothing.
 * @param {EventTarget | null} target
 * @param {string} key
 */
function takesKey(target, key) {
  if (target instanceof HTMLInputElement && target.type === "checkbox") return false;
  if (target instanceof HTMLInputElement && target.type === "range") return /^(arrow|page|home|end)/.test(key);
  return [HTMLInputElement, HTMLTextAreaElement, HTMLSelectElement].some((kind) => target instanceof kind);
}

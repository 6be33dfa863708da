/**
 * The help over the page: every key and mouse button. Each key can be changed there.
 *
 * @typedef {import("./keys.js").Command} Command
 * @typedef {import("./keys.js").Keyboard} Keyboard
 */
import { element } from "../dom.js";

const MOUSE = [
  ["Wheel", "Scroll"],
  ["Ctrl + wheel", "Zoom at the pointer"],
  ["Left", "The chosen tool; at first it moves the cross-hair in all planes"],
  ["Middle drag", "Pan"],
  ["Right drag", "Window: across for width, up and down for centre"],
  ["Double click", "This plane as it was at first"],
];

const TOUCH = [
  ["One finger", "Scroll, or draw with the chosen tool"],
  ["Tap", "Move the cross-hair"],
  ["Long press", "Window: across for width, up and down for centre"],
  ["Two fingers", "Zoom and pan"],
];

/** Signs and words for keys that are no letters. @type {Record<string, string>} */
const KEY_LABELS = {
  arrowup: "↑",
  arrowdown: "↓",
  arrowleft: "←",
  arrowright: "→",
  pageup: "Page ↑",
  pagedown: "Page ↓",
  escape: "Esc",
  delete: "Del",
};

/**
 * A key as people know it: "N", "Shift + N", "Page ↑".
 * @param {string} key  as keyOf names it
 */
export function keyLabel(key) {
  const parts = key === "+" ? [key] : key.split(/(?<=.)\+(?=.)/);
  return parts.map((part) => KEY_LABELS[part] ?? part.charAt(0).toUpperCase() + part.slice(1)).join(" + ");
}

/**
 * Fill the page's dialogue.
 * @param {HTMLDialogElement} dialog
 * @param {Keyboard} keyboard
 * @param {(keys: Readonly<Record<string, string>>) => void} changed  the reader's keys are others now
 */
export function fillHelp(dialog, keyboard, changed) {
  const message = element("p", { class: "message", role: "status" });
  /** @type {Map<Command, HTMLButtonElement>} */
  const buttons = new Map();

  const show = () => {
    for (const [command, button] of buttons) {
      const label = keyLabel(keyboard.keyFor(command)) || "none";
      button.textContent = label;
      button.setAttribute("aria-label", `Key for ${command.does}: ${label}. Change it`);
      button.classList.remove("asking");
    }
  };
  const stop = () => {
    keyboard.ask(null);
    show();
  };
  const ask = (/** @type {Command} */ command, /** @type {HTMLButtonElement} */ button) => {
    stop();
    button.textContent = "Press a key";
    button.classList.add("asking");
    message.textContent = "Press the new key, or Esc to keep the old one.";
    keyboard.ask((key) => {
      const problem = key === "escape" ? "" : keyboard.remap(command, key);
      message.textContent = problem;
      if (problem !== "") return;
      stop();
      changed(keyboard.own);
    });
  };

  const row = (/** @type {Node} */ how, /** @type {string} */ what) =>
    element("div", { class: "row" }, element("dt", {}, how), element("dd", { text: what }));
  const list = (/** @type {string[][]} */ rows) =>
    element("dl", {}, ...rows.map(([how, what]) => row(element("kbd", { text: how }), what)));
  const keys = keyboard.commands.map((command) => {
    const button = element("button", { type: "button", class: "key" });
    button.addEventListener("click", () => ask(command, button));
    buttons.set(command, button);
    return row(button, command.does);
  });
  const reset = element("button", { type: "button", text: "All keys as they were at first" });
  reset.addEventListener("click", () => {
    keyboard.reset();
    message.textContent = "";
    stop();
    changed(keyboard.own);
  });
  const close = element("button", { type: "button", class: "primary", text: "Close" });
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    message.textContent = "";
    stop();
  });
  show();
  dialog.replaceChildren(
    element("h2", { text: "Keys" }),
    element("p", { class: "hint", text: "Click a key to change it." }),
    element("dl", {}, ...keys),
    message,
    element("h2", { text: "Mouse" }),
    list(MOUSE),
    element("h2", { text: "Touch" }),
    list(TOUCH),
    element("p", { class: "actions" }, close, reset),
  );
}

/** @param {HTMLDialogElement} dialog */
export function toggleHelp(dialog) {
  if (dialog.open) dialog.close();
  else dialog.showModal();
}

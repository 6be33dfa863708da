/**
 * The help over the page: every key and mouse button. Each key can be changed there.
 *
 * @typedef {import("./keys.js").Command} Command
 * @typedef {import("./keys.js").Keyboard} Keyboard
 */
import { element } from "../dom.js";
import { _ } from "../words.js";

const MOUSE = [
  [_("Wheel"), _("Scroll")],
  [_("Ctrl + wheel"), _("Zoom at the pointer")],
  [_("Left"), _("The chosen tool; at first it moves the cross-hair in all planes")],
  [_("Middle drag"), _("Pan")],
  [_("Right drag"), _("Window: across for width, up and down for centre")],
  [_("Double click"), _("This plane as it was at first")],
];

const TOUCH = [
  [_("One finger"), _("Scroll, or draw with the chosen tool")],
  [_("Tap"), _("Move the cross-hair")],
  [_("Long press"), _("Window: across for width, up and down for centre")],
  [_("Two fingers"), _("Zoom and pan")],
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
      const label = keyLabel(keyboard.keyFor(command)) || _("none");
      button.textContent = label;
      button.setAttribute("aria-label", _("Key for %(command)s: %(key)s. Change it", { command: command.does, key: label }));
      button.classList.remove("asking");
    }
  };
  const stop = () => {
    keyboard.ask(null);
    show();
  };
  const ask = (/** @type {Command} */ command, /** @type {HTMLButtonElement} */ button) => {
    stop();
    button.textContent = _("Press a key");
    button.classList.add("asking");
    message.textContent = _("Press the new key, or Esc to keep the old one.");
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
  const reset = element("button", { type: "button", text: _("All keys as they were at first") });
  reset.addEventListener("click", () => {
    keyboard.reset();
    message.textContent = "";
    stop();
    changed(keyboard.own);
  });
  const close = element("button", { type: "button", class: "primary", text: _("Close") });
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    message.textContent = "";
    stop();
  });
  show();
  dialog.replaceChildren(
    element("h2", { text: _("Keys") }),
    element("p", { class: "hint", text: _("Click a key to change it.") }),
    element("dl", {}, ...keys),
    message,
    element("h2", { text: _("Mouse") }),
    list(MOUSE),
    element("h2", { text: _("Touch") }),
    list(TOUCH),
    element("p", { class: "actions" }, close, reset),
  );
}

/** @param {HTMLDialogElement} dialog */
export function toggleHelp(dialog) {
  if (dialog.open) dialog.close();
  else dialog.showModal();
}

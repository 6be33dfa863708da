/**
 * The help over the page: every key and mouse button.
 *
 * @typedef {import("./keys.js").Command} Command
 */
import { element } from "../dom.js";

const MOUSE = [
  ["Wheel", "Scroll"],
  ["Ctrl + wheel", "Zoom at the pointer"],
  ["Left drag", "Move the cross-hair in all planes"],
  ["Middle drag", "Pan"],
  ["Right drag", "Window: across for width, up and down for centre"],
  ["Double click", "Fit this plane"],
];

/**
 * Fill the page's dialogue.
 * @param {HTMLDialogElement} dialog
 * @param {readonly Command[]} commands
 */
export function fillHelp(dialog, commands) {
  const row = (/** @type {string} */ how, /** @type {string} */ what) =>
    element("div", { class: "row" }, element("dt", {}, element("kbd", { text: how })), element("dd", { text: what }));
  dialog.replaceChildren(
    element("h2", { text: "Keys" }),
    element("dl", {}, ...commands.map(({ label, does }) => row(label, does))),
    element("h2", { text: "Mouse" }),
    element("dl", {}, ...MOUSE.map(([how, what]) => row(how, what))),
    element("p", { class: "hint", text: "Press ? or Esc to close." }),
  );
}

/** @param {HTMLDialogElement} dialog */
export function toggleHelp(dialog) {
  if (dialog.open) dialog.close();
  else dialog.showModal();
}

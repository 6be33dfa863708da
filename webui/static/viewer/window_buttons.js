/**
 * The windows to choose from: those that every reader has, and up to five of their own.
 *
 * @typedef {import("./keys.js").Command} Command
 * @typedef {import("./preferences.js").Preferences} Preferences
 * @typedef {import("./state.js").ViewState} ViewState
 * @typedef {import("./windowing.js").Window} Window
 */
import { element } from "../dom.js";
import { _ } from "../words.js";
import { PRESETS } from "./windowing.js";

const OWN = [
  _("Window: the first of your own"),
  _("Window: the second of your own"),
  _("Window: the third of your own"),
  _("Window: the fourth of your own"),
  _("Window: the fifth of your own"),
];
const MOST_OWN = OWN.length;

export class WindowButtons {
  /**
   * @param {ViewState} state
   * @param {HTMLElement} box
   * @param {Preferences} preferences
   */
  constructor(state, box, preferences) {
    this.state = state;
    this.box = box;
    this.preferences = preferences;
    state.onChange((change) => {
      if (change === "window") this.#show();
    });
    this.#build();
  }

  get own() {
    return this.preferences.settings.windows ?? [];
  }

  /** @param {Window} window */
  choose(window) {
    this.state.setWindow(window);
    this.preferences.set({ window: this.state.window });
  }

  /** Keep the window that is shown as one of the reader's own. */
  keep() {
    if (this.#shown() || this.own.length >= MOST_OWN) return;
    this.#set({ windows: [...this.own, this.state.window], window: this.state.window });
  }

  /** @returns {Command[]} */
  commands() {
    return [
      ...PRESETS.map((preset, i) => ({
        name: `window-${i + 1}`,
        key: String(i + 1),
        does: _("Window: %(name)s", { name: preset.name.toLowerCase() }),
        run: () => this.choose(preset),
      })),
      ...Array.from({ length: MOST_OWN }, (_slot, i) => ({
        name: `own-window-${i + 1}`,
        key: String(PRESETS.length + i + 1),
        does: OWN[i],
        run: () => {
          if (i < this.own.length) this.choose(this.own[i]);
        },
      })),
      { name: "keep-window", key: "w", does: _("Keep this window as one of your own"), run: () => this.keep() },
    ];
  }

  /** @param {import("./preferences.js").Settings} changes */
  #set(changes) {
    this.preferences.set(changes);
    this.#build();
  }

  /** The window that is shown among those to choose from. */
  #shown() {
    const { width, centre } = this.state.window;
    return [...PRESETS, ...this.own].find((one) => one.width === width && one.centre === centre);
  }

  #build() {
    const presets = PRESETS.map((preset, i) => this.#button(preset, i + 1, preset.name));
    const own = this.own.map((window, i) => {
      const name = `${window.width} / ${window.centre}`;
      const remove = element("button", { type: "button", class: "remove", text: "✕", title: _("Remove this window") });
      remove.setAttribute("aria-label", _("Remove window %(name)s", { name }));
      remove.addEventListener("click", () => this.#set({ windows: this.own.filter((_window, k) => k !== i) }));
      return element("span", { class: "own" }, this.#button(window, PRESETS.length + i + 1, name), remove);
    });
    this.keepButton = element("button", { type: "button", text: _("Keep this window"), title: _("As one of your own") });
    this.keepButton.addEventListener("click", () => this.keep());
    this.box.replaceChildren(...presets, ...own, this.keepButton);
    this.#show();
  }

  /**
   * @param {Window} window
   * @param {number} number
   * @param {string} name
   */
  #button(window, number, name) {
    const button = element("button", { type: "button", class: "window", text: `${number} ${name}` });
    button.title = _("Width %(width)s, centre %(centre)s HU", { width: window.width, centre: window.centre });
    button.dataset.window = `${window.width} ${window.centre}`;
    button.addEventListener("click", () => this.choose(window));
    return button;
  }

  #show() {
    const { width, centre } = this.state.window;
    for (const button of /** @type {NodeListOf<HTMLElement>} */ (this.box.querySelectorAll("[data-window]"))) {
      button.setAttribute("aria-pressed", String(button.dataset.window === `${width} ${centre}`));
    }
    if (this.keepButton) this.keepButton.hidden = this.#shown() !== undefined || this.own.length >= MOST_OWN;
  }
}

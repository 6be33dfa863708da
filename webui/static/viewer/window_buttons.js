/**
 * The windows to choose from: those that every reader has, and up to five of their own.
 *
 * @typedef {import("./keys.js").Command} Command
 * @typedef {import("./preferences.js").Preferences} Preferences
 * @typedef {import("./state.js").ViewState} ViewState
 * @typedef {import("./windowing.js").Window} Window
 */
import { element } from "../dom.js";
import { PRESETS } from "./windowing.js";

const MOST_OWN = 5;

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
        does: `Window: ${preset.name.toLowerCase()}`,
        run: () => this.choose(preset),
      })),
      ...Array.from({ length: MOST_OWN }, (_, i) => ({
        name: `own-window-${i + 1}`,
        key: String(PRESETS.length + i + 1),
        does: `Window: the ${["first", "second", "third", "fourth", "fifth"][i]} of your own`,
        run: () => {
          if (i < this.own.length) this.choose(this.own[i]);
        },
      })),
      { name: "keep-window", key: "w", does: "Keep this window as one of your own", run: () => this.keep() },
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
      const remove = element("button", { type: "button", class: "remove", text: "✕", title: "Remove this window" });
      remove.setAttribute("aria-label", `Remove window ${name}`);
      remove.addEventListener("click", () => this.#set({ windows: this.own.filter((_, k) => k !== i) }));
      return element("span", { class: "own" }, this.#button(window, PRESETS.length + i + 1, name), remove);
    });
    this.keepButton = element("button", { type: "button", text: "Keep this window", title: "As one of your own" });
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
    button.title = `Width ${window.width}, centre ${window.centre} HU`;
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

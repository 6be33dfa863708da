/**
 * The previous study of the same patient beside this one, scrolled together at the same level
 * (alignment.js). It is fetched when it is first asked for.
 *
 * @typedef {import("./layout.js").Layout} Layout
 * @typedef {import("./tools.js").Toolbox} Toolbox
 */
import { byId, element } from "../dom.js";
import { _ } from "../words.js";
import { aligned } from "./alignment.js";
import { fetchManifest } from "./manifest.js";
import { Reading } from "./reading.js";

export class PriorStudy {
  #opened = false;

  /**
   * @param {HTMLElement} box  of the prior study, with its banner; the page has it only if there is one
   * @param {Reading} current
   * @param {object} page
   * @param {Toolbox} page.toolbox
   * @param {Layout} page.layout
   * @param {string} page.account
   * @param {(reading: Reading) => void} page.opened
   * @param {(error: unknown) => void} page.failed
   */
  constructor(box, current, page) {
    this.box = box;
    this.current = current;
    this.page = page;
    this.button = byId("prior-button");
    this.button.addEventListener("click", () => this.toggle());
  }

  toggle() {
    this.box.hidden = !this.box.hidden;
    byId("viewer").classList.toggle("beside", !this.box.hidden);
    this.button.setAttribute("aria-pressed", String(!this.box.hidden));
    if (this.box.hidden) this.page.layout.activate(this.current.viewports[0]);
    else if (!this.#opened) {
      this.#opened = true;
      this.#open().catch(this.page.failed);
    }
  }

  async #open() {
    const { manifest = "", date = "" } = this.box.dataset;
    const { toolbox, layout, account, opened, failed } = this.page;
    const facts = await fetchManifest(manifest);
    const reading = new Reading(facts, { toolbox, window: this.current.state.window, account, failed });
    for (const { box } of reading.viewports) {
      box.classList.add("prior");
      const label = /** @type {string} */ (box.getAttribute("aria-label"));
      box.setAttribute("aria-label", _("Prior study of %(date)s, %(view)s", { date, view: label }));
      box.append(element("p", { class: "prior-mark", text: _("PRIOR %(date)s", { date }) }));
    }
    this.box.append(reading.box);
    layout.add(reading.viewports);
    link(this.current, reading);
    opened(reading);
    await reading.load({ first() {}, arrived() {} });
  }
}

/**
 * Let two studies show the same level, window, slab and lesions: what is changed in one is changed in both.
 * @param {Reading} current
 * @param {Reading} prior
 */
function link(current, prior) {
  let following = false;
  const follow = (/** @type {Reading} */ from, /** @type {Reading} */ to) => {
    const copy = (/** @type {import("./state.js").Change | "all"} */ change) => {
      if (following) return;
      following = true;
      if (change === "all" || change === "position") to.state.moveTo(aligned(from.state.position, from.manifest, to.manifest));
      if (change === "all" || change === "window") to.state.setWindow(from.state.window);
      if (change === "all" || change === "overlay") to.state.showOverlay(from.state.overlay, from.state.fill);
      if (change === "all" || change === "slab") to.state.setSlab(from.state.slab);
      following = false;
    };
    from.state.onChange(copy);
    return copy;
  };
  follow(prior, current);
  follow(current, prior)("all");
}

/**
 * One result on the screen: its volume, what the reader looks at, its three planes and what is drawn
 * over them. The page shows one, and a second one beside it for a prior study.
 *
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./manifest.js").LesionFacts} LesionFacts
 * @typedef {import("./tools.js").Toolbox} Toolbox
 */
import { element } from "../dom.js";
import { _ } from "../words.js";
import { HeatLayer } from "./heat_layer.js";
import { LesionLayer } from "./lesion_layer.js";
import { SlabLoader } from "./loader.js";
import { fetchHeatMap, fetchMask } from "./manifest.js";
import { MeasureLayer } from "./measure_layer.js";
import { Measurements } from "./measurements.js";
import { PLANES } from "./planes.js";
import { listenToPointer } from "./pointer.js";
import { sliceBar } from "./slice_bar.js";
import { ViewState } from "./state.js";
import { Viewport } from "./viewport.js";
import { Volume } from "./volume.js";
import { LookUpTable } from "./windowing.js";

const [AXIAL] = PLANES;

export class Reading {
  #lesions = new LesionLayer();
  /** @type {Set<(mask: import("./masks.js").LesionMask) => void>} */
  #maskListeners = new Set();
  #bars;

  /**
   * @param {Manifest} manifest
   * @param {object} page
   * @param {Toolbox} page.toolbox
   * @param {import("./windowing.js").Window} page.window
   * @param {string} page.account  row id
   * @param {(error: unknown) => void} page.failed  something that was asked for did not come
   */
  constructor(manifest, { toolbox, window, account, failed }) {
    this.manifest = manifest;
    this.volume = new Volume(manifest.size, manifest.spacing_mm);
    this.state = new ViewState(manifest.size, window);
    this.heatMaps = manifest.heat_maps.map(({ answer }) => answer);
    this.measurements = new Measurements(manifest.measurements_url, this.volume, this.state, account);
    const { volume, state } = this;

    const colours = new LookUpTable();
    colours.show(state.window);
    state.onChange((change) => {
      if (change === "window") colours.show(state.window);
    });

    const heat = new HeatLayer(this.heatMaps);
    this.#bringHeatMaps(heat, failed);
    /** Over the slices, the lowest first. @type {import("./tools.js").Layer[]} */
    this.layers = [heat, this.#lesions, new MeasureLayer(this.measurements)];
    this.#bars = PLANES.map((plane) => sliceBar(plane, state, manifest.lesions));
    this.viewports = PLANES.map((plane, i) => {
      const imageLabel = (/** @type {number} */ z) =>
        plane === AXIAL && manifest.image_numbers[z] != null ? "  ·  " + _("image %(number)s", { number: manifest.image_numbers[z] }) : "";
      const viewport = new Viewport(plane, { state, volume, colours, heat, layers: this.layers, imageLabel });
      viewport.box.append(this.#bars[i].bar);
      listenToPointer(viewport, state, toolbox);
      return viewport;
    });
    this.box = element("div", { class: "planes" }, ...this.viewports.map(({ box }) => box));
  }

  /**
   * Fetch a heat map when it is first asked for: most readers never do.
   * @param {HeatLayer} layer
   * @param {(error: unknown) => void} failed
   */
  #bringHeatMaps(layer, failed) {
    const { state, manifest } = this;
    /** @type {Set<number>} */
    const asked = new Set();
    const bring = async (/** @type {number} */ place) => {
      asked.add(place);
      layer.add(place, await fetchHeatMap(manifest.heat_maps[place]));
      state.redraw();
    };
    state.onChange((change) => {
      if (change !== "heat" || state.heatMap === null || asked.has(state.heatMap)) return;
      bring(state.heatMap).catch(failed);
    });
  }

  /** Called with each mask of the analysis when it is there. @param {(mask: import("./masks.js").LesionMask) => void} listener */
  onMask(listener) {
    this.#maskListeners.add(listener);
  }

  /**
   * Bring in the images and masks, what is looked at first of all.
   * @param {object} progress
   * @param {() => void} progress.first  the first lesion's slice and mask are there
   * @param {(share: number) => void} progress.arrived
   * @throws {Error} something did not come; what else there is, is shown
   */
  async load({ first, arrived }) {
    const { manifest, volume, state } = this;
    const takeMask = async (/** @type {LesionFacts} */ lesion) => {
      const mask = await fetchMask(lesion);
      this.#lesions.add(mask);
      for (const listener of this.#maskListeners) listener(mask);
      state.redraw();
    };
    const loader = new SlabLoader(
      volume,
      { urgent: manifest.key_slabs, rest: manifest.slabs },
      {
        position: () => state.position[2],
        arrived: (slab) => {
          for (const viewport of this.viewports) viewport.arrived(slab.first, slab.count);
          this.#bars[0].markArrived(slab.first, slab.count);
          state.imagesArrived();
          arrived(volume.arrivedCount / manifest.size[2]);
        },
      },
    );
    // The first lesion's slice and mask have the connection to themselves: they are what is waited for.
    const [firstLesion, ...otherLesions] = manifest.lesions;
    const soon = await Promise.allSettled([loader.loadFirst(), firstLesion && takeMask(firstLesion)]);
    first();
    this.measurements.load();
    const later = await Promise.allSettled([loader.loadRest(), ...otherLesions.map(takeMask)]);
    // What failed keeps nothing else from being shown.
    for (const outcome of [...soon, ...later]) if (outcome.status === "rejected") throw outcome.reason;
  }
}

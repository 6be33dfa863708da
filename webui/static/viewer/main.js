/**
 * The viewer page: puts its parts together and starts loading.
 *
 * Leaves three marks on the performance timeline, for whoever measures: "first-lesion-slice" when
 * the first slice is on the screen with its mask, "volume" when all slices are, "ready" when the page takes input.
 *
 * @typedef {import("./manifest.js").Manifest} Manifest
 */
import { byId, element } from "../dom.js";
import { HeatLayer } from "./heat_layer.js";
import { fillHelp, toggleHelp } from "./help.js";
import { listenToKeys } from "./keys.js";
import { LesionLayer } from "./lesion_layer.js";
import { lesionList } from "./lesion_list.js";
import { SlabLoader } from "./loader.js";
import { fetchHeatMap, fetchManifest, fetchMask } from "./manifest.js";
import { PLANES } from "./planes.js";
import { listenToPointer } from "./pointer.js";
import { openReview } from "./review_panel.js";
import { sliceBar } from "./slice_bar.js";
import { ViewState } from "./state.js";
import { Viewport } from "./viewport.js";
import { Volume } from "./volume.js";
import { LookUpTable, PRESETS } from "./windowing.js";

const [AXIAL] = PLANES;
const PAGE_OF_SLICES = 10;

/** @param {Manifest} manifest */
function open(manifest) {
  const volume = new Volume(manifest.size, manifest.spacing_mm);
  const state = new ViewState(manifest.size, PRESETS[0]);
  const colours = new LookUpTable();
  const layer = new LesionLayer();
  const heatMaps = manifest.heat_maps.map(({ answer }) => answer);
  const heat = new HeatLayer(heatMaps);
  colours.show(state.window);
  state.onChange((change) => {
    if (change === "window") colours.show(state.window);
  });

  const views = PLANES.map((plane) => {
    const imageLabel = (/** @type {number} */ z) =>
      plane === AXIAL && manifest.image_numbers[z] != null ? `  ·  image ${manifest.image_numbers[z]}` : "";
    const viewport = new Viewport(plane, { state, volume, colours, heat, lesions: layer, imageLabel });
    const bar = sliceBar(plane, state, manifest.lesions);
    viewport.box.append(bar.bar);
    listenToPointer(viewport, state);
    return { viewport, bar };
  });
  byId("planes").append(...views.map(({ viewport }) => viewport.box));

  const { list, rows, jumpBy } = lesionList(state, manifest.lesions);
  byId("lesions").append(list);
  const review = openReview(state, byId("review"), rows, reviewFacts());
  presetButtons(state);
  const active = activeViewport(views.map(({ viewport }) => viewport));
  const help = /** @type {HTMLDialogElement} */ (byId("help"));
  bringHeatMaps(state, manifest.heat_maps, heat, views.map(({ viewport }) => viewport));
  const commands = commandTable({ state, active, jumpBy, markChosen: review.markChosen, heatMaps, toggleHelp: () => toggleHelp(help) });
  fillHelp(help, commands);
  byId("help-button").addEventListener("click", () => toggleHelp(help));
  listenToKeys(commands);

  jumpBy(1);
  return { volume, state, layer, views, review };
}

/** What the page says of the result that is reviewed. @returns {import("./review_panel.js").ReviewFacts} */
function reviewFacts() {
  const { review = "", live = "", analysis = "", account = "", positive } = byId("viewer").dataset;
  return { url: review, live, analysis, account, positive: positive === "yes" };
}

/**
 * The plane that keys act on: the one under the mouse or in focus, at first the axial one.
 * @param {Viewport[]} viewports
 */
function activeViewport(viewports) {
  let active = viewports[0];
  const activate = (/** @type {Viewport} */ viewport) => {
    active = viewport;
    for (const { box } of viewports) box.classList.toggle("active", box === viewport.box);
  };
  for (const viewport of viewports) {
    viewport.box.addEventListener("pointerenter", () => activate(viewport));
    viewport.box.addEventListener("focus", () => activate(viewport));
  }
  activate(active);
  return () => active;
}

/**
 * Fetch a heat map when it is first asked for: most readers never do.
 * @param {ViewState} state
 * @param {readonly import("./manifest.js").HeatMapFacts[]} heatMaps
 * @param {HeatLayer} layer
 * @param {readonly Viewport[]} viewports
 */
function bringHeatMaps(state, heatMaps, layer, viewports) {
  /** @type {Set<number>} */
  const asked = new Set();
  const bring = async (/** @type {number} */ place) => {
    asked.add(place);
    layer.add(place, await fetchHeatMap(heatMaps[place]));
    for (const viewport of viewports) viewport.overlayArrived();
  };
  state.onChange((change) => {
    if (change !== "heat" || state.heatMap === null || asked.has(state.heatMap)) return;
    bring(state.heatMap).catch(explain);
  });
}

/** @param {ViewState} state */
function presetButtons(state) {
  const buttons = PRESETS.map((preset, i) => {
    const button = element("button", { type: "button", text: `${i + 1} ${preset.name}` });
    button.title = `Width ${preset.width}, centre ${preset.centre} HU`;
    button.addEventListener("click", () => state.setWindow(preset));
    return button;
  });
  const show = () => {
    PRESETS.forEach(({ width, centre }, i) => {
      const pressed = width === state.window.width && centre === state.window.centre;
      buttons[i].setAttribute("aria-pressed", String(pressed));
    });
  };
  state.onChange((change) => {
    if (change === "window") show();
  });
  show();
  byId("presets").append(...buttons);
}

/**
 * @param {object} parts
 * @param {ViewState} parts.state
 * @param {() => Viewport} parts.active
 * @param {(steps: number) => void} parts.jumpBy
 * @param {(accepted: boolean) => void} parts.markChosen
 * @param {readonly string[]} parts.heatMaps  what each heat map speaks for
 * @param {() => void} parts.toggleHelp
 * @returns {import("./keys.js").Command[]}
 */
function commandTable({ state, active, jumpBy, markChosen, heatMaps, toggleHelp }) {
  const scroll = (/** @type {number} */ steps) => state.scroll(active().plane, steps);
  const all = Math.max(...state.size);
  return [
    {
      keys: ["n", "p"],
      label: "N  P",
      does: "Next, previous lesion",
      run: (key) => jumpBy(key === "n" ? 1 : -1),
    },
    {
      keys: ["y", "x"],
      label: "Y  X",
      does: "Accept, reject this lesion; again to take it back",
      run: (key) => markChosen(key === "y"),
    },
    { keys: ["s"], label: "S", does: "Lesions shown or hidden", run: () => state.toggleOverlay() },
    { keys: ["c"], label: "C", does: "Lesions as contour or filled", run: () => state.toggleFill() },
    {
      keys: ["g"],
      label: "G",
      does: heatMaps.length > 0 ? `Heat map: ${heatMaps.join(", ")}, none` : "Heat map: not computed",
      run: () => state.nextHeatMap(heatMaps.length),
    },
    {
      keys: PRESETS.map((_, i) => String(i + 1)),
      label: `1 – ${PRESETS.length}`,
      does: `Window: ${PRESETS.map(({ name }) => name.toLowerCase()).join(", ")}`,
      run: (key) => state.setWindow(PRESETS[Number(key) - 1]),
    },
    {
      keys: ["arrowup", "arrowdown"],
      label: "↑  ↓",
      does: "Previous, next slice",
      run: (key) => scroll(key === "arrowup" ? -1 : 1),
    },
    {
      keys: ["pageup", "pagedown"],
      label: "Page ↑ ↓",
      does: `${PAGE_OF_SLICES} slices back, on`,
      run: (key) => scroll(key === "pageup" ? -PAGE_OF_SLICES : PAGE_OF_SLICES),
    },
    {
      keys: ["home", "end"],
      label: "Home End",
      does: "First, last slice",
      run: (key) => scroll(key === "home" ? -all : all),
    },
    { keys: ["r"], label: "R", does: "Fit this plane", run: () => active().resetView() },
    { keys: ["?"], label: "?", does: "This help", run: toggleHelp },
  ];
}

/** @param {Manifest} manifest */
async function start(manifest) {
  const { volume, state, layer, views, review } = open(manifest);
  performance.mark("ready");

  const takeMask = async (/** @type {import("./manifest.js").LesionFacts} */ lesion) => {
    layer.add(await fetchMask(lesion));
    for (const { viewport } of views) viewport.overlayArrived();
  };
  const progress = /** @type {HTMLProgressElement} */ (byId("loading"));
  const loader = new SlabLoader(
    volume,
    { urgent: manifest.key_slabs, rest: manifest.slabs },
    {
      position: () => state.position[2],
      arrived: (slab) => {
        for (const { viewport } of views) viewport.arrived(slab.first, slab.count);
        views[0].bar.markArrived(slab.first, slab.count);
        progress.value = volume.arrivedCount / manifest.size[2];
      },
    },
  );
  // The first lesion's slice and mask have the connection to themselves: they are what is waited for.
  const [firstLesion, ...otherLesions] = manifest.lesions;
  const first = await Promise.allSettled([loader.loadFirst(), firstLesion && takeMask(firstLesion)]);
  markOnScreen("first-lesion-slice");
  review.start();
  const rest = await Promise.allSettled([loader.loadRest(), ...otherLesions.map(takeMask)]);
  // What failed keeps nothing else from being shown.
  for (const outcome of [...first, ...rest]) if (outcome.status === "rejected") throw outcome.reason;
  progress.hidden = true;
  markOnScreen("volume");
}

/** Mark the moment after the coming frame has been drawn. @param {string} name */
function markOnScreen(name) {
  requestAnimationFrame(() => setTimeout(() => performance.mark(name)));
}

/** @param {unknown} error */
function explain(error) {
  console.error(error);
  const notice = byId("notice");
  notice.textContent = "Some images could not be loaded. Reload the page; if it happens again, call your administrator.";
  notice.hidden = false;
}

fetchManifest(byId("viewer").dataset.manifest ?? "").then(start).catch(explain);

/**
 * The viewer page: puts its parts together and starts loading.
 *
 * Leaves three marks on the performance timeline, for whoever measures: "first-lesion-slice" when
 * the first slice is on the screen with its mask, "volume" when all slices are, "ready" when the page takes input.
 *
 * @typedef {import("./keys.js").Command} Command
 * @typedef {import("./manifest.js").Manifest} Manifest
 */
import { byId } from "../dom.js";
import { _ } from "../words.js";
import { Cine } from "./cine.js";
import { commandTable } from "./commands.js";
import { EditLayer } from "./edit_layer.js";
import { EditRegions } from "./edit_regions.js";
import { EditTools } from "./edit_tools.js";
import { fillHelp, toggleHelp } from "./help.js";
import { Keyboard } from "./keys.js";
import { Layout } from "./layout.js";
import { lesionList } from "./lesion_list.js";
import { fetchManifest } from "./manifest.js";
import { measureList } from "./measure_list.js";
import { measureTools } from "./measure_tools.js";
import { openNext } from "./next_study.js";
import { Preferences } from "./preferences.js";
import { PriorStudy } from "./prior.js";
import { Reading } from "./reading.js";
import { openReview } from "./review_panel.js";
import { crossHair, toolButtons, Toolbox } from "./tools.js";
import { viewControls } from "./view_controls.js";
import { WindowButtons } from "./window_buttons.js";
import { PRESETS } from "./windowing.js";

const facts = byId("viewer").dataset;

/** @param {Manifest} manifest */
function open(manifest) {
  const { account = "", preferencesUrl = "", preferences: kept = "{}" } = facts;
  const preferences = new Preferences(preferencesUrl, JSON.parse(kept));
  const { settings } = preferences;
  /** The readings on the page: this study, and perhaps a prior one. @type {Reading[]} */
  const readings = [];
  const toolbox = new Toolbox([crossHair()]);
  const reading = new Reading(manifest, { toolbox, window: settings.window ?? PRESETS[0], account, failed: explain });
  readings.push(reading);
  const { state } = reading;
  const regions = new EditRegions(manifest.size, manifest.lesions.map(({ id }) => id));
  reading.onMask((mask) => regions.addMachine(mask));
  const editLayer = new EditLayer(regions);
  reading.layers.push(editLayer);
  const editTools = new EditTools(reading, regions, editLayer);
  const measurementsOf = (/** @type {import("./state.js").ViewState} */ shown) => /** @type {Reading} */ (readings.find(({ state }) => state === shown)).measurements;
  toolbox.add([...editTools.tools, ...measureTools(measurementsOf)]);
  toolButtons(toolbox, byId("tools"));
  editTools.follow(toolbox);
  byId("tools").after(editTools.box);

  byId("planes").append(reading.box);
  const layout = new Layout(byId("studies"));
  layout.add(reading.viewports);
  measureList(reading.measurements, byId("measurements"));

  const { parts, rows, jumpBy } = lesionList(state, manifest.lesions, preferences);
  byId("lesions").append(...parts);
  const review = openReview(state, { box: byId("review"), list: byId("lesions"), rows, tools: editTools, layer: editLayer }, reviewFacts());
  const windows = new WindowButtons(state, byId("presets"), preferences);
  const cine = new Cine(() => layout.active.state.scrollRound(layout.active.plane), settings.cine_rate);
  cine.onChange(() => preferences.set({ cine_rate: cine.rate }));
  const resetAll = () => {
    toolbox.leave();
    layout.resetViews();
    layout.show(false);
    windows.choose(PRESETS[0]);
    state.setSlab({ ...state.slab, mode: null });
    state.showOverlay(true, false);
    if (cine.running) cine.stop();
  };

  const priorBox = document.getElementById("prior");
  const prior = priorBox && new PriorStudy(priorBox, reading, {
    toolbox,
    layout,
    account,
    opened: (other) => {
      readings.push(other);
      measureList(other.measurements, byId("prior-measurements"));
    },
    failed: explain,
  });
  const help = /** @type {HTMLDialogElement} */ (byId("help"));
  /** @type {Command[]} */
  const page = [
    ...editTools.commands,
    { name: "reset", key: "0", does: _("Everything as it was at first"), run: resetAll },
    { name: "prior", key: "o", does: prior ? _("Prior study beside this one") : _("Prior study: there is none here"), run: () => prior?.toggle() },
    { name: "next-study", key: "shift+n", does: _("Next study to review"), run: () => openNext(facts.next ?? "", review.flush, tell) },
    { name: "help", key: "?", does: _("This help"), run: () => toggleHelp(help) },
  ];
  const commands = commandTable({ reading, layout, toolbox, cine, windows: windows.commands(), page, jumpBy, markChosen: review.markChosen });
  const keyboard = new Keyboard(commands, settings.keys ?? {});
  fillHelp(help, keyboard, (keys) => preferences.set({ keys }));
  byId("help-button").addEventListener("click", () => toggleHelp(help));
  viewControls({ state, layout, cine, resetAll });

  remember(state, layout, preferences);
  jumpBy(1);
  return { reading, review };
}

/**
 * Begin as the reader left off, and keep what they change.
 * @param {import("./state.js").ViewState} state
 * @param {Layout} layout
 * @param {Preferences} preferences
 */
function remember(state, layout, preferences) {
  const { single = false, fill = false, slab_mm = state.slab.mm } = preferences.settings;
  layout.show(single);
  state.showOverlay(true, fill);
  state.setSlab({ mode: null, mm: slab_mm });
  layout.onChange(() => preferences.set({ single: layout.single }));
  state.onChange((change) => {
    if (change === "overlay") preferences.set({ fill: state.fill });
    if (change === "slab") preferences.set({ slab_mm: state.slab.mm });
  });
}

/** What the page says of the result that is reviewed. @returns {import("./review_panel.js").ReviewFacts} */
function reviewFacts() {
  const { review = "", live = "", analysis = "", account = "", positive } = facts;
  return { url: review, live, analysis, account, positive: positive === "yes" };
}

/** @param {Manifest} manifest */
async function start(manifest) {
  const { reading, review } = open(manifest);
  performance.mark("ready");
  const progress = /** @type {HTMLProgressElement} */ (byId("loading"));
  await reading.load({
    first() {
      markOnScreen("first-lesion-slice");
      review.start();
    },
    arrived(share) {
      progress.value = share;
    },
  });
  progress.hidden = true;
  markOnScreen("volume");
}

/** Mark the moment after the coming frame has been drawn. @param {string} name */
function markOnScreen(name) {
  requestAnimationFrame(() => setTimeout(() => performance.mark(name)));
}

/** @param {string} sentence */
function tell(sentence) {
  const notice = byId("notice");
  notice.textContent = sentence;
  notice.hidden = false;
}

/** @param {unknown} error */
function explain(error) {
  console.error(error);
  tell(_("Some images could not be loaded. Reload the page; if it happens again, call your administrator."));
}

fetchManifest(facts.manifest ?? "").then(start).catch(explain);

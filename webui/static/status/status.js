/**
 * The page of a study without a result: follows its analysis step by step and turns into the viewer by itself.
 *
 * @typedef {import("../live.js").Pulse} Pulse
 * @typedef {import("../live.js").Moving} Moving
 * @typedef {import("../live.js").StepDone} StepDone
 */
import { byId, element } from "../dom.js";
import { fetchJson, follow } from "../live.js";
import { _ } from "../words.js";

const { live = "", study = "", state: stateUrl = "", shown = "" } = byId("status").dataset;

let marker = "";

/** @param {Pulse} pulse */
function onPulse(pulse) {
  const moving = pulse.moving.find(({ study_id }) => String(study_id) === study);
  byId("progress").hidden = moving?.state !== "ANALYSING";
  if (moving) showProgress(moving);
  if (pulse.marker !== marker) {
    marker = pulse.marker;
    reloadIfChanged().catch(() => {
      marker = "";
    });
  }
}

async function reloadIfChanged() {
  const now = await fetchJson(stateUrl);
  if (now.state !== shown) location.reload();
}

/** @param {Moving} moving */
function showProgress({ step, step_done, step_total, steps }) {
  const bar = /** @type {HTMLProgressElement} */ (byId("bar"));
  bar.max = Math.max(1, step_total);
  bar.value = step_done;
  byId("step").textContent = step === null ? "" : _(step);
  byId("steps").replaceChildren(...steps.map(stepElement));
}

/** @param {StepDone} done */
function stepElement({ step, seconds, summary }) {
  const found = Object.entries(summary).map(([name, value]) => [_(name.replaceAll("_", " ")), plain(value)].join(" "));
  return element("li", {},
    element("b", { text: _(step) }),
    element("span", { class: "found", text: found.join(" · ") }),
    element("span", { class: "seconds", text: `${seconds.toFixed(1)} s` }));
}

/** A finding as text: three digits are enough to follow along. @param {unknown} value */
function plain(value) {
  if (typeof value === "number") return String(Number(value.toPrecision(3)));
  if (typeof value === "boolean") return value ? _("yes") : _("no");
  return String(value);
}

follow(live, onPulse, () => reloadIfChanged().catch(() => {}));

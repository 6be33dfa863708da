/** The page "Upload": choose or drop, send, see what was taken in. */
import { byId, element } from "../dom.js";
import { fetchJson } from "../live.js";
import { _, _n } from "../words.js";
import { announced, fromDrop, fromInput, inWords, keyOf } from "./chosen.js";
import { Refused, Sender } from "./sender.js";

/** @typedef {import("./chosen.js").Chosen} Chosen */
/** @typedef {import("./sender.js").Upload} Upload */
/** @typedef {import("./sender.js").Outcome} Outcome */

const MOST_LINES = 300;
const NIFTI = /\.nii(\.gz)?$/i;

const { uploads = "", piece = "", token = "" } = byId("upload").dataset;

/** @type {Chosen[]} */
let chosen = [];
/** @type {Upload[]} */
let interrupted = [];
/** What is being sent. @type {{sender: Sender, upload: Upload | null} | null} */
let running = null;
/** @type {{bar: HTMLProgressElement, share: HTMLElement}[]} */
let lines = [];

const input = (/** @type {string} */ id) => /** @type {HTMLInputElement} */ (byId(id));
const newSender = () => new Sender(token, Number(piece), (trouble) => tell(trouble || _("Sending…"), trouble !== ""));

async function lookForInterrupted() {
  interrupted = /** @type {{uploads: Upload[]}} */ (await fetchJson(uploads)).uploads;
  byId("waiting").hidden = interrupted.length === 0;
  byId("interrupted").replaceChildren(...interrupted.map((upload) => {
    const here = upload.files.filter(({ offset, size }) => offset === size).length;
    const button = element("button", { type: "button", text: _("Discard") });
    button.addEventListener("click", async () => {
      await newSender().discard(upload);
      await lookForInterrupted();
    });
    const whole = here === upload.files.length;
    const arrived = _("%(file)s: %(here)s of %(all)s files are here.", { file: upload.files[0].name, here, all: upload.files.length });
    const children = [arrived, " ", button];
    if (whole) children.splice(2, 0, takeButton(upload), " ");
    return element("li", {}, ...children);
  }));
}

/** All of it came, and only the last step is missing. @param {Upload} upload */
function takeButton(upload) {
  const button = element("button", { type: "button", text: _("Take in") });
  button.addEventListener("click", () => {
    chosen = [];
    byId("chosen").hidden = false;
    showPerson(upload.files.some(({ name }) => NIFTI.test(name)));
    void run(async (sender) => finish(sender, upload));
  });
  return button;
}

/** @param {Chosen[]} files */
function choose(files) {
  if (running !== null || files.length === 0) return;
  chosen = files;
  const bytes = files.reduce((sum, { file }) => sum + file.size, 0);
  byId("summary").textContent = _n("%(num)s file, %(size)s", "%(num)s files, %(size)s", files.length, { size: inWords(bytes) });
  showPerson(files.some(({ name }) => NIFTI.test(name)));
  lines = files.slice(0, MOST_LINES).map(() => ({
    bar: element("progress", { max: "1", value: "0" }), share: element("span", { class: "share" }),
  }));
  byId("list").replaceChildren(
    ...lines.map(({ bar, share }, n) => {
      bar.setAttribute("aria-label", files[n].name);
      return element("li", {}, element("span", { text: files[n].name, title: files[n].name }), bar, share);
    }),
    ...(files.length > MOST_LINES ? [element("li", { text: _("and %(count)s more", { count: files.length - MOST_LINES }) })] : []),
  );
  byId("chosen").hidden = false;
  byId("outcome").hidden = true;
  tell("", false);
  byId("start").hidden = false;
  byId("start").focus();
}

/** @param {boolean} needed */
function showPerson(needed) {
  byId("person").hidden = !needed;
}

async function start() {
  const files = new Map(chosen.map((one) => [keyOf(announced(one)), one.file]));
  await run(async (sender) => {
    const begun = interrupted.find((old) => old.files.every((place) => place.offset === place.size || files.has(keyOf(place))));
    const upload = begun ?? (await sender.begin(uploads, chosen.map(announced)));
    if (running !== null) running.upload = upload;
    const byNumber = new Map(upload.files.flatMap((place, number) => {
      const file = files.get(keyOf(place));
      return file === undefined ? [] : [/** @type {[number, File]} */ ([number, file])];
    }));
    const shown = new Map(chosen.map((one, n) => [keyOf(announced(one)), n]));
    const progress = () => showProgress(upload, shown);
    progress();
    await sender.send(upload, byNumber, progress);
    await finish(sender, upload);
  });
}

/** @param {Sender} sender @param {Upload} upload */
async function finish(sender, upload) {
  tell(_("Checking and taking in…"), false);
  const person = {
    patient_name: input("patient-name").value, patient_id: input("patient-id").value, study_date: input("study-date").value,
  };
  const { outcome } = await sender.take(upload, person);
  if (outcome !== null) showOutcome(outcome);
  tell("", false);
}

/** @param {(sender: Sender) => Promise<void>} work */
async function run(work) {
  running = { sender: newSender(), upload: null };
  byId("start").hidden = true;
  try {
    await work(running.sender);
    byId("chosen").hidden = true;
  } catch (error) {
    if (error instanceof Refused) tell(error.message, true);
    else if (!(error instanceof DOMException && error.name === "AbortError")) throw error;
  } finally {
    running = null;
    await lookForInterrupted();
  }
}

async function cancel() {
  const stopped = running;
  byId("chosen").hidden = true;
  chosen = [];
  if (stopped === null) return;
  stopped.sender.stop();
  if (stopped.upload !== null) await stopped.sender.discard(stopped.upload);
  await lookForInterrupted();
}

/** @param {Upload} upload @param {Map<string, number>} shown */
function showProgress(upload, shown) {
  let here = 0;
  let all = 0;
  for (const place of upload.files) {
    here += place.offset;
    all += place.size;
    const line = lines[shown.get(keyOf(place)) ?? -1];
    if (line === undefined) continue;
    const share = place.size === 0 ? 1 : place.offset / place.size;
    line.bar.value = share;
    line.share.textContent = `${Math.floor(100 * share)} %`;
  }
  /** @type {HTMLProgressElement} */ (byId("all")).value = all === 0 ? 1 : here / all;
}

/** @param {Outcome} outcome */
function showOutcome(outcome) {
  byId("outcome").hidden = false;
  byId("counts").textContent =
    _("New images: %(fresh)s. There already: %(duplicate)s. Kept aside as conflicts: %(conflict)s. Left out: %(left_out)s.",
      { fresh: outcome.new, duplicate: outcome.duplicate, conflict: outcome.conflict, left_out: outcome.left_out_count });
  byId("studies").replaceChildren(...outcome.studies.map(({ url, patient, patient_id, study_date, description }) =>
    element("li", {}, element("a", { href: url, text: patient }), ` ${patient_id} · ${study_date} · ${description}`)));
  byId("left-out").hidden = outcome.left_out.length === 0;
  byId("reasons").replaceChildren(...outcome.left_out.map(({ name, reason }) => element("li", {}, element("b", { text: name }), `: ${reason}`)));
}

/** @param {string} text @param {boolean} isTrouble */
function tell(text, isTrouble) {
  byId("told").textContent = text;
  byId("told").classList.toggle("trouble", isTrouble);
}

const drop = byId("drop");
for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", async (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer !== null) choose(await fromDrop(event.dataTransfer));
});
for (const id of ["files", "folder"]) {
  input(id).addEventListener("change", () => {
    choose(fromInput(input(id).files));
    input(id).value = "";
  });
}
byId("start").addEventListener("click", () => void start());
byId("cancel").addEventListener("click", () => void cancel());
addEventListener("beforeunload", (event) => {
  if (running !== null) event.preventDefault();
});

await lookForInterrupted();

/**
 * The review: what was confirmed, by whom and when, and the form to confirm or amend it.
 *
 * @typedef {import("./edit_layer.js").EditLayer} EditLayer
 * @typedef {import("./edit_regions.js").Mark} Mark
 * @typedef {import("./edit_regions.js").RegionFacts} RegionFacts
 * @typedef {import("./edit_tools.js").EditTools} EditTools
 * @typedef {import("./planes.js").Triple} Triple
 * @typedef {import("./review_draft.js").Judged} Judged
 * @typedef {import("./review_draft.js").Outline} Outline
 * @typedef {import("./state.js").ViewState} ViewState
 * @typedef {import("./review_form.js").ReviewForm} ReviewForm
 *
 * @typedef {object} ReviewFacts
 * @property {string} url  of the review
 * @property {string} live  of the event stream
 * @property {string} analysis  row id
 * @property {string} account  row id
 * @property {boolean} positive  what the analysis says of the case
 *
 * @typedef {object} Version  one confirmed review
 * @property {number} version
 * @property {string} reviewer
 * @property {string} at  ISO 8601, UTC
 * @property {boolean} positive
 * @property {string | null} reason  a code where the case was decided otherwise
 * @property {string} reason_text
 * @property {number[]} rejected
 * @property {string} comment
 * @property {Record<string, Mark>} marks  outlines by the person, by lesion
 * @property {Record<string, string[]>} signs
 *
 * @typedef {object} Review  what the server says
 * @property {number} version  0 while nobody confirmed
 * @property {Version[]} history  oldest first
 * @property {{revision: number, judged: Judged} | null} draft  of this reader
 * @property {Record<string, RegionFacts>} regions  that versions and draft name, by digest
 * @property {{mask_url: string, first: Triple, last: Triple}[]} lungs
 * @property {string} you
 * @property {boolean} may_confirm
 * @property {string | null} problem  why the result cannot be confirmed now
 * @property {number} lesion_count
 * @property {Record<string, string>} reasons  words by code
 * @property {Record<string, string>} signs  words by code
 * @property {string} csrf_token
 */
import { element } from "../dom.js";
import { follow } from "../live.js";
import { localTime } from "../time.js";
import { _, _n } from "../words.js";
import { outlineList } from "./edit_list.js";
import { EditRegions } from "./edit_regions.js";
import { bytesOf, fetchAgain } from "./fetching.js";
import { lesionMarks } from "./lesion_marks.js";
import { LesionMask } from "./masks.js";
import { fromBase64, ReviewDraft } from "./review_draft.js";
import { reviewForm } from "./review_form.js";
import { othersHere } from "./review_others.js";
import { RefusedError, ReviewServer } from "./review_server.js";

/**
 * @param {ViewState} state
 * @param {object} parts
 * @param {HTMLElement} parts.box
 * @param {HTMLElement} parts.list  of the lesions
 * @param {ReadonlyMap<number, HTMLElement>} parts.rows  of the list, by lesion
 * @param {EditTools} parts.tools
 * @param {EditLayer} parts.layer
 * @param {ReviewFacts} facts
 */
export function openReview(state, { box, list, rows, tools, layer }, facts) {
  const server = new ReviewServer(facts.url);
  /** The reader's own outlines; those of the confirmed version are shown while nothing can be judged. */
  const mine = tools.regions;
  const confirmedRegions = new EditRegions(state.size, mine.lesions);
  const draft = new ReviewDraft(facts.analysis, facts.account, server, mine);
  const others = othersHere(server);
  const marks = lesionMarks(rows, (lesion, accepted) => {
    if (changing()) judge(lesion, accepted);
  });
  const outlines = outlineList(state, list, rows, {
    remove: (number) => mine.eraseAll(number),
    sign: (number, sign, seen) => {
      const { [number]: before = [], ...rest } = draft.judged.signs;
      const now = seen ? [...before, sign] : before.filter((one) => one !== sign);
      draft.change({ signs: now.length > 0 ? { ...rest, [number]: now } : rest });
    },
  });
  const message = element("p", { class: "message", role: "alert" });
  /** @type {Review | null} */
  let review = null;
  /** @type {ReviewForm | null} */
  let form = null;
  let amending = false;
  /** Whether the reader's own outlines are here: before, what is judged would be kept without them. */
  let drawn = false;
  let begun = false;
  /** What is confirmed is what is shown: meanwhile nothing is changed. */
  let confirming = false;

  /** Whether the reader may change their judgement now. */
  const changing = () => editing() && !confirming;

  /** Whether the reader may judge: nobody has confirmed, or this reader is amending what they saw. */
  function editing() {
    if (!drawn || review === null || !review.may_confirm || review.problem !== null) return false;
    return draft.judged.seen === review.version && (review.version === 0 || amending);
  }

  async function refresh() {
    try {
      await take(await server.state());
    } catch (error) {
      if (!(error instanceof RefusedError)) throw error;
      console.warn(error); // the next event asks again
    }
  }

  /** @param {Review} fresh */
  async function take(fresh) {
    const before = review;
    review = fresh;
    mine.taken = new Set(fresh.history.flatMap((version) => Object.keys(version.marks).map(Number)));
    if (!begun) {
      begun = true;
      bringLungs(fresh.lungs);
      const unsaved = draft.begin(fresh.draft);
      await bringMine(draft.judged.marks, unsaved);
    }
    if (before?.version !== fresh.version || before.problem !== fresh.problem) draw(fresh);
    if (before?.version !== fresh.version) await bring(confirmedRegions, fresh.history.at(-1)?.marks ?? {});
    showMarks();
  }

  /** @param {Review["lungs"]} lungs */
  async function bringLungs(lungs) {
    tools.lungs = await Promise.all(lungs.map(({ mask_url, first, last }) =>
      fetchAgain(mask_url, async (response) => new LesionMask(0, first, last, await bytesOf(response)))));
  }

  /**
   * @param {Record<string, Mark>} kept  by the server
   * @param {Record<string, Outline>} [unsaved]
   */
  async function bringMine(kept, unsaved = {}) {
    drawn = false;
    try {
      await bring(mine, kept, unsaved);
      drawn = true;
    } catch (error) {
      notLoaded(error);
    }
  }

  /** @param {unknown} error */
  function notLoaded(error) {
    console.error(error);
    say(new RefusedError(0, _("Your outlines could not be loaded: reload the page to go on with them.")));
  }

  /**
   * Fetch outlines and put them in the place of those that are there.
   * @param {EditRegions} regions
   * @param {Record<string, Mark>} kept  by the server
   * @param {Record<string, Outline>} [unsaved]
   */
  async function bring(regions, kept, unsaved = {}) {
    const fetched = fetchOutlines(kept, (number) => !(number in unsaved));
    const own = Object.entries(unsaved).map(([number, { box: [x0, y0, z0, x1, y1, z1], bits, grown }]) => {
      const mask = new LesionMask(Number(number), [x0, y0, z0], [x1 - 1, y1 - 1, z1 - 1], fromBase64(bits));
      return { number: Number(number), mask, grown, facts: null };
    });
    regions.take([...(await fetched), ...own]);
    state.redraw();
  }

  /**
   * @param {Record<string, Mark>} kept  by the server
   * @param {(number: string) => boolean} wanted
   */
  function fetchOutlines(kept, wanted) {
    const known = review?.regions ?? {};
    return Promise.all(Object.entries(kept).filter(([number]) => wanted(number)).map(async ([number, { digest, grown }]) => {
      const facts = known[digest];
      const mask = await fetchAgain(facts.mask_url, async (response) => new LesionMask(Number(number), facts.first, facts.last, await bytesOf(response)));
      return { number: Number(number), mask, grown, facts };
    }));
  }

  /** @param {Review} fresh */
  function draw(fresh) {
    const last = fresh.history.at(-1);
    const open = editing();
    form = open ? reviewForm(draft, facts.positive, fresh, { confirm, cancel: last && stopAmending }) : null;
    box.replaceChildren(
      element("h2", { text: _("Review") }),
      others.box,
      ...(last ? [confirmed(last, fresh)] : [element("p", { class: "none", text: _("Not confirmed yet.") })]),
      ...(fresh.history.length > 1 ? [earlier(fresh)] : []),
      ...(fresh.problem === null ? [] : [element("p", { class: "caution", text: fresh.problem })]),
      ...(form ? [form.box] : []),
      ...(last && !open && fresh.may_confirm && fresh.problem === null ? amendment(last, fresh) : []),
      message,
    );
    box.hidden = false;
    showMarks();
  }

  function showMarks() {
    if (review === null) return;
    form?.show(!confirming);
    const last = review.history.at(-1);
    const open = editing();
    const { lesions, signs } = draft.judged;
    mine.judged = lesions;
    if (open) marks.show(lesions, !confirming);
    else marks.show(last ? judgedIn(last, rows.keys()) : {}, false);
    tools.open = changing();
    layer.regions = open ? mine : confirmedRegions;
    outlines.show({ regions: layer.regions, signs: open ? signs : last?.signs ?? {}, open: changing(), you: review.you, words: review.signs });
    showProblem();
    state.redraw();
  }

  /** What keeps the draft from being saved, if anything does. */
  function showProblem() {
    if (draft.problem === null && !draft.overtaken) {
      if (message.dataset.of === "draft") message.replaceChildren();
      return;
    }
    message.dataset.of = "draft";
    message.textContent = draft.problem?.message ?? _("You changed this review in another window since: choose which of the two you keep.");
    if (!draft.overtaken) return;
    const here = element("button", { type: "button", class: "keep-here", text: _("Keep what is here") });
    here.addEventListener("click", () => decide(true));
    const other = element("button", { type: "button", class: "take-other", text: _("Take the other") });
    other.addEventListener("click", () => decide(false));
    message.append(" ", here, " ", other);
  }

  /** Of two windows of the reader, one stays. @param {boolean} here */
  async function decide(here) {
    try {
      const fresh = await server.state();
      review = fresh;
      if (here) {
        draft.replaceSaved(fresh.draft?.revision ?? 0);
      } else {
        draft.adopt(fresh.draft);
        await bringMine(draft.judged.marks);
      }
      draw(fresh);
    } catch (error) {
      say(error);
    }
  }

  /** @param {unknown} error */
  function say(error) {
    if (!(error instanceof RefusedError)) throw error;
    message.dataset.of = "answer";
    message.textContent = error.message;
  }

  function silence() {
    message.dataset.of = "";
    message.replaceChildren();
  }

  /**
   * The button that opens the form again, and a word when the reader was overtaken.
   * @param {Version} last
   * @param {Review} fresh
   */
  function amendment(last, fresh) {
    const button = element("button", { type: "button", class: "amend", text: draft.begun ? _("Amend with your marks") : _("Amend") });
    button.addEventListener("click", async () => {
      button.disabled = true; // one press is one amendment
      silence();
      let judged;
      if (draft.begun) {
        judged = draft.judged.seen === fresh.version ? {} : await merged(last, fresh);
      } else {
        await bringMine(last.marks);
        judged = asJudged(last, rows.keys());
      }
      button.disabled = false;
      if (!drawn || review?.version !== fresh.version) return;
      amending = true;
      draft.change({ ...judged, seen: fresh.version });
      draw(review);
    });
    if (!draft.begun) return [button];
    const discard = element("button", { type: "button", class: "discard", text: _("Discard them") });
    discard.addEventListener("click", stopAmending);
    const overtaken = _("You have marks that were not confirmed; %(name)s confirmed this result on %(at)s.", { name: last.reviewer, at: localTime(last.at) });
    return [element("p", { class: "caution", text: overtaken }), button, discard];
  }

  /**
   * The confirmed version with the reader's own marks over it: nothing of it goes but what they judged otherwise.
   * @param {Version} last
   * @param {Review} fresh
   */
  async function merged(last, fresh) {
    drawn = false;
    const { seen, lesions, positive, reason, reason_text, comment, signs } = draft.judged;
    const numbersOf = (/** @type {Version[]} */ versions) => versions.flatMap(({ marks }) => Object.keys(marks).map(Number));
    const before = numbersOf(fresh.history.slice(0, seen));
    const theirs = numbersOf(fresh.history.slice(seen)).filter((number) => mine.isAdded(number) && !before.includes(number));
    try {
      const kept = await fetchOutlines(last.marks, (number) => theirs.includes(Number(number)) || !mine.regions.has(Number(number)));
      const moved = mine.renumber([...new Set(theirs)]);
      mine.add(kept);
      drawn = true;
      const ownSigns = Object.fromEntries(Object.entries(signs).map(([number, seenThere]) => [moved.get(Number(number)) ?? number, seenThere]));
      const base = asJudged(last, rows.keys());
      return {
        ...base,
        ...(positive === null ? {} : { positive, reason, reason_text }),
        lesions: { ...base.lesions, ...lesions },
        comment: comment || base.comment,
        signs: { ...base.signs, ...ownSigns },
      };
    } catch (error) {
      notLoaded(error);
    }
  }

  async function stopAmending() {
    try {
      await draft.forget();
    } catch (error) {
      say(error);
      return;
    }
    amending = false;
    mine.take([]);
    silence();
    if (review) draw(review);
  }

  async function confirm() {
    if (confirming) return; // one press is one review
    mine.endStroke();
    confirming = true;
    silence();
    showMarks();
    try {
      await draft.flush();
      const { seen, lesions, positive, reason, reason_text, comment, signs } = draft.judged;
      const otherwise = positive !== facts.positive;
      const outlined = standing(mine.marks());
      const present = Object.fromEntries(Object.entries(signs).filter(([number]) => number in outlined || lesions[number]));
      const fresh = await server.confirm({
        seen,
        lesions,
        positive,
        reason: otherwise ? reason || null : null,
        reason_text: otherwise ? reason_text : "",
        comment,
        signs: present,
        marks: outlined,
      });
      amending = false;
      mine.take([]);
      draft.confirmed();
      await take(fresh);
    } catch (error) {
      say(error);
      await refresh();
    } finally {
      confirming = false;
      showMarks();
    }
  }

  /** Without those of lesions that were rejected after they were outlined. @param {Record<string, Mark>} outlined */
  function standing(outlined) {
    return Object.fromEntries(Object.entries(outlined).filter(([number]) => draft.judged.lesions[number] !== false));
  }

  /** @param {number} lesion @param {boolean} accepted */
  function judge(lesion, accepted) {
    if (!mine.isAdded(lesion)) draft.mark(lesion, accepted);
    else if (!accepted) mine.eraseAll(lesion);
  }

  draft.onChange(showMarks);
  mine.onChange((number, judged) => {
    const { [number]: _before, ...rest } = draft.judged.lesions;
    if (mine.isAdded(number)) draft.change({});
    else draft.change({ lesions: judged === undefined ? rest : { ...rest, [number]: judged } });
  });

  return {
    /** Ask what was confirmed, now and whenever anything happens. */
    start() {
      /** @type {string | null} */
      let marker = null;
      follow(facts.live, (pulse) => {
        if (pulse.marker !== marker) refresh();
        marker = pulse.marker;
      }, refresh);
      refresh();
      others.ask();
      addEventListener("beforeunload", (event) => {
        if (!draft.saved) event.preventDefault();
      });
      addEventListener("pagehide", () => draft.leave());
    },
    /** Accept or reject the chosen lesion. @param {boolean} accepted */
    markChosen(accepted) {
      if (state.lesion !== null && changing()) judge(state.lesion, accepted);
    },
    /** Save what is judged and not saved yet. */
    flush: () => draft.flush(),
  };
}

/**
 * @param {Version} version
 * @param {Review} review
 */
function confirmed(version, { reasons, lesion_count }) {
  const { reviewer, at, positive, reason, reason_text, rejected, comment } = version;
  const answer = reason === null
    ? positive ? _("Confirmed: positive") : _("Confirmed: negative")
    : positive ? _("Overridden: positive") : _("Overridden: negative");
  const why = reason === null ? [] : [[reasons[reason] ?? reason, reason_text].filter(Boolean).join(": ")];
  const none = rejected.length > 0 ? [_n("Rejected: lesion %(numbers)s", "Rejected: lesions %(numbers)s", rejected.length, { numbers: rejected.join(", ") })] : [];
  const outlined = Object.keys(version.marks).map(Number);
  const [added, corrected] = [outlined.filter((number) => number > lesion_count), outlined.filter((number) => number <= lesion_count)];
  const drawn = [
    ...(added.length > 0 ? [_n("Added: lesion %(numbers)s", "Added: lesions %(numbers)s", added.length, { numbers: added.join(", ") })] : []),
    ...(corrected.length > 0 ? [_n("Outlined anew: lesion %(numbers)s", "Outlined anew: lesions %(numbers)s", corrected.length, { numbers: corrected.join(", ") })] : []),
  ];
  return element("div", { class: "confirmed" },
    element("p", { class: "answer", text: answer }),
    element("p", { class: "who", text: _("%(name)s, %(at)s, version %(version)s", { name: reviewer, at: localTime(at), version: version.version }) }),
    ...[...why, ...none, ...drawn].map((text) => element("p", { text })),
    ...(comment ? [element("p", { class: "comment", text: comment })] : []));
}

/** @param {Review} review */
function earlier(review) {
  const versions = review.history.slice(0, -1).reverse();
  return element("details", { class: "history" },
    element("summary", { text: _("Earlier versions: %(count)s", { count: versions.length }) }),
    ...versions.map((version) => confirmed(version, review)));
}

/**
 * @param {Version} version
 * @param {Iterable<number>} lesions
 * @returns {Record<string, boolean>}
 */
function judgedIn(version, lesions) {
  return Object.fromEntries([...lesions].map((lesion) => [lesion, !version.rejected.includes(lesion)]));
}

/**
 * A confirmed version as the start of an amendment.
 * @param {Version} version
 * @param {Iterable<number>} lesions
 */
function asJudged(version, lesions) {
  const { positive, reason, reason_text, comment, signs } = version;
  return { lesions: judgedIn(version, lesions), positive, reason: reason ?? "", reason_text, comment, signs };
}

/**
 * The review: what was confirmed, by whom and when, and the form to confirm or amend it.
 *
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
 *
 * @typedef {object} Review  what the server says
 * @property {number} version  0 while nobody confirmed
 * @property {Version[]} history  oldest first
 * @property {boolean} may_confirm
 * @property {string | null} problem  why the result cannot be confirmed now
 * @property {number} lesion_count
 * @property {Record<string, string>} reasons  words by code
 * @property {string} csrf_token
 */
import { element } from "../dom.js";
import { fetchJson, follow } from "../live.js";
import { localTime } from "../time.js";
import { lesionMarks } from "./lesion_marks.js";
import { ReviewDraft } from "./review_draft.js";
import { reviewForm } from "./review_form.js";

const NO_CONNECTION = "No connection. Your marks are kept; try again.";

/**
 * @param {ViewState} state
 * @param {HTMLElement} box
 * @param {ReadonlyMap<number, HTMLElement>} rows  of the lesion list, by lesion
 * @param {ReviewFacts} facts
 */
export function openReview(state, box, rows, facts) {
  const draft = new ReviewDraft(facts.analysis, facts.account);
  const marks = lesionMarks(rows, (lesion, accepted) => {
    if (editing()) draft.mark(lesion, accepted);
  });
  const message = element("p", { class: "message", role: "alert" });
  /** @type {Review | null} */
  let review = null;
  /** @type {ReviewForm | null} */
  let form = null;
  let amending = false;

  /** Whether the reader may judge now: nobody has confirmed, or this reader is amending what they saw. */
  function editing() {
    if (review === null || !review.may_confirm || review.problem !== null) return false;
    return draft.judged.seen === review.version && (review.version === 0 || amending);
  }

  async function refresh() {
    try {
      take(/** @type {Review} */ (await fetchJson(facts.url)));
    } catch (error) {
      console.warn(error); // the next event asks again
    }
  }

  /** @param {Review} fresh */
  function take(fresh) {
    const before = review;
    review = fresh;
    if (before?.version !== fresh.version || before.problem !== fresh.problem) draw(fresh);
  }

  /** @param {Review} fresh */
  function draw(fresh) {
    const last = fresh.history.at(-1);
    const open = editing();
    form = open ? reviewForm(draft, facts.positive, fresh, { confirm, cancel: last && stopAmending }) : null;
    box.replaceChildren(
      element("h2", { text: "Review" }),
      ...(last ? [confirmed(last, fresh)] : [element("p", { class: "none", text: "Not confirmed yet." })]),
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
    form?.show();
    const last = review?.history.at(-1);
    if (editing()) marks.show(draft.judged.lesions, true);
    else marks.show(last ? judgedIn(last, rows.keys()) : {}, false);
  }

  /**
   * The button that opens the form again, and a word when the reader was overtaken.
   * @param {Version} last
   * @param {Review} fresh
   */
  function amendment(last, fresh) {
    const button = element("button", { type: "button", class: "amend", text: draft.begun ? "Amend with your marks" : "Amend" });
    button.addEventListener("click", () => {
      amending = true;
      draft.change(draft.begun ? { seen: fresh.version } : { ...asJudged(last, rows.keys()), seen: fresh.version });
      message.textContent = "";
      draw(fresh);
    });
    if (!draft.begun) return [button];
    const discard = element("button", { type: "button", class: "discard", text: "Discard them" });
    discard.addEventListener("click", stopAmending);
    const overtaken = `You have marks that were not confirmed; ${last.reviewer} confirmed this result on ${localTime(last.at)}.`;
    return [element("p", { class: "caution", text: overtaken }), button, discard];
  }

  function stopAmending() {
    amending = false;
    draft.forget();
    message.textContent = "";
    if (review) draw(review);
  }

  async function confirm() {
    const { seen, lesions, positive, reason, reason_text, comment } = draft.judged;
    const otherwise = positive !== facts.positive;
    const judgement = { seen, lesions, positive, reason: otherwise ? reason || null : null, reason_text: otherwise ? reason_text : "", comment };
    message.textContent = "";
    try {
      // The token may be of a session that has ended since; this one, or the sign-in, comes first.
      const { csrf_token } = /** @type {Review} */ (await fetchJson(facts.url));
      const response = await fetch(facts.url, {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-CSRFToken": csrf_token },
        body: JSON.stringify(judgement),
      });
      const said = await response.json();
      if (response.ok) {
        amending = false;
        draft.forget();
        review = said;
        draw(said);
      } else {
        message.textContent = said.error;
        await refresh();
      }
    } catch (error) {
      console.warn(error);
      message.textContent = NO_CONNECTION;
    }
  }

  draft.onChange(showMarks);

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
    },
    /** Accept or reject the chosen lesion. @param {boolean} accepted */
    markChosen(accepted) {
      if (state.lesion !== null && editing()) draft.mark(state.lesion, accepted);
    },
  };
}

/**
 * @param {Version} version
 * @param {Review} review
 */
function confirmed(version, { reasons }) {
  const { reviewer, at, positive, reason, reason_text, rejected, comment } = version;
  const answer = positive ? "positive" : "negative";
  const why = reason === null ? [] : [[reasons[reason] ?? reason, reason_text].filter(Boolean).join(": ")];
  const none = rejected.length > 0 ? [`Rejected: lesion${rejected.length > 1 ? "s" : ""} ${rejected.join(", ")}`] : [];
  return element("div", { class: "confirmed" },
    element("p", { class: "answer", text: `${reason === null ? "Confirmed" : "Overridden"}: ${answer}` }),
    element("p", { class: "who", text: `${reviewer}, ${localTime(at)}, version ${version.version}` }),
    ...[...why, ...none].map((text) => element("p", { text })),
    ...(comment ? [element("p", { class: "comment", text: comment })] : []));
}

/** @param {Review} review */
function earlier(review) {
  const versions = review.history.slice(0, -1).reverse();
  return element("details", { class: "history" },
    element("summary", { text: `Earlier versions: ${versions.length}` }),
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
  const { positive, reason, reason_text, comment } = version;
  return { lesions: judgedIn(version, lesions), positive, reason: reason ?? "", reason_text, comment };
}

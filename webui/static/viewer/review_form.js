/**
 * The form of a review: the case, why it is decided otherwise, a comment, and the button.
 *
 * @typedef {import("./review_draft.js").ReviewDraft} ReviewDraft
 * @typedef {import("./review_panel.js").Review} Review
 *
 * @typedef {object} ReviewForm
 * @property {HTMLElement} box
 * @property {(open: boolean) => void} show  brings the form up to date with the draft; `open`: it can be changed
 */
import { element } from "../dom.js";
import { _ } from "../words.js";

const TEXT_LIMIT = "2000"; // appliance.reviews.TEXT_LIMIT

/**
 * @param {ReviewDraft} draft
 * @param {boolean} analysisSays  positive
 * @param {Review} review
 * @param {object} actions
 * @param {() => Promise<void>} actions.confirm
 * @param {(() => void) | undefined} actions.cancel  absent where there is nothing to go back to
 * @returns {ReviewForm}
 */
export function reviewForm(draft, analysisSays, review, { confirm, cancel }) {
  const lesions = Array.from({ length: review.lesion_count }, (_, i) => i + 1);
  const answers = [true, false].map((positive) => {
    const [word, agreeing] = positive
      ? [_("Positive"), _("Positive, as the analysis")]
      : [_("Negative"), _("Negative, as the analysis")];
    const button = element("button", { type: "button", text: positive === analysisSays ? agreeing : word });
    button.addEventListener("click", () => draft.change({ positive }));
    return { positive, button };
  });

  const reason = element("select", { "aria-label": _("Reason") },
    element("option", { value: "", text: _("Choose a reason") }),
    ...Object.entries(review.reasons).map(([value, text]) => element("option", { value, text })));
  reason.addEventListener("change", () => draft.change({ reason: reason.value }));
  const reasonText = element("input", { type: "text", maxlength: TEXT_LIMIT, placeholder: _("In words"), "aria-label": _("Reason in words") });
  reasonText.addEventListener("input", () => draft.change({ reason_text: reasonText.value }));
  const why = element("div", { class: "why" }, reason, reasonText);

  const comment = element("textarea", { rows: "2", maxlength: TEXT_LIMIT, placeholder: _("Comment"), "aria-label": _("Comment") });
  comment.addEventListener("input", () => draft.change({ comment: comment.value }));

  const left = element("span");
  const rest = element("button", { type: "button", class: "rest", text: _("Accept the rest") });
  rest.addEventListener("click", () => draft.acceptRest(lesions));
  const submit = element("button", { type: "button", class: "primary confirm", text: review.version === 0 ? _("Confirm") : _("Confirm the amendment") });
  const back = element("button", { type: "button", class: "quiet cancel", text: _("Cancel") });
  back.addEventListener("click", () => cancel?.());
  back.hidden = cancel === undefined;

  // No <form>: Enter in a text field would confirm.
  const box = element("div", { class: "form" },
    element("div", { class: "answers", role: "group", "aria-label": _("The case") }, ...answers.map(({ button }) => button)),
    why,
    comment,
    element("p", { class: "left" }, left, rest),
    element("p", { class: "actions" }, submit, back));
  submit.addEventListener("click", () => confirm());

  /** @param {boolean} open */
  function show(open) {
    const { judged } = draft;
    box.inert = !open;
    for (const { positive, button } of answers) button.setAttribute("aria-pressed", String(judged.positive === positive));
    why.hidden = judged.positive === null || judged.positive === analysisSays;
    // Only what differs: setting a value moves the cursor of whoever is typing in it.
    if (reason.value !== judged.reason) reason.value = judged.reason;
    if (reasonText.value !== judged.reason_text) reasonText.value = judged.reason_text;
    if (comment.value !== judged.comment) comment.value = judged.comment;
    const judgedLesions = lesions.filter((lesion) => judged.lesions[lesion] !== undefined).length;
    left.textContent = _("%(judged)s of %(all)s lesions judged", { judged: judgedLesions, all: lesions.length });
    rest.hidden = judgedLesions === lesions.length;
    submit.disabled = !open || judged.positive === null || judgedLesions < lesions.length;
  }

  return { box, show };
}

"""Sentences of the packages below that pages show, so that they are translated there.

Those packages speak English, to logs, to the audit and to other systems too, and know no reader.
`told` finds a sentence of theirs again, with the values that were put into it, and says it in the
reader's language; what stands in no table here stays as it is. A test finds each of them where it
comes from.
"""

import re
from functools import lru_cache
from typing import Final

from webui.language import ENGLISH, gettext, marked, spoken

WORDS: Final = (
    # appliance.accounts.Role
    marked("radiologist"),
    marked("senior radiologist"),
    marked("annotator"),
    marked("inspector"),
    marked("administrator"),
    marked("viewer"),
    # pipelines.tasks.STEPS and pipelines.analysis; the models' purposes, and what a step found
    marked("reading"),
    marked("lungs"),
    marked("lesions"),
    marked("screening"),
    marked("second opinion"),
    marked("heat map"),
    marked("saving"),
    marked("pneumonia"),
    marked("severity"),
    marked("slices"),
    marked("refused"),
    # appliance.retrievals.Why
    marked("standing query"),
    marked("prior"),
    marked("new study"),
    marked("by hand"),
    # appliance.lifecycle
    marked("late instance"),
    marked("the worker stopped answering"),
    marked("sent again by hand"),
    marked("the appliance was stopped"),
)

SENTENCES: Final = (
    # pipelines.analysis and pipelines.quality
    marked("The scan ends inside the lungs: lesions beyond its ends are not seen."),
    marked("The COVID-likeness is that of a part of the lungs, for which it was not measured."),
    marked(
        "The case is called COVID-like, but no lesion was found: nothing that can be pointed at"
        " speaks for it."
    ),
    marked("The lungs lie in too few slices for a second opinion."),
    marked("High values are cut off in this series: whether metal causes streaks cannot be told."),
    marked(
        "Metal in the slices of the lungs (%(volume)s ml above %(limit)s HU): streaks may hide or"
        " imitate lesions."
    ),
    marked(
        "Motion (contours jump by up to %(length)s mm between slices, in %(told_places)s): lesions"
        " there may be missed, doubled or measured wrongly."
    ),
    marked("1 place"),
    marked("%(count)s places"),
    marked(
        "Noise (%(noise)s HU in soft tissue, %(limit)s HU or more is unusual): faint ground glass"
        " may be missed, and noise taken for it."
    ),
    marked(
        "The field of view cuts the lungs (%(area)s cm² at its edge): lesions beyond it are not"
        " seen, and volumes are too small."
    ),
    marked(
        "The field of view cuts the body (%(percent)s %% of its outline at the edge): HU near the"
        " edge may be wrong."
    ),
    # appliance.priority
    marked("rule %(name)s"),
    marked("by %(name)s"),
    # appliance.retention
    marked("Still arriving, waiting or being analysed"),
    marked("Their analysis failed: send them again or remove them by hand"),
    marked("Nobody confirmed their result ([retention] unconfirmed)"),
    marked(
        "Results of them are not sent yet, or could not be: `appliance dicom deliveries`",
    ),
    marked("More of them is being retrieved"),
    marked("Somebody looked at them within a day"),
    marked("Younger than [retention] at_least_days"),
    # appliance.reviews and appliance.drafts
    marked("There is no such result."),
    marked("The result has no lesion %(lesion)s."),
    marked("Accept or reject every lesion; left are %(lesions)s."),
    marked("A reason is only given where the case is decided otherwise."),
    marked("Say why the case is decided otherwise: choose a reason."),
    marked("Words beside a reason need the reason: choose one."),
    marked("Say in words why the case is decided otherwise."),
    marked("A text has at most %(limit)s characters: shorten it."),
    marked("A review has at most %(limit)s marked lesions."),
    marked("Lesion %(lesion)s is rejected and outlined: decide for one of the two."),
    marked("There is no lesion %(lesion)s for the signs that were chosen."),
    marked("Lesions are numbered from 1."),
    marked("Lesions are numbered up to %(limit)s."),
    marked("A marked lesion is not here: draw it again."),
    marked("A region of the draft is not here: draw it again."),
    marked("You changed this review in another window since: choose which of the two you keep."),
    marked("A newer result replaced this one: look at that and confirm it."),
    marked(
        "More images came, and their analysis failed: ask an administrator to start it anew.",
    ),
    marked("More images came, and a new analysis is on its way: confirm its result."),
    marked("Nobody has confirmed this result yet: reload the page."),
    marked(
        "%(name)s confirmed this result on %(at)s (version %(version)s): look at that, and amend it"
        " if you disagree."
    ),
    # pipelines.marks
    marked("A region needs the two corners of its box."),
    marked("The box of the region does not lie in the volume."),
    marked("The region has no voxel."),
    # appliance.measurements
    marked("The measurement lacks its plane or a point: draw it again."),
    marked("A value of the measurement is no number: draw it again."),
    marked("A note has at most %(limit)s characters: shorten it."),
    marked("There are %(count)s measurements already: delete some."),
    # appliance.uploads
    marked("The file has changed since it was chosen: choose it again."),
    marked("The upload was cancelled."),
    marked("Choose at least one file."),
    marked("At most %(count)s files go at once: choose fewer, or a zip file."),
    marked("At most %(size)s GiB go at once: choose fewer files."),
    marked("%(count)s uploads of yours were not finished: finish or discard one of them."),
    marked("Another request is still at it: try again in a moment."),
    # appliance.accounts
    marked("there is a user %(name)s already; choose another name."),
    marked("%(name)s signs in at the identity provider and has no password here."),
    marked("That is the old password: choose another one."),
    marked("The old password is wrong, or the account is locked for a while."),
    marked("the role of %(name)s comes from the identity provider: change it there."),
    marked(
        "There is another user %(name)s here. Ask an administrator: one of the two needs another"
        " name."
    ),
    marked("Your account here is disabled. Ask an administrator."),
    marked("%(name)s is the last administrator: make somebody else one first."),
    marked("a user's name has 1 to %(limit)s printable characters."),
    marked("A password has at least %(limit)s characters: take a few words."),
    marked("This password would be guessed early: take a few words that do not belong together."),
)

PLACE: Final = re.compile(r"%\((\w+)\)s")
TOLD: Final = "told_"
"""Begins the name of a value that is a text of this table itself."""


def told(text: str | None) -> str:
    """A sentence of a package below in the reader's language; nothing for none."""
    if not text or spoken() == ENGLISH:
        return text or ""
    said = gettext(text)
    if said != text:
        return said
    for sentence, pattern in _patterns():
        if (match := pattern.fullmatch(text)) is not None:
            values = match.groupdict()
            within = {name: told(values[name]) for name in values if name.startswith(TOLD)}
            return gettext(sentence, **(values | within))
    return text


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """What finds a sentence with values again."""
    found = []
    for sentence in SENTENCES:
        parts = PLACE.split(sentence.replace("%%", "%"))
        if len(parts) > 1:
            ways = [
                f"(?P<{part}>.+)" if place % 2 else re.escape(part)
                for place, part in enumerate(parts)
            ]
            found.append((sentence, re.compile("".join(ways))))
    return tuple(found)

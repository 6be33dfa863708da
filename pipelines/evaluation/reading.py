"""One case through the models, held against its truth."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.analysis import Models, analyse
from pipelines.display import lesion_mask, lung_mask, question, regions_in_question
from pipelines.errors import PipelineError
from pipelines.evaluation.metrics import Region, dice, regions
from pipelines.inference import predict_slices
from pipelines.manifest import Case, Domain, Stack
from pipelines.preprocessing import window
from pipelines.screening import lung_slices
from pipelines.volume import CTVolume

FEWEST_SLICES: Final = 16  # of a stack in HU that the automatic run is given
WIDEST_PICTURE: Final = 256  # pixels
LUNG_WINDOW_HU: Final = (-1350.0, 150.0)  # level -600, width 1500

CaseKey = tuple[str, str]
"""The name of a data set and the id of a case in it."""


@dataclass(frozen=True)
class Overlap:
    """Voxels of the mask, of the truth, and of both."""

    mask: int
    truth: int
    both: int


@dataclass(frozen=True)
class SliceMarks:
    """Slices that somebody marked as infected or not, and how many have a lesion found in them.

    Where there is no answer all count as wrong: no marked slice as hit, every other one.
    """

    marked: int
    marked_hit: int
    unmarked: int
    unmarked_hit: int


@dataclass(frozen=True)
class CaseResult:
    """What the models said of one case; None where there is no truth to hold it against.

    Attributes:
        answered: Whether the models could say anything; if not, the masks count as empty, and the
            case as called wrongly, whatever it is.
        probability: That the case is COVID-like; None where no classifier applies or answered.
        classes: What the second opinion says, where it was asked; empty where it had no answer.
        grade: What it says of the severity, if anything.
        positive: Whether the case was called so; None where no classifier applies, False where
            there is no answer.
        lung_dice: Of the lungs found.
        lesion_dice: Of the lesions found in the lungs found; None where the truth has no lesion.
        lesion_dice_given_lungs: Of the lesions found in the true lungs, for display stacks;
            likewise.
        overlap: Voxels of the lesions found and true, to pool cases.
        lesions: The true lesions, met or not.
        regions: The regions found, met by a true lesion or not; None where none were asked for.
        slices: Marked and unmarked slices hit.
        notes: What the automatic run warned of, or why there is no answer.
    """

    case: Case
    data_set: str
    answered: bool = True
    probability: float | None = None
    classes: Mapping[str, float] | None = None
    grade: str | None = None
    positive: bool | None = None
    lung_dice: float | None = None
    lesion_dice: float | None = None
    lesion_dice_given_lungs: float | None = None
    overlap: Overlap | None = None
    lesions: tuple[Region, ...] = ()
    regions: tuple[Region, ...] | None = None
    slices: SliceMarks | None = None
    notes: tuple[str, ...] = ()
    picture: "Picture | None" = None

    @property
    def key(self) -> CaseKey:
        """What the case is called among the cases of several sets."""
        return self.data_set, self.case.id

    @property
    def group(self) -> tuple[str, str]:
        """Its group among those of several sets."""
        return self.data_set, self.case.group

    @property
    def false_regions(self) -> tuple[Region, ...]:
        """The regions found that touch no true lesion; none where the truth is not known."""
        if self.overlap is None:
            return ()
        return tuple(region for region in self.regions or () if not region.met)


@dataclass(frozen=True, eq=False)
class Picture:
    """The slice worth looking at: grey from 0 to 255 and both masks, (y, x), 256 wide at most."""

    grey: NDArray[np.uint8]
    found: NDArray[np.bool_]
    truth: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Answer:
    """What the models say of a stack, masks (z, y, x) on its own grid; None where not asked."""

    answered: bool = True
    lung: NDArray[np.bool_] | None = None
    lesion: NDArray[np.bool_] | None = None
    lesion_given_lungs: NDArray[np.bool_] | None = None
    probability: float | None = None
    classes: Mapping[str, float] | None = None
    grade: str | None = None
    positive: bool | None = None
    notes: tuple[str, ...] = ()


def read(stack: Stack, data_set: str, models: Models) -> CaseResult:
    """Return what the models say of a case, and how far it is from the truth.

    A stack in HU goes through the automatic run; a few slices in HU are asked for their lungs
    alone; 8-bit slices and stacks are read as `pipelines.display` describes.
    """
    try:
        if stack.case.domain is Domain.DISPLAY:
            answer = _display(stack, models)
        elif _for_lungs_alone(stack):
            grey = window(stack.image, models.lungs.config.window_hu)
            answer = Answer(lung=_lungs(grey, stack, models))
        else:
            answer = _automatic_run(stack, models)
    except PipelineError as error:
        answer = _no_answer(stack, models, str(error))
    return _against_truth(stack, data_set, answer)


def unreadable(case: Case, data_set: str, models: Models, reason: str) -> CaseResult:
    """Return a case whose files cannot be read: whatever it names was missed."""
    marks = case.lesion_slices
    lung_dice = None if case.lung is None else 0.0
    lesion_dice = None if case.lesion is None else 0.0
    return CaseResult(
        case=case,
        data_set=data_set,
        answered=False,
        classes=_no_opinion(case, models),
        positive=False,
        lung_dice=lung_dice,
        lesion_dice=lesion_dice,
        lesion_dice_given_lungs=lesion_dice if _in_true_lungs(case) else None,
        slices=None if marks is None else SliceMarks(len(marks), 0, 0, 0),
        notes=(reason,),
    )


def as_volume(stack: Stack) -> CTVolume:
    """Return a stack in HU as the pipeline takes it; its origin is arbitrary."""
    dz, dy, dx = stack.spacing
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = dz, dy, dx, 1.0
    return CTVolume.from_input(stack.image, affine, series_uid=stack.case.id)


def _automatic_run(stack: Stack, models: Models) -> Answer:
    found = analyse(as_volume(stack), models)
    opinion = found.second_opinion
    return Answer(
        lung=found.lung_mask > 0,
        lesion=found.lesion_labels > 0,
        probability=found.probability,
        classes=opinion.probabilities if opinion else _no_opinion(stack.case, models),
        grade=opinion.severity if opinion else None,
        positive=found.positive,
        notes=found.warnings,
    )


def _in_true_lungs(case: Case) -> bool:
    """Return whether lesions are also sought in the true lungs."""
    return case.domain is Domain.DISPLAY and case.lung is not None and case.lesion is not None


def _for_lungs_alone(stack: Stack) -> bool:
    return stack.case.domain is Domain.HU and len(stack.image) < FEWEST_SLICES


def _no_opinion(case: Case, models: Models) -> dict[str, float] | None:
    """Return the second opinion that has no answer; None where it is not asked."""
    return None if models.opinion is None or case.domain is not Domain.HU else {}


def _no_answer(stack: Stack, models: Models, reason: str) -> Answer:
    nothing = np.zeros(stack.image.shape, dtype=bool)
    if _for_lungs_alone(stack):
        return Answer(answered=False, lung=nothing, notes=(reason,))
    return Answer(
        answered=False,
        lung=nothing,
        lesion=nothing,
        lesion_given_lungs=nothing if _in_true_lungs(stack.case) else None,
        classes=_no_opinion(stack.case, models),
        positive=False,
        notes=(reason,),
    )


def _display(stack: Stack, models: Models) -> Answer:
    grey = np.divide(stack.image, 255, dtype=np.float32)
    lung = _lungs(grey, stack, models)
    given_lungs = (
        None
        if stack.lung is None or stack.lesion is None
        else _lesions(grey, stack.lung, stack, models)
    )
    if not lung.any():
        return Answer(
            answered=False,
            lung=lung,
            lesion=np.zeros_like(lung),
            lesion_given_lungs=given_lungs,
            positive=False,
            notes=("No lungs were found.",),
        )
    lesion = _lesions(grey, lung, stack, models)
    probability = _covid_like(grey, lung, lesion, models)
    return Answer(
        lung=lung,
        lesion=lesion,
        lesion_given_lungs=given_lungs,
        probability=probability,
        positive=probability >= float(models.screening.config.decision["threshold"]),
    )


def _lungs(grey: NDArray[np.float32], stack: Stack, models: Models) -> NDArray[np.bool_]:
    return np.stack([lung_mask(plane, stack.spacing[2], models.lungs) for plane in grey])


def _lesions(
    grey: NDArray[np.float32], lung: NDArray[np.bool_], stack: Stack, models: Models
) -> NDArray[np.bool_]:
    config = models.lesions.config
    return lesion_mask(
        grey, lung, stack.spacing, config.spacing, models.lesions.probability, config.decision
    )


def _covid_like(
    grey: NDArray[np.float32],
    lung: NDArray[np.bool_],
    lesion: NDArray[np.bool_],
    models: Models,
) -> float:
    """Return the mean score of the slices with most lesion, each asked about all its lesions."""
    size = int(models.screening.config.preprocessing["size"])
    questions = [
        question(grey[z], lung[z], regions_in_question(lesion[z]) > 0, size)
        for z in lung_slices(lung.astype(np.uint8), lesion.astype(np.uint16))
    ]
    return float(predict_slices(models.screening.engine, np.stack(questions)).mean())


def _against_truth(stack: Stack, data_set: str, answer: Answer) -> CaseResult:
    lung_dice = lesion_dice = given_lungs = overlap = slices = picture = found = None
    lesions: tuple[Region, ...] = ()
    if answer.lung is not None and stack.lung is not None:
        lung_dice = dice(answer.lung, stack.lung)
    if answer.lesion is not None:
        truth = np.zeros_like(answer.lesion) if stack.lesion is None else stack.lesion
        found = tuple(regions(answer.lesion, truth, stack.spacing))
        picture = _picture(stack, answer.lesion, truth)
    if answer.lesion is not None and stack.lesion is not None:
        both = int((answer.lesion & stack.lesion).sum())
        overlap = Overlap(int(answer.lesion.sum()), int(stack.lesion.sum()), both)
        lesions = tuple(regions(stack.lesion, answer.lesion, stack.spacing))
        lesion_dice = dice(answer.lesion, stack.lesion) if lesions else None
        if lesions and answer.lesion_given_lungs is not None:
            given_lungs = dice(answer.lesion_given_lungs, stack.lesion)
    if answer.lesion is not None and stack.case.lesion_slices is not None:
        slices = _slice_marks(answer, answer.lesion, stack.case.lesion_slices)
    return CaseResult(
        case=stack.case,
        data_set=data_set,
        answered=answer.answered,
        probability=answer.probability,
        classes=answer.classes,
        grade=answer.grade,
        positive=answer.positive,
        lung_dice=lung_dice,
        lesion_dice=lesion_dice,
        lesion_dice_given_lungs=given_lungs,
        overlap=overlap,
        lesions=lesions,
        regions=found,
        slices=slices,
        notes=answer.notes,
        picture=picture,
    )


def _slice_marks(answer: Answer, lesion: NDArray[np.bool_], marks: tuple[int, ...]) -> SliceMarks:
    marked = np.zeros(len(lesion), dtype=bool)
    marked[list(marks)] = True
    hit = lesion.any(axis=(1, 2)) if answer.answered else ~marked
    return SliceMarks(
        int(marked.sum()),
        int((hit & marked).sum()),
        int((~marked).sum()),
        int((hit & ~marked).sum()),
    )


def _picture(stack: Stack, found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Picture:
    """Return the slice with most disagreement."""
    z = int(np.argmax((found ^ truth).sum(axis=(1, 2))))
    image = stack.image[z]
    if stack.case.domain is Domain.HU:
        image = (window(image, LUNG_WINDOW_HU) * 255).astype(np.int16)
    step = -(-max(image.shape) // WIDEST_PICTURE)
    thin = (slice(None, None, step), slice(None, None, step))
    return Picture(image[thin].astype(np.uint8), found[z][thin], truth[z][thin])

"""The report of a result: a page to read, print and copy, and a PDF to take away.

What it says is `pipelines.report`, which also makes the document that goes to the PACS.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import structlog
import zstandard
from flask import Blueprint, Response, abort, render_template, request, url_for
from flask_login import current_user
from sqlalchemy.orm import Session

from appliance import audit, marks, prior_results, reviews, studies
from appliance.prior_results import PriorResult
from appliance.studies import WorklistRow
from appliance.tables import Analysis, Review
from pipelines.errors import RegionError, ResultError
from pipelines.findings import Analysis as Findings
from pipelines.marks import Mark
from pipelines.presentation import decode_slab
from pipelines.report import key_images
from pipelines.report.content import (
    TITLE,
    Confirmation,
    Outcome,
    Prior,
    Report,
    Subject,
    box_name,
    identification,
    moment,
    sections,
    thirds_of,
)
from pipelines.report.key_images import draw_key_image, key_slices, picture
from pipelines.report.pdf import render
from pipelines.report.text import plain_text
from pipelines.severity import Third, as_judged
from webui import views
from webui.resources import resources
from webui.results import Result, open_result

log = structlog.get_logger()

DOWNLOADED: Final = "web:report:downloaded"
"""The audit's tag of a report that was taken away as PDF."""

KEPT_IN_MEMORY: Final = 32
REPLACED: Final = "A newer analysis replaced this result."
INCOMPLETE: Final = "This result was made before all images had arrived."
AMENDED: Final = "A later version of the review replaced this one."

blueprint = Blueprint("report", __name__)

# One at a time: the masks of a result are large.
_reading = threading.Lock()


@dataclass(frozen=True, eq=False)
class Standing:
    """A result as a person left it, without its masks.

    Attributes:
        findings: With the lesions that stand.
        machine_lesions: The numbers of the lesions that the analysis found.
        thirds: The third of its lung that each lesion lies in, by the lesion's number.
        pictures: The key images, PNG.
    """

    findings: Findings
    machine_lesions: tuple[int, ...]
    thirds: dict[int, Third | None]
    pictures: tuple[bytes, ...]


@dataclass(frozen=True)
class Judged:
    """What a person changed of the lesions of a result; what is read of it is kept by this key.

    Attributes:
        analysis_id: Of the result.
        rejected: The numbers of the lesions that are none to the person.
        marks: Number, digest and whether it was grown, of each lesion that the person outlined.
    """

    analysis_id: int
    rejected: tuple[int, ...]
    marks: tuple[tuple[int, str, bool], ...]


@dataclass(frozen=True, eq=False)
class Asked:
    """The result that a request is about, and the version of its review; 0 while unconfirmed."""

    study: WorklistRow
    analysis: Analysis
    versions: Sequence[Review]
    review: int
    prior: PriorResult | None
    prior_versions: Sequence[Review]


@blueprint.get("/studies/<int:study_id>/report")
def current(study_id: int) -> str:
    """The report of the study's current result, as last confirmed."""
    with resources().database.snapshot() as db:
        analysis = studies.current_analysis(db, study_id) or abort(HTTPStatus.NOT_FOUND)
    return _page(study_id, analysis.id)


@blueprint.get("/studies/<int:study_id>/analyses/<int:analysis_id>/report")
def show(study_id: int, analysis_id: int) -> str:
    """The report of one result; `review` names an earlier version of what was confirmed."""
    return _page(study_id, analysis_id)


@blueprint.get("/studies/<int:study_id>/analyses/<int:analysis_id>/report.pdf")
def download(study_id: int, analysis_id: int) -> Response:
    """The same as PDF, noted in the audit."""
    asked = _asked(study_id, analysis_id)
    content = render(_report(asked))
    with resources().database.transaction() as db:
        audit.record(
            db,
            actor=current_user.name,
            tag=DOWNLOADED,
            subject=f"study {study_id}",
            detail={"analysis": analysis_id, "review": asked.review},
        )
    response = Response(content, mimetype="application/pdf")
    # No patient in it: the names of downloads are seen by many.
    name = f"report-{study_id}-{analysis_id}-{asked.review}.pdf"
    response.headers["Content-Disposition"] = f"attachment; filename={name}"
    return response


@blueprint.get("/studies/<int:study_id>/analyses/<int:analysis_id>/report/images/<int:number>.png")
def image(study_id: int, analysis_id: int, number: int) -> Response:
    """One key image, counted from 0; fetched by its page, it is the same look at the study."""
    pictures = _report(_asked(study_id, analysis_id)).pictures
    if number >= len(pictures):
        abort(HTTPStatus.NOT_FOUND)
    if not views.is_noted(request.args.get("view", ""), analysis_id=analysis_id):
        views.note(study_id, analysis_id=analysis_id)
    return Response(pictures[number], mimetype="image/png")


def _page(study_id: int, analysis_id: int) -> str:
    asked = _asked(study_id, analysis_id)
    report = _report(asked)
    views.note(study_id, analysis_id=analysis_id)
    seen = views.noted_pass(analysis_id)
    here: dict[str, Any] = {
        "study_id": study_id,
        "analysis_id": analysis_id,
        "review": asked.review,
    }
    return render_template(
        "report/show.html",
        study=asked.study,
        report=report,
        title=TITLE,
        identification=identification(report),
        sections=list(sections(report)),
        text=plain_text(report),
        images=[
            url_for("report.image", number=n, view=seen, **here)
            for n in range(len(report.pictures))
        ],
        pdf=url_for("report.download", **here),
        viewer=url_for("viewer.show_version", study_id=study_id, analysis_id=analysis_id),
        versions=[
            {
                "url": url_for("report.show", **{**here, "review": review.version}),
                "version": review.version,
                "by": review.reviewer,
                "at": moment(review.at),
                "shown": review.version == asked.review,
            }
            for review in asked.versions
        ],
    )


def _asked(study_id: int, analysis_id: int) -> Asked:
    """Everything of the database in one snapshot: nothing may be confirmed in between."""
    with resources().database.snapshot() as db:
        study = studies.worklist_row(db, study_id)
        analysis = studies.analysis(db, analysis_id)
        if study is None or analysis is None or analysis.study_id != study_id:
            abort(HTTPStatus.NOT_FOUND)
        versions = reviews.history(db, analysis_id)
        review = request.args.get("review", len(versions), type=int)
        if not 0 <= review <= len(versions):
            abort(HTTPStatus.NOT_FOUND)
        prior = prior_results.last(db, study_id)
        return Asked(study, analysis, versions, review, prior, _versions_of(db, prior))


def _versions_of(db: Session, prior: PriorResult | None) -> Sequence[Review]:
    return [] if prior is None else reviews.history(db, prior.analysis_id)[: prior.review]


def _report(asked: Asked) -> Report:
    study, analysis = asked.study, asked.analysis
    data_dir = resources().settings.data_dir
    review = asked.versions[asked.review - 1] if asked.review else None
    standing = _standing(data_dir / analysis.folder, _judged(review))
    return Report(
        subject=Subject(
            patient_name=study.patient_name,
            patient_id=study.patient_id,
            birth_date=study.birth_date,
            sex=study.sex,
            accession_number=study.accession_number,
            description=study.description,
            study_date=study.study_date,
            study_time=study.study_time,
        ),
        outcome=_outcome(standing, analysis.created_at, review),
        thirds=standing.thirds,
        pictures=standing.pictures,
        box=_box(analysis),
        prior=_prior(asked),
        superseded=_superseded(asked),
    )


def _superseded(asked: Asked) -> str:
    if not asked.analysis.current:
        return REPLACED if asked.analysis.superseded_by else INCOMPLETE
    if asked.study.stale:
        return INCOMPLETE
    return AMENDED if asked.review < len(asked.versions) else ""


def _box(analysis: Analysis) -> str:
    """The box and release that said so first, as the objects in the PACS name them."""
    origin = analysis.origin or {}
    return box_name(
        origin.get("software_version") or version("chest-ct-appliance"),
        origin.get("serial_number") or resources().settings.dicom.serial_number,
    )


def _prior(asked: Asked) -> Prior | None:
    found = asked.prior
    if found is None:
        return None
    review = asked.prior_versions[-1] if asked.prior_versions else None
    try:
        standing = _standing(resources().settings.data_dir / found.folder, _judged(review))
    except (OSError, RegionError, ResultError, ValueError):
        log.warning("report.prior_unreadable", analysis_id=found.analysis_id)
        return Prior(study_date=found.study_date, outcome=None)
    outcome = _outcome(standing, found.analysed_at, review)
    return Prior(study_date=found.study_date, outcome=outcome)


def _outcome(standing: Standing, analysed_at: datetime, review: Review | None) -> Outcome:
    return Outcome(
        analysis=standing.findings,
        machine_positive=standing.findings.positive,
        machine_lesions=standing.machine_lesions,
        analysed_at=analysed_at.astimezone(),
        confirmation=None if review is None else _confirmation(review),
    )


def _confirmation(review: Review) -> Confirmation:
    return Confirmation(
        name=review.reviewer,
        organisation=review.organisation,
        at=review.at.astimezone(),
        version=review.version,
        positive=review.positive,
        reason=": ".join(filter(None, (review.reason, review.reason_text))),
        comment=review.comment,
        rejected=tuple(review.rejected),
        outlined=tuple(mark["number"] for mark in review.marks),
        signs={int(number): tuple(signs) for number, signs in review.signs.items()},
    )


def _judged(review: Review | None) -> Judged | None:
    if review is None:
        return None
    outlined = tuple((mark["number"], mark["digest"], mark["grown"]) for mark in review.marks)
    return Judged(review.analysis_id, tuple(review.rejected), outlined)


def _standing(folder: Path, judged: Judged | None) -> Standing:
    """Return what stands of a result.

    Raises:
        RegionError: What a person outlined cannot be read.
        ResultError: The result cannot be read.
        OSError: Its files for the viewer cannot be read.
        ValueError: They were written by another release.
    """
    with _reading:
        return _read(folder, judged)


@lru_cache(maxsize=KEPT_IN_MEMORY)
def _read(folder: Path, judged: Judged | None) -> Standing:
    found = Findings.load(folder)
    outlined = _marks(judged)
    rejected = () if judged is None else judged.rejected
    standing = as_judged(found, rejected=rejected, marks=outlined)
    shown = open_result(folder)
    left = key_images.NONE_LEFT if found.lesions else key_images.NO_LESIONS
    numbers = shown.facts["instance_numbers"]
    pictures = tuple(
        picture(
            draw_key_image(
                standing,
                z,
                _slice(shown, z),
                number=numbers[z] if numbers else None,
                of_reader=[mark.lesion.id for mark in outlined],
                without_lesions=left,
            )
        )
        for z in key_slices(standing)
    )
    thirds = thirds_of(standing)
    nothing = np.zeros((0, 0, 0), np.uint8)
    light = replace(
        standing, lung_mask=nothing, lesion_labels=nothing.astype(np.uint16), heat_maps=()
    )
    return Standing(light, tuple(lesion.id for lesion in found.lesions), thirds, pictures)


def _marks(judged: Judged | None) -> list[Mark]:
    """Return the lesions that a person outlined; a region that a review names never changes."""
    if judged is None or not judged.marks:
        return []
    with resources().database.snapshot() as db:
        rows = marks.regions(db, judged.analysis_id, {digest for _, digest, _ in judged.marks})
    outlined = []
    for number, digest, grown in judged.marks:
        if (row := rows.get(digest)) is None:
            raise RegionError(f"The voxels of marked lesion {number} are gone.")
        mark = Mark.kept(
            number,
            box=row.box,
            bits=marks.bits_of(row),
            measures=row.measures,
            digest=digest,
            grown=grown,
        )
        outlined.append(mark)
    return outlined


def _slice(shown: Result, z: int) -> npt.NDArray[np.int16]:
    """Return the HU of one slice (y, x), as the viewer shows it."""
    columns, rows, _ = shown.facts["size"]
    pieces = (*shown.facts["key_slabs"], *shown.facts["slabs"])
    slab = next(piece for piece in pieces if 0 <= z - piece["first"] < piece["count"])
    content = (
        zstandard.ZstdDecompressor()
        .decompressobj()
        .decompress(shown.files[slab["file"]].read_bytes())
    )
    plane: npt.NDArray[np.int16] = decode_slab(content, (slab["count"], rows, columns))[
        z - slab["first"]
    ]
    return plane

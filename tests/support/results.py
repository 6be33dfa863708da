"""Finished analyses without a network: the masks that are given, and their true measures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipelines.findings import Analysis, LungMeasures, ModelRef
from pipelines.lesions import label_regions, measure_lesions
from pipelines.lungs import measure_lungs
from pipelines.phantom import Phantom
from pipelines.severity import measure_burden
from pipelines.volume import CTVolume

MODELS = tuple(
    ModelRef(purpose, f"tiny {purpose}", "1.0.0", f"{number:064x}")
    for number, purpose in enumerate(("lungs", "lesions", "screening"), start=1)
)


def analysis_of_chest(volume: CTVolume, chest: Phantom, *, with_lesions: bool = True) -> Analysis:
    """The true result of a series that shows slices of the synthetic chest."""
    slices = [chest.volume.sop_instance_uids.index(uid) for uid in volume.sop_instance_uids]
    _, ny, nx = volume.shape  # it may have been cropped at the back and the left
    lungs, lesions = (mask[slices, :ny, :nx] for mask in (chest.lungs, chest.lesions > 0))
    return analysis_of(volume, lungs, label_regions(lesions & with_lesions, smallest=1))


def analysis_of(
    volume: CTVolume, lungs: npt.NDArray[np.uint8], lesions: npt.NDArray[np.uint16]
) -> Analysis:
    """What an analysis that found exactly these masks would say."""
    found = measure_lesions(volume, lesions, lungs)
    measures: LungMeasures = measure_lungs(lungs, volume.voxel_ml)
    return Analysis(
        series_uid=volume.series_uid,
        shape=volume.shape,
        spacing=volume.spacing,
        affine=volume.affine,
        lungs=measures,
        lesions=tuple(replace(lesion, probability=1 / (1 + lesion.id)) for lesion in found),
        probability=0.8125 if found else 0.0625,
        positive=bool(found),
        threshold=0.5,
        models=MODELS,
        engine="none",
        timings_s={"lungs": 0.5},
        warnings=("The scan is noisy.", *volume.warnings),
        refused_series=(),
        lung_mask=lungs,
        lesion_labels=lesions,
        burden=measure_burden(lungs, lesions, volume.voxel_ml),
        sop_instance_uids=volume.sop_instance_uids,
    )

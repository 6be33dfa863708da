"""Flaws put into the synthetic chest as a scanner would make them, and what is told of them."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipelines import phantom
from pipelines.findings import Flaw, Quality
from pipelines.quality import METAL_HU, METAL_UNKNOWN, assess, warnings
from pipelines.volume import CTVolume
from tests.support.phantom import small_chest

Flawed = NDArray[Any]
LUNG_SLICE = 45  # through heart and both lungs


def scanned(hu: Flawed, like: CTVolume | None = None) -> CTVolume:
    """The small chest with other HU, stored in 12 bits as a scanner would."""
    stored = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    return replace(like or small_chest().volume, hu=stored)


def chest_hu() -> Flawed:
    return small_chest().volume.hu.astype(np.float32)


def assess_chest(hu: Flawed) -> Quality:
    return assess(scanned(hu), small_chest().lungs)


# --- A scanner for metal: parallel beams, and a detector that runs out of photons


ANGLES = np.linspace(0.0, np.pi, 180, endpoint=False)


def turned(planes: torch.Tensor, angle: float) -> torch.Tensor:
    """Planes (z, y, x) turned around their middle."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    matrix = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]])
    grid = functional.affine_grid(
        matrix[None], [1, len(planes), *planes.shape[1:]], align_corners=False
    )
    return functional.grid_sample(planes[None], grid, align_corners=False)[0]


def reconstructed(projections: list[torch.Tensor], size: int) -> torch.Tensor:
    """Filtered back projection of one projection (z, x) for each angle."""
    ramp = torch.fft.rfftfreq(2 * size)
    out = torch.zeros(len(projections[0]), size, size)
    for angle, projection in zip(ANGLES, projections, strict=True):
        spectrum = torch.fft.rfft(projection, 2 * size) * ramp
        filtered = torch.fft.irfft(spectrum, 2 * size)[:, :size]
        out += turned(filtered[:, None].expand(-1, size, -1), -float(angle))
    return out * (2 * np.pi / len(ANGLES))


def with_metal(hu: Flawed, metal: NDArray[np.bool_], metal_hu: float = 29_000.0) -> Flawed:
    """The chest with an implant, and the streaks of beams that hardly come through it."""
    flawed = hu.copy()
    planes = np.flatnonzero(metal.any(axis=(1, 2)))
    flawed[metal] = metal_hu
    pixel_cm = small_chest().volume.spacing[1] / 10
    water_per_cm = 0.19
    attenuation = torch.from_numpy(1 + flawed[planes] / 1000).clamp(min=0) * water_per_cm
    exact = [turned(attenuation, float(angle)).sum(1) * pixel_cm for angle in ANGLES]
    measured = [line.clamp(max=8.0) for line in exact]  # exp(-8): nothing but electronic noise
    lost = [seen - true for seen, true in zip(measured, exact, strict=True)]
    streaks = reconstructed(lost, hu.shape[2]).numpy() / pixel_cm / water_per_cm * 1000
    flawed[planes] += np.where(metal[planes], 0, streaks)
    return flawed


@cache
def rod() -> NDArray[np.bool_]:
    """A steel rod of 12 mm beside the spine, through 12 slices."""
    hu = chest_hu()
    y, x = np.mgrid[: hu.shape[1], : hu.shape[2]] * small_chest().volume.spacing[1]
    disc = np.hypot(y - 240.0, x - 200.0) < 6.0
    metal = np.zeros(hu.shape, bool)
    metal[LUNG_SLICE - 6 : LUNG_SLICE + 6] = disc
    return metal


# --- The tests


def test_a_clean_chest_has_no_flaw():
    quality = assess_chest(chest_hu())

    assert quality.flaws == ()
    assert warnings(quality) == ()
    assert quality.metal_ml == 0.0
    assert quality.lungs_cut_cm2 == quality.body_cut == 0.0


def test_an_implant_and_its_streaks_are_told():
    metal = rod()
    flawed = with_metal(chest_hu(), metal)
    in_lungs = (small_chest().lungs > 0) & metal.any(axis=(1, 2), keepdims=True) & ~metal
    assert np.abs(flawed - chest_hu())[in_lungs].mean() > 20, "there are streaks to be told of"
    true_ml = metal.sum() * small_chest().volume.voxel_ml

    quality = assess_chest(flawed)
    (sentence,) = warnings(quality)

    assert quality.flaws == (Flaw.METAL,)
    assert quality.metal_ml == pytest.approx(true_ml, rel=0.3)
    assert sentence.startswith(f"Metal in the slices of the lungs ({quality.metal_ml:.1f} ml")
    assert sentence.endswith("streaks may hide or imitate lesions.")


def test_one_bright_voxel_is_no_metal():
    hu = chest_hu()
    hu[LUNG_SLICE, 64, 64] = 3071

    quality = assess_chest(hu)

    assert quality.flaws == ()
    assert quality.metal_ml == 0.0


def test_metal_beyond_the_lungs_is_not_told():
    hu = chest_hu()
    hu[-1, 60:66, 60:66] = 3071  # in the neck
    assert not small_chest().lungs[-4:].any()

    assert assess_chest(hu).metal_ml == 0.0


def test_a_series_cut_off_below_metal_says_that_it_cannot_tell():
    quality = assess_chest(np.minimum(with_metal(chest_hu(), rod()), 300))

    assert Flaw.METAL not in quality.flaws
    assert quality.metal_ml is None
    assert warnings(quality)[-1] == METAL_UNKNOWN


def moved(hu: Flawed, rows: int, slices: slice) -> Flawed:
    out = hu.copy()
    out[slices] = np.roll(hu[slices], rows, axis=1)
    return out


def test_a_patient_who_moves_while_the_scan_runs_is_told():
    hu = moved(chest_hu(), 2, slice(40, 52))  # 5.6 mm to the back and again to the front

    quality = assess_chest(hu)

    assert quality.flaws == (Flaw.MOTION,)
    assert quality.motion_steps == 2
    assert "in 2 places" in warnings(quality)[0]


def test_doubled_contours_are_told_where_they_begin():
    hu = chest_hu()
    during = slice(36, 60)
    hu[during] = (hu[during] + np.roll(hu[during], 2, axis=1)) / 2

    assert Flaw.MOTION in assess_chest(hu).flaws


@pytest.mark.parametrize(
    ("shape", "spacing"), [((60, 96, 96), (5.0, 3.8, 3.8)), ((240, 96, 96), (1.25, 3.8, 3.8))]
)
def test_the_slices_own_distance_is_no_motion(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
):
    made = phantom.chest(shape=shape, spacing=spacing)

    assert assess(made.volume, made.lungs).flaws == ()


def test_a_tenth_of_the_dose_is_noisy_and_half_of_it_is_not():
    hu, rng = chest_hu(), np.random.default_rng(7)
    noise = rng.normal(size=hu.shape).astype(np.float32)
    full_hu = 19.0

    half, tenth = (
        assess_chest(hu + noise * full_hu * np.sqrt(1 / dose - 1)) for dose in (0.5, 0.1)
    )

    assert half.flaws == ()
    assert tenth.flaws == (Flaw.NOISE,)
    assert half.noise_hu == pytest.approx(full_hu * np.sqrt(2), rel=0.2)
    assert tenth.noise_hu == pytest.approx(full_hu * np.sqrt(10), rel=0.2)
    assert f"Noise ({tenth.noise_hu:.0f} HU" in warnings(tenth)[0]


def cropped(rows: slice, columns: slice) -> Quality:
    made = small_chest()
    hu, lungs = (a[:, rows, columns] for a in (made.volume.hu, made.lungs))
    return assess(replace(made.volume, hu=np.ascontiguousarray(hu)), np.ascontiguousarray(lungs))


def lungs_extent(axis: int) -> tuple[int, int]:
    filled = np.flatnonzero((small_chest().lungs > 0).any(axis=(0, 3 - axis)))
    return int(filled[0]), int(filled[-1])


def test_a_field_that_cuts_the_lungs_is_told():
    first, _ = lungs_extent(2)

    quality = cropped(slice(None), slice(first + 6, None))
    slice_mm, row_mm, _ = small_chest().volume.spacing
    at_edge = small_chest().lungs[:, :, first + 6] > 0

    assert quality.flaws == (Flaw.LUNGS_CUT,)
    assert quality.lungs_cut_cm2 == pytest.approx(at_edge.sum() * slice_mm * row_mm / 100, rel=0.1)
    assert "not seen" in warnings(quality)[0]


def test_a_field_as_small_as_the_lungs_cuts_the_body_alone():
    (top, bottom), (first, last) = lungs_extent(1), lungs_extent(2)

    quality = cropped(slice(top - 2, bottom + 4), slice(first - 3, last + 4))

    assert quality.flaws == (Flaw.BODY_CUT,)
    assert quality.lungs_cut_cm2 == 0.0


def test_an_arm_beyond_the_field_is_no_flaw():
    quality = cropped(slice(None), slice(10, 118))

    assert quality.flaws == ()
    assert quality.body_cut > 0


@pytest.mark.parametrize(
    ("radius_mm", "flaws"), [(178.0, ()), (115.0, (Flaw.LUNGS_CUT, Flaw.BODY_CUT))]
)
def test_the_field_may_be_a_circle_in_the_image(radius_mm: float, flaws: tuple[Flaw, ...]):
    hu = chest_hu()
    y, x = (np.mgrid[: hu.shape[1], : hu.shape[2]] - 63.5) * small_chest().volume.spacing[1]
    beyond = np.hypot(y, x) > radius_mm
    hu[:, beyond] = -1024
    lungs = small_chest().lungs.copy()
    lungs[:, beyond] = 0

    quality = assess(scanned(hu), lungs)

    assert quality.flaws == flaws


def test_every_flaw_has_its_sentence():
    quality = Quality(
        metal_ml=12.0,
        motion_mm=1.4,
        motion_steps=1,
        noise_hu=60.0,
        body_cut=0.6,
        lungs_cut_cm2=20.0,
        flaws=tuple(Flaw),
    )

    told = warnings(quality)

    assert len(told) == len(Flaw) == len(set(told))
    assert f"12.0 ml above {METAL_HU} HU)" in told[0]
    assert "in 1 place)" in told[1]

"""What the browser's viewer reads, written once when a study is analysed; and the contact sheet.

`write_viewer` fills a folder, ``viewer/`` in the analysis folder, with static files that a server
hands out as they are. All but ``viewer.json`` are named by the first 32 hexadecimal digits of the
sha256 of their bytes, so their addresses never change meaning: ``Cache-Control: immutable``.

Every voxel index is canonical (`pipelines.volume`): x to the patient's left, y to the back, z to
the head. An axial slice drawn row by row is the radiological view. A coronal view shows x to the
right and z upwards (flip rows), a sagittal one y to the right and z upwards.

**viewer.json**, UTF-8::

    {"schema": 1,
     "size": [nx, ny, nz],              voxels along x, y, z
     "spacing_mm": [sx, sy, sz],
     "affine": [[...], ...],            4x4, index (x, y, z, 1) -> LPS mm
     "hu_range": [lowest, highest],
     "labels": {"axial":    {"left": "R", "right": "L", "top": "A", "bottom": "P"},
                "coronal":  {"left": "R", "right": "L", "top": "S", "bottom": "I"},
                "sagittal": {"left": "A", "right": "P", "top": "S", "bottom": "I"}},
     "windows": [{"name": "lung", "width": 1500, "level": -600}, ...],   HU
     "instance_numbers": [n or null, ...]      one for each z; [] for a NIfTI volume
     "slabs":      [{"first": z, "count": n, "file": name, "bytes": n}, ...]   all slices, ascending
     "key_slabs":  [{"first": z, "count": 1, "file": name, "bytes": n}, ...]   one per key slice
     "lesions":    [{every field of findings.Lesion, "mask": MASK}, ...]        as Analysis.lesions
     "lungs":      {"right": MASK or null, "left": MASK or null, "right_ml": v, "left_ml": v},
     "heat_maps": [{"purpose", "answer", "lesion_share", "map": HEAT or null}, ...]     often none
     "burden": BURDEN or null, "second_opinion": OPINION or null,    as findings has them
     "probability": p, "positive": bool, "threshold": t,
     "models": [{"purpose", "name", "version", "digest"}, ...],
     "engine": text, "warnings": [sentence, ...], "notice": "AI result, not for primary diagnosis"}

    MASK = HEAT = {"box": [x0, y0, z0, x1, y1, z1], "file": name, "bytes": n}         half-open

In ``lesions``, ``centroid`` is (z, y, x) and ``bbox`` ((z0, y0, x0), (z1, y1, x1)), as `findings`
has them. No patient's or institution's text is in any file: the banner comes from the database.

**Slab** (``<hash>.slab``): one zstd frame (RFC 8878). Send it with ``Content-Encoding: zstd`` where
the browser accepts that; otherwise decompress and send gzip or nothing. Inside lie N = count * ny *
nx voxels, 2 N bytes: first the N low bytes, then the N high bytes, of unsigned 16-bit numbers u in
the order z, y, x (x fastest). With ``d = (u >>> 1) ^ -(u & 1)`` (zigzag), a voxel is the running
sum of d along its row, modulo 2^16 as int16: HU. The sum starts at 0 in each row::

    for (let row = 0, p = 0; row < ny * count; row++)
      for (let x = 0, hu = 0; x < nx; x++, p++) {
        const u = bytes[p] | bytes[N + p] << 8;
        out[p] = hu += (u >>> 1) ^ -(u & 1);        // out is an Int16Array: it wraps
      }

**Mask** (``<hash>.mask``): one zstd frame; inside, one bit for each voxel of the box in the order
z, y, x (x fastest), padded with zeros to whole bytes, first voxel in the lowest bit::

    i = ((z - z0) * (y1 - y0) + (y - y0)) * (x1 - x0) + x - x0
    inside = bytes[i >> 3] >> (i & 7) & 1

**Heat** (``<hash>.heat``): one zstd frame; inside, one byte for each voxel of the box in the same
order, 255 where the answer is spoken for most.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zstandard
from PIL import Image, ImageDraw, ImageFont

from pipelines.findings import LEFT_LUNG, RIGHT_LUNG, Analysis, Box, Burden, HeatMap, Lesion
from pipelines.volume import CTVolume

SCHEMA: Final = 1
SLAB_SLICES: Final = 16
NOTICE: Final = "AI result, not for primary diagnosis"
VIEWER_FILE: Final = "viewer.json"

_COMPRESSION_LEVEL: Final = 3  # higher levels cost seconds and save a few per cent
_LABELS: Final = {
    "axial": {"left": "R", "right": "L", "top": "A", "bottom": "P"},
    "coronal": {"left": "R", "right": "L", "top": "S", "bottom": "I"},
    "sagittal": {"left": "A", "right": "P", "top": "S", "bottom": "I"},
}
_WINDOWS: Final = (
    {"name": "lung", "width": 1500, "level": -600},
    {"name": "soft tissue", "width": 400, "level": 40},
    {"name": "bone", "width": 2500, "level": 480},
)


@dataclass(frozen=True)
class Slab:
    """Some consecutive axial slices in one file."""

    first: int
    count: int
    file: str
    bytes: int


@dataclass(frozen=True)
class Mask:
    """One region, bit-packed, or a heat map; box is half-open (x0, y0, z0, x1, y1, z1)."""

    box: tuple[int, int, int, int, int, int]
    file: str
    bytes: int


def write_viewer(volume: CTVolume, analysis: Analysis, folder: Path) -> None:
    """Write every file of the viewer into a folder; ``viewer.json`` comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    slabs = write_slabs(volume, folder)
    key_slabs = write_key_slabs(volume, analysis, folder)
    lesions = [write_lesion(analysis, lesion, folder) for lesion in analysis.lesions]
    description = {
        **_describe_volume(volume),
        "slabs": [asdict(slab) for slab in slabs],
        "key_slabs": [asdict(slab) for slab in key_slabs],
        **_describe_findings(analysis, lesions, folder),
    }
    text = json.dumps(description, allow_nan=False, ensure_ascii=False)
    (folder / VIEWER_FILE).write_text(text, encoding="utf-8")


def write_slabs(volume: CTVolume, folder: Path) -> tuple[Slab, ...]:
    """Write all slices, 16 to a file; needs no analysis, so it may run beside one."""
    firsts = range(0, volume.shape[0], SLAB_SLICES)
    return _write_slabs(
        volume, [(z, min(SLAB_SLICES, volume.shape[0] - z)) for z in firsts], folder
    )


def write_key_slabs(volume: CTVolume, analysis: Analysis, folder: Path) -> tuple[Slab, ...]:
    """Write each lesion's key slice as a slab of its own: the first thing that is shown."""
    slices = dict.fromkeys(lesion.key_slice for lesion in analysis.lesions)
    return _write_slabs(volume, [(z, 1) for z in slices], folder)


def write_lesion(analysis: Analysis, lesion: Lesion, folder: Path) -> Mask:
    """Write one lesion's mask, cropped to its box."""
    return _write_mask(analysis.lesion_labels[_crop(lesion.bbox)] == lesion.id, lesion.bbox, folder)


def write_lung(analysis: Analysis, label: int, folder: Path) -> Mask | None:
    """Write one lung's mask, cropped to its box; None if that lung was not found."""
    region = analysis.lung_mask == label
    box = bounding_box(region)
    return None if box is None else _write_mask(region[_crop(box)], box, folder)


def write_heat(heat_map: HeatMap, folder: Path) -> Mask | None:
    """Write a heat map, cropped to where there is any; None if there is none."""
    box = bounding_box(heat_map.heat > 0)
    if box is None:
        return None
    (z0, y0, x0), (z1, y1, x1) = box
    name, size = _write_named(folder, heat_map.heat[_crop(box)].tobytes(), suffix=".heat")
    return Mask((x0, y0, z0, x1, y1, z1), name, size)


def bounding_box(region: npt.NDArray[np.bool_]) -> Box | None:
    """Return the half-open box ((z0, y0, x0), (z1, y1, x1)) around a region, None if empty."""
    # One axis at a time, each inside the last, so that the full volume is read once.
    low, high = [], []
    for axis in range(3):
        others = tuple(n for n in range(3) if n != axis)
        filled = np.flatnonzero(region.any(axis=others))
        if not filled.size:
            return None
        low.append(int(filled[0]))
        high.append(int(filled[-1]) + 1)
        region = np.take(region, range(low[-1], high[-1]), axis=axis)
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def encode_slab(hu: npt.NDArray[np.int16]) -> bytes:
    """Return int16 HU (z, y, x) as a slab's bytes before compression, as described above."""
    steps = np.diff(hu, axis=2, prepend=np.int16(0))  # wraps modulo 2^16, as the reader does
    zigzag = ((steps << 1) ^ (steps >> 15)).view(np.uint16)
    low = (zigzag & 0xFF).astype(np.uint8)
    high = (zigzag >> 8).astype(np.uint8)
    return low.tobytes() + high.tobytes()


def decode_slab(content: bytes, shape: tuple[int, int, int]) -> npt.NDArray[np.int16]:
    """Return the int16 HU (z, y, x) of a slab's decompressed bytes."""
    low, high = np.frombuffer(content, np.uint8).reshape(2, *shape).astype(np.uint16)
    zigzag = low | high << 8
    steps = ((zigzag >> 1) ^ -(zigzag & 1)).view(np.int16)
    return np.cumsum(steps, axis=2, dtype=np.int16)


def _crop(box: Box) -> tuple[slice, slice, slice]:
    (z0, y0, x0), (z1, y1, x1) = box
    return slice(z0, z1), slice(y0, y1), slice(x0, x1)


def _write_mask(cropped: npt.NDArray[np.bool_], box: Box, folder: Path) -> Mask:
    (z0, y0, x0), (z1, y1, x1) = box
    bits = np.packbits(cropped, bitorder="little")
    name, size = _write_named(folder, bits.tobytes(), suffix=".mask")
    return Mask((x0, y0, z0, x1, y1, z1), name, size)


def _write_slabs(
    volume: CTVolume, ranges: Iterable[tuple[int, int]], folder: Path
) -> tuple[Slab, ...]:
    def write(first_and_count: tuple[int, int]) -> Slab:
        first, count = first_and_count
        content = encode_slab(volume.hu[first : first + count])
        name, size = _write_named(folder, content, suffix=".slab")
        return Slab(first, count, name, size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return tuple(pool.map(write, ranges))


def _write_named(folder: Path, content: bytes, *, suffix: str) -> tuple[str, int]:
    """Write content as one zstd frame named by its hash; return the name and size."""
    frame = zstandard.ZstdCompressor(level=_COMPRESSION_LEVEL).compress(content)
    name = hashlib.sha256(frame).hexdigest()[:32] + suffix
    (folder / name).write_bytes(frame)
    return name, len(frame)


def _describe_volume(volume: CTVolume) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "size": list(reversed(volume.shape)),
        "spacing_mm": list(reversed(volume.spacing)),
        "affine": volume.affine.tolist(),
        "hu_range": [int(volume.hu.min()), int(volume.hu.max())],
        "labels": _LABELS,
        "windows": list(_WINDOWS),
        "instance_numbers": list(volume.instance_numbers),
    }


def _describe_findings(analysis: Analysis, masks: list[Mask], folder: Path) -> dict[str, Any]:
    summary = analysis.summary()
    lungs = {
        side: _plain(write_lung(analysis, label, folder))
        for side, label in (("right", RIGHT_LUNG), ("left", LEFT_LUNG))
    }
    lesions = [
        {**row, "mask": _plain(mask)} for row, mask in zip(summary["lesions"], masks, strict=True)
    ]
    heat_maps = [
        {**row, "map": _plain(write_heat(heat_map, folder))}
        for row, heat_map in zip(summary["heat_maps"], analysis.heat_maps, strict=True)
    ]
    said = (
        "burden",
        "second_opinion",
        "probability",
        "positive",
        "threshold",
        "models",
        "engine",
        "warnings",
    )
    return {
        "lesions": lesions,
        "lungs": {**lungs, **summary["lungs"]},
        "heat_maps": heat_maps,
        **{name: summary[name] for name in said},
        "notice": NOTICE,
    }


def _plain(mask: Mask | None) -> dict[str, Any] | None:
    return None if mask is None else asdict(mask)


# --- Contact sheet

_TILE: Final = 340  # px
_MARGIN: Final = 8
_HEADER: Final = 114
_MOST_TILES: Final = 7  # beside the coronal overview
_LUNG_WINDOW: Final = (-600, 1500)  # level, width in HU
_COLOURS: Final = (
    (255, 90, 95), (78, 161, 242), (242, 193, 78), (120, 220, 120), (200, 120, 240), (90, 220, 220),
)  # fmt: skip
_GREY: Final = (207, 214, 220)
_AMBER: Final = (232, 200, 96)


def contact_sheet(volume: CTVolume, analysis: Analysis) -> Image.Image:
    """Return one page to look at: a coronal overview and the slices with the largest lesions.

    Lesions are outlined, the patient's right is on the left, and no patient's text is on it.
    """
    slices = _shown_slices(analysis)
    tiles = [_coronal_tile(volume, analysis, slices)]
    tiles += [_axial_tile(volume, analysis, z) for z in slices]
    columns = min(4, len(tiles))
    rows = -(-len(tiles) // columns)
    step = _TILE + _MARGIN
    sheet = Image.new("RGB", (columns * step + _MARGIN, rows * step + _HEADER + _MARGIN))
    _draw_header(sheet, analysis)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (_MARGIN + column * step, _HEADER + row * step))
    return sheet


def _shown_slices(analysis: Analysis) -> list[int]:
    """Return the key slices of the largest lesions, or slices through healthy lungs."""
    keys = list(dict.fromkeys(lesion.key_slice for lesion in analysis.lesions))[:_MOST_TILES]
    if keys:
        return keys
    filled = np.flatnonzero((analysis.lung_mask > 0).any(axis=(1, 2)))
    first, last = (filled[0], filled[-1]) if filled.size else (0, analysis.shape[0] - 1)
    return [int(z) for z in np.linspace(last, first, 5)[1:-1]]


def _draw_header(sheet: Image.Image, analysis: Analysis) -> None:
    draw = ImageDraw.Draw(sheet)
    volume_ml = sum(lesion.volume_ml for lesion in analysis.lesions)
    verdict = "positive" if analysis.positive else "negative"
    models = ", ".join(f"{model.name} {model.version}" for model in analysis.models)
    score = (
        f"COVID-like probability {analysis.probability:.2f}"
        f" ({verdict} at {analysis.threshold:.2f}),"
        f" {len(analysis.lesions)} lesions, {volume_ml:.0f} ml of"
        f" {analysis.lungs.total_ml:.0f} ml lung"
    )
    lines = (
        (20, _AMBER, NOTICE),
        (17, (255, 255, 255), score),
        *((13, _GREY, line) for line in _burden_lines(analysis.burden)),
        (13, _GREY, f"{models}  |  engine {analysis.engine}"),
    )
    y = _MARGIN
    for size, colour, text in lines:
        draw.text((_MARGIN, y), text, fill=colour, font=ImageFont.load_default(size))
        y += size + 8


def _burden_lines(burden: Burden | None) -> tuple[str, ...]:
    if burden is None:
        return ()
    shares = f"{100 * burden.right.whole.share:.1f} % of the right lung, "
    shares += f"{100 * burden.left.whole.share:.1f} % of the left"
    return (f"lesions in {shares}: {burden.grade} by the mask, not validated as a clinical grade",)


def _axial_tile(volume: CTVolume, analysis: Analysis, z: int) -> Image.Image:
    """Return one axial slice with its lesions outlined and named."""
    tile = _Tile(volume.hu[z], (volume.spacing[1], volume.spacing[2]))
    shown = [lesion for lesion in analysis.lesions if lesion.first_slice <= z <= lesion.last_slice]
    for lesion in shown:
        tile.outline(analysis.lesion_labels[z] == lesion.id, _colour(lesion))
    tile.mark(left="R", right="L")
    number = volume.instance_numbers[z] if volume.instance_numbers else None
    # Slices count from the head, as the viewer and most scanners do.
    tile.write(
        f"slice {volume.shape[0] - z}" + ("" if number is None else f", image {number}"), row=0
    )
    for row, lesion in enumerate(shown[:4], start=1):
        tile.write(_caption(lesion), row=row, colour=_colour(lesion))
    return tile.image


def _coronal_tile(volume: CTVolume, analysis: Analysis, slices: list[int]) -> Image.Image:
    """Return a coronal slice through the largest lesion, with the axial slices as lines."""
    y = round(analysis.lesions[0].centroid[1]) if analysis.lesions else volume.shape[1] // 2
    tile = _Tile(volume.hu[::-1, y], (volume.spacing[0], volume.spacing[2]))
    for z in slices:
        tile.line(volume.shape[0] - 1 - z)
    for lesion in analysis.lesions:
        tile.outline(analysis.lesion_labels[::-1, y] == lesion.id, _colour(lesion))
    tile.mark(left="R", right="L")
    tile.write("coronal", row=0)
    return tile.image


def _colour(lesion: Lesion) -> tuple[int, int, int]:
    return _COLOURS[(lesion.id - 1) % len(_COLOURS)]


def _caption(lesion: Lesion) -> str:
    score = "" if lesion.probability is None else f", p {lesion.probability:.2f}"
    return f"{lesion.id}: {lesion.volume_ml:.1f} ml, {lesion.diameter_mm:.0f} mm{score}"


class _Tile:
    """One square picture of a slice, true to its proportions in mm."""

    def __init__(self, hu: npt.NDArray[np.int16], spacing: tuple[float, float]) -> None:
        """Window and scale a slice (rows, columns) with its spacing (rows, columns) in mm."""
        level, width = _LUNG_WINDOW
        grey = np.clip((hu.astype(np.float32) - level) / width + 0.5, 0, 1) * 255
        height_mm, width_mm = hu.shape[0] * spacing[0], hu.shape[1] * spacing[1]
        scale = _TILE / max(height_mm, width_mm)
        self.size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
        self.corner = ((_TILE - self.size[0]) // 2, (_TILE - self.size[1]) // 2)
        self.rows = hu.shape[0]
        self.image = Image.new("RGB", (_TILE, _TILE))
        picture = Image.fromarray(grey.astype(np.uint8)).resize(self.size)
        self.image.paste(picture.convert("RGB"), self.corner)
        self.draw = ImageDraw.Draw(self.image)

    def outline(self, region: npt.NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
        """Draw the border of a region (rows, columns) of the slice."""
        scaled = Image.fromarray(region).resize(self.size, Image.Resampling.NEAREST)
        inside = np.asarray(scaled, bool)
        padded = np.pad(inside, 1)
        core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        border = Image.fromarray(inside & ~core)
        self.draw.bitmap(self.corner, border, fill=colour)

    def line(self, row: int) -> None:
        """Draw where an axial slice cuts this view."""
        y = self.corner[1] + (row + 0.5) / self.rows * self.size[1]
        self.draw.line((0, y, _TILE, y), fill=(70, 110, 140))

    def mark(self, *, left: str, right: str) -> None:
        """Write the patient's sides at the edges."""
        font = ImageFont.load_default(20)
        for x, text, anchor in ((6, left, "lm"), (_TILE - 6, right, "rm")):
            place = (x, _TILE / 2)
            self.draw.text(place, text, _AMBER, font, anchor, stroke_width=2, stroke_fill=(0, 0, 0))

    def write(self, text: str, *, row: int, colour: tuple[int, int, int] = _GREY) -> None:
        """Write one line of text into the top left corner."""
        font = ImageFont.load_default(13)
        place = (6, 4 + 16 * row)
        self.draw.text(place, text, colour, font, stroke_width=1, stroke_fill=(0, 0, 0))

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from pipelines import decoding
from pipelines.decoding import coded_size, decode_hounsfield, inflate, undecodable_reason
from pipelines.errors import DecodeError, UnreadableInputError
from pipelines.headers import read_header
from tests.support.ct_series import compressed, real, slices
from tests.support.phantom import small_chest

ONE_SLICE = "dicom/one_chest_slice_in_many_transfer_syntaxes"
LOSSLESS = {
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5",
}  # fmt: skip
# Largest and mean difference in HU to the original that the loss explains, as GDCM decodes them.
LOSSY = {
    "1.2.840.10008.1.2.4.50": (65, 20),
    "1.2.840.10008.1.2.4.81": (1, 0.7),
    "1.2.840.10008.1.2.4.91": (5, 0.6),
}
REFUSED = {"1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55"}


def decode(path: Path) -> npt.NDArray[np.int16]:
    header = read_header(path)
    assert header is not None
    assert header.pixels is not None
    out = np.empty((header.pixels.rows, header.pixels.columns), np.int16)
    decode_hounsfield(header.pixels, out)
    return out


def save(ds: Dataset, folder: Path) -> Path:
    path = folder / "slice"
    ds.save_as(path, enforce_file_format=True)
    return path


def one_slice() -> tuple[Dataset, npt.NDArray[np.int16]]:
    ds = slices(1)[0]
    k = small_chest().volume.sop_instance_uids.index(ds.SOPInstanceUID)
    return ds, small_chest().volume.hu[k]


def real_files() -> dict[str, Path]:
    files = {}
    for path in real(ONE_SLICE).iterdir():
        files[str(pydicom.dcmread(path).file_meta.TransferSyntaxUID)] = path
    return files


def test_the_real_slice_is_the_same_in_every_lossless_syntax():
    files = real_files()
    plain = pydicom.dcmread(files[ExplicitVRLittleEndian])
    expected = plain.pixel_array.astype(int) + int(plain.RescaleIntercept)

    for uid in LOSSLESS:
        assert (decode(files[uid]) == expected).all(), UID(uid).name


def test_the_real_slice_differs_by_its_loss_alone():
    files = real_files()
    expected = decode(files[ExplicitVRLittleEndian]).astype(int)

    for uid, (largest, mean) in LOSSY.items():
        difference = np.abs(decode(files[uid]) - expected)
        assert difference.max() <= largest, UID(uid).name
        assert difference.mean() <= mean, UID(uid).name


@pytest.mark.parametrize("uid", sorted(LOSSLESS | LOSSY.keys()))
def test_our_decoders_agree_with_pydicoms(uid: str):
    path = real_files()[uid]
    ds = pydicom.dcmread(path)
    expected = np.rint(ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept))

    assert (decode(path) == expected).all()


def test_syntaxes_without_a_confirmed_decoder_are_refused_with_a_reason():
    files = real_files()

    assert files.keys() == LOSSLESS | LOSSY.keys() | REFUSED
    for uid in REFUSED:
        with pytest.raises(DecodeError, match=r"transfer syntax, JPEG .* no confirmed decoder"):
            decode(files[uid])


@pytest.mark.parametrize("uid", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_lossless_compression_keeps_every_value(tmp_path: Path, uid: UID):
    ds, expected = one_slice()
    path = save(compressed([ds], uid)[0], tmp_path)

    assert (decode(path) == expected).all()


@pytest.mark.parametrize(
    ("uid", "implicit", "little"),
    [
        (ImplicitVRLittleEndian, True, True),
        (ExplicitVRBigEndian, False, False),
        (DeflatedExplicitVRLittleEndian, False, True),
    ],
)
def test_native_syntaxes_keep_every_value(tmp_path: Path, uid: UID, implicit: bool, little: bool):  # noqa: FBT001
    ds, expected = one_slice()
    if not little:
        ds.PixelData = ds.pixel_array.astype(">u2").tobytes()
    ds.file_meta.TransferSyntaxUID = uid
    path = tmp_path / "slice"
    pydicom.dcmwrite(path, ds, implicit_vr=implicit, little_endian=little, enforce_file_format=True)

    assert (decode(path) == expected).all()


def test_signed_values_of_twelve_bits_keep_their_sign(tmp_path: Path):
    ds, expected = one_slice()
    ds.PixelRepresentation = 1
    ds.RescaleIntercept = 0
    low = np.clip(expected, -2048, 2047).astype(np.int16)
    overlay = np.int16(0x5000)  # bits above the twelve stored, as old scanners leave them
    ds.PixelData = ((low & 0x0FFF) | overlay).astype("<u2").tobytes()

    assert (decode(save(ds, tmp_path)) == low).all()


def test_slope_and_intercept_are_applied_and_rounded(tmp_path: Path):
    ds, _ = one_slice()
    stored = ds.pixel_array.astype(float)
    ds.RescaleSlope, ds.RescaleIntercept = "0.5", "-1000.25"

    assert (decode(save(ds, tmp_path)) == np.rint(stored * 0.5 - 1000.25)).all()


@pytest.mark.parametrize(("value", "limit"), [(4000, None), (4000, 4007), (4007, 4000)])
def test_padding_becomes_air(tmp_path: Path, value: int, limit: int | None):
    ds, expected = one_slice()
    stored = ds.pixel_array.copy()
    stored[:, :4] = 4000
    stored[:, 4:8] = 4007
    ds.PixelData = stored.tobytes()
    ds.PixelPaddingValue = value
    if limit is not None:
        ds.PixelPaddingRangeLimit = limit

    hu = decode(save(ds, tmp_path))

    assert (hu[:, :4] == -1024).all()
    assert (hu[:, 4:8] == (4007 - 1024 if limit is None else -1024)).all()
    assert (hu[:, 8:] == expected[:, 8:]).all()


def test_values_beyond_sixteen_bits_are_clipped(tmp_path: Path):
    ds, _ = one_slice()
    ds.RescaleSlope = 100

    assert decode(save(ds, tmp_path)).max() == np.iinfo(np.int16).max


def test_pixel_data_that_end_early_are_refused(tmp_path: Path):
    path = save(one_slice()[0], tmp_path)
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(DecodeError, match="end after"):
        decode(path)


@pytest.mark.parametrize("uid", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_a_compressed_image_that_ends_early_is_refused(tmp_path: Path, uid: UID):
    ds = compressed([one_slice()[0]], uid)[0]
    path = save(ds, tmp_path)
    path.write_bytes(path.read_bytes()[:-5000])

    with pytest.raises(DecodeError, match="cut short"):
        decode(path)


@pytest.mark.parametrize("uid", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_a_compressed_image_whose_middle_is_lost_is_refused(tmp_path: Path, uid: UID):
    ds = compressed([one_slice()[0]], uid)[0]
    frame = next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))
    ds.PixelData = encapsulate([frame[: len(frame) // 2]])

    with pytest.raises(DecodeError, match="cut short"):
        decode(save(ds, tmp_path))


@pytest.mark.parametrize("uid", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_an_image_of_another_size_than_its_header_is_refused(tmp_path: Path, uid: UID):
    ds = compressed([one_slice()[0]], uid)[0]
    ds.Rows = 64

    with pytest.raises(DecodeError):
        decode(save(ds, tmp_path))


def test_a_stream_that_claims_a_huge_image_is_refused_before_it_is_decoded(tmp_path: Path):
    ds = compressed([one_slice()[0]], JPEGLosslessSV1)[0]
    frame = bytearray(next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)))
    start = frame.index(b"\xff\xc3") + 5
    frame[start : start + 4] = b"\xff\xff\xff\xff"
    ds.PixelData = encapsulate([bytes(frame)])

    assert coded_size(bytes(frame)) == (65535, 65535)
    with pytest.raises(DecodeError, match="another size"):
        decode(save(ds, tmp_path))


def test_a_header_that_claims_a_huge_image_is_refused():
    header = read_header(next(real(ONE_SLICE).iterdir()))
    assert header is not None
    assert header.pixels is not None

    pixels = replace(header.pixels, rows=65535, columns=65535)

    assert "65535 x 65535" in str(undecodable_reason(pixels))


def test_inflation_stops_at_its_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding, "MAX_INFLATED_BYTES", 2**20)
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = deflater.compress(bytes(2**22)) + deflater.flush()

    with pytest.raises(DecodeError, match="larger than 1 MiB"):
        inflate(bomb)


def test_a_deflated_bomb_is_an_unreadable_file(tmp_path: Path):
    ds, _ = one_slice()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.PixelData = bytes(80 * 2**20)
    path = save(ds, tmp_path)

    assert path.stat().st_size < 2**20
    with pytest.raises(UnreadableInputError):
        read_header(path)

"""Key images as Secondary Captures (PS3.3 A.8.1): the slices of the largest lesions, outlined.

Drawn as radiologists look at them, the patient's right on the left, whatever order the images were
stored in. No patient's text is burnt in. Lesions that a person rejected are on none, and what a
person outlined is dashed; then the images are new ones, in a series of their own.
"""

from __future__ import annotations

from typing import Final

from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from dicom_node.objects.provenance import Provenance, source_image
from pipelines.report import key_images

ROLE: Final = "key images"
SERIES_NUMBER: Final = 9103
CONFIRMED_ROLE: Final = "confirmed key images"
CONFIRMED_SERIES_NUMBER: Final = 9105


def build_captures(provenance: Provenance) -> tuple[Dataset, ...]:
    """Return the key images, that of the largest lesion first; without lesions one of the lungs.

    Raises:
        DecodeError: The pixel data of an image are damaged.
    """
    slices = key_images.key_slices(provenance.confirmed)
    return tuple(_capture(provenance, z, number) for number, z in enumerate(slices, start=1))


def draw_key_image(provenance: Provenance, z: int) -> Image.Image:
    """Return one canonical slice with the lesions that stand, as reports show it.

    Raises:
        DecodeError: Its pixel data are damaged.
    """
    rejected_all = provenance.analysis.lesions and not provenance.confirmed.lesions
    return key_images.draw_key_image(
        provenance.confirmed,
        z,
        provenance.source.hounsfield(z),
        number=provenance.source.images[z].instance_number,
        of_reader=provenance.marks,
        without_lesions=key_images.NONE_LEFT if rejected_all else key_images.NO_LESIONS,
    )


def _capture(provenance: Provenance, z: int, number: int) -> Dataset:
    image = draw_key_image(provenance, z)
    # What nobody changed anything of is the machine's, which the PACS has.
    if provenance.confirmed is provenance.analysis:
        ds = provenance.new_object(
            SecondaryCaptureImageStorage,
            provenance.uid(ROLE, str(z)),
            series=ROLE,
            series_number=SERIES_NUMBER,
            modality="OT",
            written_at=provenance.local(provenance.analysed_at),
        )
    else:
        ds = provenance.new_object(
            SecondaryCaptureImageStorage,
            provenance.verified_uid(CONFIRMED_ROLE, str(z)),
            series=CONFIRMED_ROLE,
            series_number=CONFIRMED_SERIES_NUMBER,
            modality="OT",
            written_at=provenance.written_at,
            of_verification=True,
        )
    ds.InstanceNumber = number
    ds.BodyPartExamined = "CHEST"
    ds.ConversionType = "WSD"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.PatientOrientation = ["L", "P"]
    ds.DerivationDescription = "Lung window with the outlines of the lesions that were found"
    ds.SourceImageSequence = [source_image(provenance.source.images[z])]
    ds.ImageComments = key_images.NOTICE
    ds.BurnedInAnnotation = "NO"
    provenance.copy_compression(ds)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 3, "RGB"
    ds.PlanarConfiguration = 0
    ds.Rows, ds.Columns = image.height, image.width
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    pixels = image.tobytes()
    ds.PixelData = pixels + b"\0" * (len(pixels) % 2)
    ds["PixelData"].VR = "OB"
    return ds

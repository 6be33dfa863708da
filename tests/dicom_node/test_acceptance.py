"""What the listener accepts where the settings say less than everything, in both ways it serves."""

from collections.abc import Callable

import pytest
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
)
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet, Verification

from appliance.config import DicomSettings, Settings
from appliance.errors import ConfigError
from dicom_node.acceptance import Acceptance
from dicom_node.errors import DicomNodeError
from dicom_node.scp import Listener
from tests.support.pacs import association

PRIVATE = "1.2.826.0.1.3680043.2.1125.99"
FIND = (StudyRootQueryRetrieveInformationModelGet, ImplicitVRLittleEndian)  # pynetdicom serves it
LESS = {
    "accepted_sop_classes": ("CTImageStorage",),
    "accepted_transfer_syntaxes": ("JPEG2000Lossless", "1.2.840.10008.1.2.1"),
}


def answered(acceptance: Acceptance, sop_class_uid: str, *syntaxes: str) -> tuple[int, str]:
    answer = acceptance.answer(build_context(sop_class_uid, list(syntaxes)))
    return int(answer.result), str(answer.transfer_syntax[0])


@pytest.mark.parametrize("sop_class_uid", [CTImageStorage, MRImageStorage, PRIVATE])
@pytest.mark.parametrize("syntax", [RLELossless, ImplicitVRLittleEndian, "1.2.3.4"])
def test_by_default_everything_is_accepted_as_it_is_proposed_first(sop_class_uid: str, syntax: str):
    everything = Acceptance.of(DicomSettings())

    assert answered(everything, sop_class_uid, syntax, ExplicitVRLittleEndian) == (0, syntax)


@pytest.mark.parametrize(
    ("sop_class_uid", "proposed", "expected"),
    [
        (CTImageStorage, [ExplicitVRLittleEndian, JPEG2000Lossless], (0, JPEG2000Lossless)),
        (CTImageStorage, [RLELossless, ExplicitVRLittleEndian], (0, ExplicitVRLittleEndian)),
        (CTImageStorage, [RLELossless], (4, RLELossless)),
        (MRImageStorage, [ExplicitVRLittleEndian], (3, ExplicitVRLittleEndian)),
        (PRIVATE, [ExplicitVRLittleEndian], (3, ExplicitVRLittleEndian)),
        (Verification, [RLELossless, ImplicitVRLittleEndian], (0, ImplicitVRLittleEndian)),
    ],
)
def test_the_settings_narrow_it(sop_class_uid: str, proposed: list[str], expected: tuple[int, str]):
    assert answered(Acceptance.of(DicomSettings(**LESS)), sop_class_uid, *proposed) == expected


def test_a_preference_need_not_exclude_anything():
    preferring = Acceptance.of(
        DicomSettings(accepted_transfer_syntaxes=("*", "ImplicitVRLittleEndian"))
    )

    assert answered(preferring, CTImageStorage, ImplicitVRLittleEndian, RLELossless) == (
        0,
        RLELossless,
    )
    assert answered(preferring, CTImageStorage, ImplicitVRLittleEndian) == (
        0,
        ImplicitVRLittleEndian,
    )


@pytest.mark.parametrize("together_with", [[], [FIND]])
def test_both_ways_of_serving_answer_alike(
    listen: Callable[..., Listener], together_with: list[tuple[str, str]]
):
    listener = listen(**LESS)
    proposed = [
        (CTImageStorage, JPEG2000Lossless),
        (CTImageStorage, RLELossless),
        (MRImageStorage, ExplicitVRLittleEndian),
        (Verification, ImplicitVRLittleEndian),
        *together_with,
    ]
    with association(listener.port, proposed) as assoc:
        results = {context.context_id: context.result for context in assoc.rejected_contexts}
        results |= {context.context_id: 0 for context in assoc.accepted_contexts}
        assert assoc.send_c_echo().Status == 0

    assert [results[number] for number in (1, 3, 5, 7)] == [0, 4, 3, 0]


def test_what_goes_out_by_c_get_is_not_narrowed(listen: Callable[..., Listener]):
    listener = listen(**LESS)
    proposed = [FIND, (MRImageStorage, RLELossless)]
    roles = [build_role(MRImageStorage, scp_role=True)]
    with association(listener.port, proposed, ext_neg=roles) as assoc:
        accepted = {context.abstract_syntax for context in assoc.accepted_contexts}

    assert accepted == {FIND[0], MRImageStorage}


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [
        ("accepted_sop_classes", "CTImageStorag", "did you mean CTImageStorage"),
        ("accepted_transfer_syntaxes", "CTImageStorage", "name of a Transfer Syntax"),
    ],
)
def test_a_name_that_nobody_knows_is_refused(key: str, name: str, said: str):
    with pytest.raises(DicomNodeError, match=said):
        Acceptance.of(DicomSettings(**{key: (name,)}))


def test_a_list_of_something_else_is_refused():
    with pytest.raises(ConfigError, match="accepted_sop_classes must be a list of texts"):
        Settings.parse({"dicom": {"accepted_sop_classes": [1]}})

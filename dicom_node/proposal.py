"""In what a C-GET may bring instances: the storage contexts and roles that are proposed.

A PACS answers in one transfer syntax for each context, so the classes that matter here have one for
each: what was stored compressed then comes as it is. A class that is missing comes by C-MOVE alone.
"""

from typing import Final

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    BasicTextSRStorage,
    ChestCADSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EncapsulatedPDFStorage,
    EnhancedCTImageStorage,
    EnhancedSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MRImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    ParametricMapStorage,
    PositronEmissionTomographyImageStorage,
    RawDataStorage,
    RTDoseStorage,
    RTPlanStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    SpatialRegistrationStorage,
    XRayRadiationDoseSRStorage,
)

CT_CLASSES: Final = (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)
TRANSFER_SYNTAXES: Final = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    HTJ2K,
    RLELossless,
)
# What else lies in a study with a CT; 3 × 16 + 24 × 3 contexts and the model's are 121 of 128.
OTHER_CLASSES: Final = (
    BasicTextSRStorage,
    ChestCADSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    MRImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    ParametricMapStorage,
    PositronEmissionTomographyImageStorage,
    RTDoseStorage,
    RTPlanStorage,
    RTStructureSetStorage,
    RawDataStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    SpatialRegistrationStorage,
    XRayRadiationDoseSRStorage,
)
OTHER_SYNTAXES: Final = (
    (ExplicitVRLittleEndian, ImplicitVRLittleEndian),
    (JPEGLosslessSV1,),
    (JPEG2000Lossless,),
)


def storage_proposal() -> tuple[list[PresentationContext], list[SCP_SCU_RoleSelectionNegotiation]]:
    """Return the presentation contexts, and the SCP role for each class (PS3.7 D.3.3.4)."""
    contexts = [build_context(uid, syntax) for uid in CT_CLASSES for syntax in TRANSFER_SYNTAXES]
    contexts += [
        build_context(uid, list(syntaxes)) for uid in OTHER_CLASSES for syntaxes in OTHER_SYNTAXES
    ]
    roles = [build_role(uid, scp_role=True) for uid in (*CT_CLASSES, *OTHER_CLASSES)]
    return contexts, roles

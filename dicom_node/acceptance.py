"""Which proposed presentation contexts the listener accepts, and in which transfer syntax.

One rule for both ways in which associations are served: `direct` asks it, and pynetdicom is made
to. Results are those of PS3.8 table 9-18. Unknown and private SOP classes count as storage; what
the settings say is of storage alone.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

from pydicom.uid import UID_dictionary  # type: ignore[attr-defined]
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import (
    ServiceClass,
    StorageServiceClass,
    VerificationServiceClass,
)
from pynetdicom.sop_class import uid_to_service_class

from appliance.config import DicomSettings
from appliance.part10 import plain_uid
from dicom_node.errors import DicomNodeError

ACCEPTANCE: Final = 0
ABSTRACT_SYNTAX_NOT_SUPPORTED: Final = 3
TRANSFER_SYNTAXES_NOT_SUPPORTED: Final = 4

UNCOMPRESSED: Final = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
ANY: Final = "*"


@dataclass(frozen=True)
class Acceptance:
    """What the settings accept for storage.

    Attributes:
        sop_classes: UIDs; None for every class.
        transfer_syntaxes: UIDs, preferred ones first; `ANY` stands for all others, in the sender's
            order.
    """

    sop_classes: frozenset[str] | None = None
    transfer_syntaxes: tuple[str, ...] = (ANY,)

    @classmethod
    def of(cls, settings: DicomSettings) -> Self:
        """Return that of the `[dicom]` table; raises DicomNodeError for a name nobody knows."""
        classes = [
            _uid(name, "SOP Class", key="accepted_sop_classes")
            for name in settings.accepted_sop_classes
        ]
        syntaxes = [
            name if name == ANY else _uid(name, "Transfer Syntax", key="accepted_transfer_syntaxes")
            for name in settings.accepted_transfer_syntaxes
        ]
        return cls(frozenset(classes) or None, tuple(syntaxes) or (ANY,))

    def answer(self, proposed: PresentationContext) -> PresentationContext:
        """Return the answer to a context proposed for storage or verification."""
        syntaxes = [str(syntax) for syntax in proposed.transfer_syntax]
        answer = PresentationContext()
        answer.context_id = proposed.context_id
        answer.abstract_syntax = proposed.abstract_syntax
        answer.result = ACCEPTANCE
        chosen: str | None
        if uid_to_service_class(str(proposed.abstract_syntax)) is VerificationServiceClass:
            chosen = next((one for one in syntaxes if one in UNCOMPRESSED), syntaxes[0])
        elif self.sop_classes is not None and proposed.abstract_syntax not in self.sop_classes:
            chosen = None
            answer.result = ABSTRACT_SYNTAX_NOT_SUPPORTED
        elif (chosen := self._chosen(syntaxes)) is None:
            answer.result = TRANSFER_SYNTAXES_NOT_SUPPORTED
        # Of a refused context it means nothing, and has to be there all the same.
        answer.transfer_syntax = [chosen or syntaxes[0]]
        return answer

    def _chosen(self, proposed: Sequence[str]) -> str | None:
        for accepted in self.transfer_syntaxes:
            if accepted in proposed:
                return accepted
            if accepted == ANY:
                others = (one for one in proposed if one not in self.transfer_syntaxes)
                if (first := next(others, None)) is not None:
                    return first
        return None

    def govern(self, event: Event) -> None:
        """Make pynetdicom answer so, too (its EVT_REQUESTED)."""
        assoc: Any = event.assoc
        # It takes every context of storage, and has no other place to have a say in it.
        assoc.acse.send_accept = partial(self._send_accept, assoc, assoc.acse.send_accept)

    def _send_accept(self, assoc: Any, send: Any) -> None:
        proposals = assoc.requestor.primitive.presentation_context_definition_list
        for proposed in proposals:
            context = assoc._accepted_cx.get(proposed.context_id)  # noqa: SLF001
            role = assoc.requestor.role_selection.get(proposed.abstract_syntax)
            wants_ours = role is not None and role.scp_role and not role.scu_role  # by C-GET
            if context is None or wants_ours or not is_storage(str(proposed.abstract_syntax)):
                continue
            answer = self.answer(proposed)
            context.transfer_syntax = answer.transfer_syntax
            if answer.result != ACCEPTANCE:
                context.result = answer.result
                del assoc._accepted_cx[proposed.context_id]  # noqa: SLF001
                assoc._rejected_cx.append(context)  # noqa: SLF001
        send()


def is_storage(sop_class_uid: str) -> bool:
    """Whether instances come in under this abstract syntax; unknown and private ones may."""
    return uid_to_service_class(sop_class_uid) in {StorageServiceClass, ServiceClass}


def names_of(kind: str) -> dict[str, str]:
    """Return UIDs by name, of a kind as PS3.6 table A-1 calls it."""
    return {row[4]: uid for uid, row in UID_dictionary.items() if row[1] == kind and row[4]}


def _uid(name: str, kind: str, *, key: str) -> str:
    """Return the UID that a name of the standard (`CTImageStorage`) stands for, or that it is."""
    known = names_of(kind)
    if name in known:
        return known[name]
    if name and set(name) <= set("0123456789."):
        return plain_uid(name)
    near = _nearest(name, known)
    raise DicomNodeError(f"[dicom] {key}: {name!r} is neither a UID nor the name of a {kind}{near}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""

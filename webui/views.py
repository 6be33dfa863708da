"""Who looked at which study, in the audit: one entry for each page that was opened.

A page that shows a result fetches its manifest, which alone names the slabs and masks. Fetched by
its page, the manifest is the same look at the study and is not noted again; fetched by anything
else, it is a look of its own. The page passes that on in the manifest's address, signed, for this
person, this result and a short while.

A program fetches a study by DICOMweb in many requests: those of a while are one look.
"""

import threading
import time
from typing import Final

from flask import current_app
from flask_login import current_user
from itsdangerous import BadSignature, URLSafeTimedSerializer

from appliance import audit, studies
from webui.resources import resources

PASS_S: Final = 60
"""How long after its page a manifest, tried again on a slow line, is still the same look."""


AGAIN_S: Final = 900
"""How long a person's requests for one study by DICOMweb are one look."""


class Looks:
    """Who looked at which study of late, from any number of threads of this process."""

    def __init__(self) -> None:
        self._noted: dict[tuple[int, int], float] = {}
        self._lock = threading.Lock()

    def note(self, study_id: int) -> None:
        """Write a look of the person who asks, unless it is the same look still."""
        now, look = time.monotonic(), (current_user.account_id, study_id)
        with self._lock:
            self._noted = {one: at for one, at in self._noted.items() if now - at < AGAIN_S}
            if look in self._noted:
                return
            # Within the lock: a request beside this one gets its data after the entry, too.
            note(study_id)
            self._noted[look] = now


def note(study_id: int, *, analysis_id: int | None = None) -> None:
    """Write that the signed-in person looked at a study, and at which of its results."""
    with resources().database.transaction() as db:
        audit.record(
            db,
            actor=current_user.name,
            tag=studies.VIEWED,
            subject=f"study {study_id}",
            detail={} if analysis_id is None else {"analysis": analysis_id},
        )


def noted_pass(analysis_id: int) -> str:
    """What the page of a noted look gives its manifest's address."""
    return _signer().dumps([current_user.account_id, analysis_id])


def is_noted(view: str, *, analysis_id: int) -> bool:
    """Whether `view` is the pass of a page that this person opened just now for this result."""
    try:
        content: object = _signer().loads(view, max_age=PASS_S)
    except BadSignature:
        return False
    return content == [current_user.account_id, analysis_id]


def _signer() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(current_app.config["SECRET_KEY"], salt="noted view")

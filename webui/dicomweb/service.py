"""DICOMweb (PS3.18) below ``/dicom-web``: search, retrieve and store what the appliance holds.

============================================  ==================================================
``GET  /studies``, ``/series``,               QIDO-RS: JSON; matching as `appliance.holdings`
``/instances``, also below a study or series  says; ``includefield``, ``limit`` (at most 1000),
                                              ``offset``; ``fuzzymatching`` is literal
``GET  /studies/{}``, ``.../series/{}``,      WADO-RS: multipart/related application/dicom, as
``.../instances/{}``                          stored or in Explicit VR Little Endian; an instance
                                              also as application/dicom
``.../metadata``                              JSON, long binary values as BulkDataURI
``.../frames/{list}``                         application/octet-stream, or compressed as stored
``.../bulkdata/{}``                           application/octet-stream
``.../rendered``, ``.../frames/{}/rendered``  image/jpeg or image/png; ``window``, ``viewport``,
                                              ``quality``
``POST /studies``, ``/studies/{}``            STOW-RS: multipart/related application/dicom;
                                              the outcome as JSON or XML
============================================  ==================================================

What is sent is kept as far as it came whole; a part beyond `dicom.max_instance_bytes` ends the
message. An instance that contradicts what is held is kept aside: taken, with an empty RetrieveURL.

Not there: thumbnails, rendered series, worklists, metadata or search results as XML, range
requests, other origins (CORS).

Everybody with an account may search and retrieve, radiologists and administrators may store, as
`webui.permissions` has it; a session in which names are hidden may do neither of the first. The
browser's session counts, and name and password by HTTP Basic; storing from a session needs the form
token in the header ``X-CSRFToken``. The first retrieval of a study within a while is audited as a
look at it.

A Study Instance UID under which images of several people came is an answer for each of them in a
search. A path that names more than one person's is refused with 409: series and instances that are
one person's alone can be had, and `/series?StudyInstanceUID=…&PatientID=…` finds them.
"""

from flask import Blueprint, Flask
from pydicom.config import IGNORE
from pydicom.config import settings as pydicom_settings

from appliance.config import Settings
from appliance.database import Database
from appliance.reception import Reception
from appliance.store import Store
from webui.dicomweb import problems, retrieve, search, store
from webui.dicomweb.services import EXTENSION, Services

PREFIX = "/dicom-web"


def register(app: Flask, settings: Settings, database: Database) -> None:
    """Add DICOMweb to the application."""
    # What was received is data, legal or not, and a warning would quote it.
    pydicom_settings.reading_validation_mode = IGNORE
    kept = Store(settings.store_dir)
    app.extensions[EXTENSION] = Services(
        kept, Reception(database, kept, min_free_bytes=settings.dicom.min_free_bytes)
    )
    app.register_blueprint(routes())


def routes() -> Blueprint:
    """What is served, for one application."""
    blueprint = Blueprint("dicomweb", __name__, url_prefix=PREFIX)
    problems.register(blueprint)
    for part in (search, retrieve, store):
        blueprint.register_blueprint(part.blueprint)
    return blueprint

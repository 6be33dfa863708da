"""What the DICOM conformance statement (PS3.2) says of DICOMweb, from the routes themselves."""

from collections.abc import Iterable

from flask import Flask

from appliance.holdings import ATTRIBUTES, IN_WORDS
from webui.dicomweb.media import DICOM, JSON, MULTIPART, OCTETS, XML
from webui.dicomweb.search import LARGEST_PAGE
from webui.dicomweb.service import PREFIX, routes
from webui.dicomweb.services import UPLOADS_AT_ONCE

METHODS = ("GET", "POST")


def chapter() -> str:
    """The chapter on DICOMweb, in Markdown."""
    app = Flask(__name__, static_folder=None)
    app.register_blueprint(routes())
    services = [
        f"| `{' '.join(method for method in METHODS if method in (rule.methods or ()))}`"
        f" | `{rule.rule.replace('<', '{').replace('>', '}')}` | {_said(app, rule.endpoint)} |"
        for rule in sorted(app.url_map.iter_rules(), key=lambda rule: (rule.rule, rule.endpoint))
    ]
    keys = [
        f"| {keyword} | {attribute.level.name} | {IN_WORDS[attribute.rule]}"
        f" | {'always' if attribute.required else 'by includefield'} |"
        for keyword, attribute in ATTRIBUTES.items()
    ]
    return f"""\
## 3 DICOMweb

As origin server below `{PREFIX}` on the web port (PS3.18: QIDO-RS, WADO-RS, STOW-RS):

| method | path | what |
| --- | --- | --- |
{_lines(services)}

Media types: `{JSON}` for searches and metadata; `{MULTIPART}` with `{DICOM}`, as stored or in
Explicit VR Little Endian, and with `{OCTETS}` for frames and bulk data; `image/jpeg` and
`image/png` where rendered; outcomes of storing as `{JSON}` or `{XML}`. A page of a search has at
most {LARGEST_PAGE} answers; {UPLOADS_AT_ONCE} uploads are taken at once, others are told to come
again.

Who asks is signed in, or gives name and password by HTTP Basic; TLS is our own or a proxy's. Fuzzy
matching, worklists, range requests and other origins (CORS) are not supported. A path under which
images of several persons lie is refused with 409.

| attribute | level | matching | returned |
| --- | --- | --- | --- |
{_lines(keys)}
"""


def _lines(rows: Iterable[str]) -> str:
    return "\n".join(rows)


def _said(app: Flask, endpoint: str) -> str:
    said = app.view_functions[endpoint].__doc__ or ""
    return said.strip().partition("\n")[0]

"""Who may do what: one table of all addresses, asked before any view runs.

Every endpoint has one line in `RULES`, and each permission says in `GRANTED` which roles have it.
What has no line is refused, and a test names it. Templates and views ask the same table, by `may`.

- A radiologist reads, judges and confirms, decides what is urgent, fetches and stores. A senior
  radiologist may do the same, and differs where annotations are checked (J26).
- Annotators and inspectors work on the data for training (J19 to J28): they see studies, results
  and measurements, and decide nothing about a patient, so they neither confirm nor change the order
  of the worklist nor bring in studies.
- An administrator runs the appliance, sees what arrives and reads the audit, and confirms nothing:
  a radiologist who administers has two accounts. A viewer looks.

Whether something is one's own, as the answers of another node or an unconfirmed judgement are, its
own module decides: a table of roles cannot.
"""

from enum import StrEnum
from types import MappingProxyType
from typing import Final

from flask import Flask, request
from flask_login import current_user
from limits import parse
from limits.strategies import RateLimiter

from appliance import audit, reviews
from appliance.accounts import Role
from webui.errors import Refusal
from webui.language import marked
from webui.resources import resources


class Permission(StrEnum):
    """What a role may do."""

    PASS = "pass"  # noqa: S105 - no password
    """Anybody, signed in or not."""
    BE_HERE = "be here"
    """Whatever concerns one's own account alone, also with a password that must be changed."""
    LOOK = "look"
    TAKE_AWAY = "take away"
    """Look, at what names the patient in a form that nothing here can hide."""
    PRIORITISE = "prioritise"
    CONFIRM = "confirm"
    FETCH = "fetch"
    STORE = "store"
    ADMINISTER = "administer"


_EVERYBODY: Final = frozenset(Role)
_RADIOLOGISTS: Final = frozenset({Role.RADIOLOGIST, Role.SENIOR_RADIOLOGIST})
_ADMINISTRATORS: Final = frozenset({Role.ADMINISTRATOR})

GRANTED: Final = MappingProxyType(
    {
        Permission.PASS: _EVERYBODY,
        Permission.BE_HERE: _EVERYBODY,
        Permission.LOOK: _EVERYBODY,
        Permission.TAKE_AWAY: _EVERYBODY,
        Permission.PRIORITISE: _RADIOLOGISTS | _ADMINISTRATORS,
        Permission.CONFIRM: reviews.MAY_CONFIRM,
        Permission.FETCH: _RADIOLOGISTS | _ADMINISTRATORS,
        Permission.STORE: _RADIOLOGISTS | _ADMINISTRATORS,
        Permission.ADMINISTER: _ADMINISTRATORS,
    }
)
"""The roles that have a permission."""

RULES: Final = MappingProxyType(
    {
        "static": Permission.PASS,
        "language.words": Permission.PASS,
        "health.healthz": Permission.PASS,
        "metrics.scrape": Permission.PASS,  # which decides by itself
        "auth.sign_in": Permission.PASS,
        "openid.start": Permission.PASS,
        "openid.back": Permission.PASS,
        "auth.state": Permission.PASS,
        "auth.unlock": Permission.PASS,
        "auth.sign_out": Permission.BE_HERE,
        "auth.active": Permission.BE_HERE,
        "account.index": Permission.BE_HERE,
        "account.change_password": Permission.BE_HERE,
        "account.sign_out_everywhere": Permission.BE_HERE,
        "account.hide_names": Permission.BE_HERE,
        "account.set_language": Permission.BE_HERE,
        "openapi.document": Permission.LOOK,
        "worklist.index": Permission.LOOK,
        "worklist.rows": Permission.LOOK,
        "worklist.live": Permission.LOOK,
        "worklist.choices": Permission.LOOK,
        "worklist.keep_view": Permission.LOOK,
        "worklist.others": Permission.LOOK,
        "worklist.next_to_review": Permission.LOOK,
        "worklist.set_priority": Permission.PRIORITISE,
        "worklist.retry": Permission.ADMINISTER,
        "viewer.show": Permission.LOOK,
        "viewer.show_version": Permission.LOOK,
        "viewer.state": Permission.LOOK,
        "viewer.manifest": Permission.LOOK,
        "viewer.piece": Permission.LOOK,
        "measurements.index": Permission.LOOK,
        "measurements.save": Permission.LOOK,
        "measurements.remove": Permission.LOOK,
        "preferences.show": Permission.BE_HERE,
        "preferences.put": Permission.BE_HERE,
        "reviews.state": Permission.LOOK,
        "reviews.confirm": Permission.CONFIRM,
        "drafts.save": Permission.CONFIRM,
        "drafts.discard": Permission.CONFIRM,
        "drafts.others": Permission.LOOK,
        "marks.keep": Permission.CONFIRM,
        "marks.piece": Permission.LOOK,
        "report.current": Permission.TAKE_AWAY,
        "report.show": Permission.TAKE_AWAY,
        "report.image": Permission.TAKE_AWAY,
        "report.download": Permission.TAKE_AWAY,
        "upload.index": Permission.STORE,
        "upload.mine": Permission.STORE,
        "upload.begin": Permission.STORE,
        "upload.state": Permission.STORE,
        "upload.append": Permission.STORE,
        "upload.take": Permission.STORE,
        "upload.discard": Permission.STORE,
        "fetching.index": Permission.FETCH,
        "fetching.rows": Permission.FETCH,
        "fetching.ask": Permission.FETCH,
        "fetching.fetch": Permission.FETCH,
        "fetching.retry": Permission.FETCH,
        "fetching.give_up": Permission.FETCH,
        "admin.overview.index": Permission.ADMINISTER,
        "admin.queues.index": Permission.ADMINISTER,
        "admin.queues.retry_study": Permission.ADMINISTER,
        "admin.queues.retry_delivery": Permission.ADMINISTER,
        "admin.queues.drop_delivery": Permission.ADMINISTER,
        "admin.queues.retry_deliveries": Permission.ADMINISTER,
        "admin.peers.index": Permission.ADMINISTER,
        "admin.peers.echo": Permission.ADMINISTER,
        "admin.routing.index": Permission.ADMINISTER,
        "admin.routing.try_rules": Permission.ADMINISTER,
        "admin.storage.index": Permission.ADMINISTER,
        "admin.quality.index": Permission.ADMINISTER,
        "admin.models.index": Permission.ADMINISTER,
        "admin.models.card": Permission.ADMINISTER,
        "admin.users.index": Permission.ADMINISTER,
        "admin.users.add": Permission.ADMINISTER,
        "admin.users.reset_password": Permission.ADMINISTER,
        "admin.users.set_role": Permission.ADMINISTER,
        "admin.users.unlock": Permission.ADMINISTER,
        "admin.users.disable": Permission.ADMINISTER,
        "admin.users.enable": Permission.ADMINISTER,
        "admin.configuration.index": Permission.ADMINISTER,
        "audit_log.index": Permission.ADMINISTER,
        "audit_log.export": Permission.ADMINISTER,
        "dicomweb.search.search_studies": Permission.TAKE_AWAY,
        "dicomweb.search.search_all_series": Permission.TAKE_AWAY,
        "dicomweb.search.search_series": Permission.TAKE_AWAY,
        "dicomweb.search.search_all_instances": Permission.TAKE_AWAY,
        "dicomweb.search.search_study_instances": Permission.TAKE_AWAY,
        "dicomweb.search.search_instances": Permission.TAKE_AWAY,
        "dicomweb.retrieve.study": Permission.TAKE_AWAY,
        "dicomweb.retrieve.series": Permission.TAKE_AWAY,
        "dicomweb.retrieve.instance": Permission.TAKE_AWAY,
        "dicomweb.retrieve.study_metadata": Permission.TAKE_AWAY,
        "dicomweb.retrieve.series_metadata": Permission.TAKE_AWAY,
        "dicomweb.retrieve.instance_metadata": Permission.TAKE_AWAY,
        "dicomweb.retrieve.frames": Permission.TAKE_AWAY,
        "dicomweb.retrieve.bulk_data": Permission.TAKE_AWAY,
        "dicomweb.retrieve.rendered": Permission.TAKE_AWAY,
        "dicomweb.retrieve.rendered_frame": Permission.TAKE_AWAY,
        "dicomweb.store.store": Permission.STORE,
    }
)
"""The permission that each endpoint asks for."""

REFUSALS: Final = MappingProxyType(
    {
        Permission.PRIORITISE: marked(
            "Only radiologists and administrators decide what is urgent."
        ),
        Permission.CONFIRM: marked("Only a radiologist confirms results."),
        Permission.FETCH: marked("Only radiologists and administrators fetch studies."),
        Permission.STORE: marked("Only radiologists and administrators store instances."),
        Permission.ADMINISTER: marked("This is for administrators."),
    }
)
"""What a person without the permission is told."""

NO_RULE: Final = marked("Nobody may do this: the address has no rule.")
CHANGE_FIRST: Final = marked("Choose a password of your own first: sign in with a browser.")
NAMES_HIDDEN: Final = marked(
    "This names the patient, and names are hidden in this session. Show them again first."
)

NOTED_REFUSALS: Final = parse("30 per hour")
"""Of one person, so that a page that asks again and again does not fill the audit."""


def may(permission: Permission) -> bool:
    """Whether whoever asks has a permission, by the table that the addresses are kept by."""
    if permission is Permission.PASS:
        return True
    return bool(current_user.is_authenticated and current_user.role in GRANTED[permission])


def register(app: Flask) -> None:
    """Let templates ask by the names of the permissions: ``may("fetch")``."""
    app.add_template_global(lambda name: may(Permission(name)), "may")


def is_public(endpoint: str | None) -> bool:
    """Whether an endpoint answers strangers."""
    return endpoint is not None and RULES.get(endpoint) is Permission.PASS


def is_own(endpoint: str | None) -> bool:
    """Whether an endpoint concerns the account of whoever asks, and nothing else."""
    return endpoint is not None and RULES.get(endpoint) is Permission.BE_HERE


def require(endpoint: str, limiter: RateLimiter) -> None:
    """Refuse the request of a signed-in person unless the table allows it. Raises Refusal."""
    permission = RULES.get(endpoint)
    if permission is None:
        _note_refused(limiter)
        raise Refusal(NO_RULE)
    if not may(permission):
        _note_refused(limiter)
        raise Refusal(REFUSALS[permission])
    if current_user.must_change_password and permission is not Permission.BE_HERE:
        raise Refusal(CHANGE_FIRST)
    if current_user.names_hidden and permission is Permission.TAKE_AWAY:
        raise Refusal(NAMES_HIDDEN)


def _note_refused(limiter: RateLimiter) -> None:
    if not limiter.hit(NOTED_REFUSALS, "refused", str(current_user.account_id)):
        return
    with resources().database.transaction() as db:
        audit.record(
            db,
            actor=current_user.name,
            tag="web:permission:refused",
            subject=f"account {current_user.account_id}",
            detail={"endpoint": request.endpoint, "method": request.method},
        )

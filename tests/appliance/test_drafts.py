"""What is judged and not confirmed: kept for one person, overwritten by nobody unseen."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from appliance import accounts, drafts, lifecycle, marks, retention, reviews
from appliance.accounts import Role
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.errors import ReviewConflictError, ReviewError, ReviewForbiddenError
from appliance.reviews import Judgement, Mark, Sign
from appliance.tables import Account, Analysis, Review
from tests.appliance import world

ANALYSIS = 1
BOX = (0, 0, 0, 2, 2, 2)
JUDGED: dict[str, Any] = {"marks": {}, "comment": "Begun."}


@pytest.fixture(autouse=True)
def people(database: Database) -> None:
    """A result with two lesions, two radiologists and a viewer."""
    lifecycle.finish(database, world.claimed(database), world.result())
    roles = {"ann": Role.RADIOLOGIST, "bob": Role.RADIOLOGIST, "guest": Role.VIEWER}
    with database.transaction() as db:
        db.add_all(
            Account(name=name, password_hash="", role=role, active=True, created_at=utc_now())
            for name, role in roles.items()
        )


def save(
    database: Database,
    *digests: str,
    revision: int = 0,
    name: str = "ann",
    analysis: int = ANALYSIS,
) -> int:
    with database.transaction() as db:
        account = accounts.named(db, name)
        assert account is not None
        return drafts.save(
            db, analysis, JUDGED, digests=digests, revision=revision, account=account
        )


def region(database: Database, digest: str, *, name: str = "ann") -> None:
    with database.transaction() as db:
        account = accounts.named(db, name)
        assert account is not None
        marks.keep(
            db,
            analysis_id=ANALYSIS,
            account_id=account.id,
            digest=digest,
            box=BOX,
            bits=b"\x0f",
            measures={"volume_ml": 1.0},
        )


def confirm(database: Database, *, seen: int = 0, name: str = "ann", **said: Any) -> Review:
    with database.transaction() as db:
        account = accounts.named(db, name)
        assert account is not None
        judgement = Judgement(**{"positive": True, "lesions": {1: True, 2: True}} | said)
        review = reviews.confirm(
            db, ANALYSIS, judgement, seen=seen, account=account, organisation="Clinic"
        )
        drafts.discard(db, ANALYSIS, account.id)
        return review


def kept(database: Database) -> set[str]:
    with database.snapshot() as db:
        return set(marks.regions(db, ANALYSIS))


def test_a_draft_is_kept_for_each_person(database: Database):
    assert save(database) == 1
    assert save(database, revision=1) == 2
    assert save(database, name="bob") == 1

    with database.snapshot() as db:
        ann, bob = (accounts.named(db, name) for name in ("ann", "bob"))
        assert ann is not None
        assert bob is not None
        mine = drafts.find(db, ANALYSIS, ann.id)
        assert mine is not None
        assert (mine.revision, mine.judged) == (2, JUDGED)
        assert [one.name for one in drafts.others(db, ANALYSIS, ann.id)] == ["bob"]
        assert [one.name for one in drafts.others(db, ANALYSIS, bob.id)] == ["ann"]


def test_a_second_window_overwrites_nothing_that_it_did_not_see(database: Database):
    save(database)

    with pytest.raises(ReviewConflictError, match="another window"):
        save(database)

    assert save(database, revision=1) == 2


def test_who_only_looks_keeps_no_draft(database: Database):
    with pytest.raises(ReviewForbiddenError):
        save(database, name="guest")


def test_a_draft_of_nothing_is_refused(database: Database):
    with pytest.raises(ReviewError, match="no such result"):
        save(database, analysis=4711)
    with pytest.raises(ReviewError, match="draw it again"):
        save(database, "not here")


def test_a_region_stays_as_long_as_a_draft_or_a_review_names_it(database: Database):
    for digest in ("first", "second", "bobs"):
        region(database, digest, name="bob" if digest == "bobs" else "ann")
    save(database, "first", "second")
    assert kept(database) == {"first", "second", "bobs"}

    save(database, "second", revision=1)
    assert kept(database) == {"second", "bobs"}

    confirm(database, marks={3: Mark("second", grown=True)}, signs={3: [Sign.HONEYCOMB]})
    region(database, "third")
    save(database, "third")
    confirm(database, seen=1, marks={3: Mark("third")})
    assert kept(database) == {"second", "third", "bobs"}


def test_the_same_voxels_are_kept_once(database: Database):
    region(database, "same")
    region(database, "same")

    with database.snapshot() as db:
        (row,) = marks.regions(db, ANALYSIS).values()
    assert (marks.bits_of(row), row.box, row.account.name) == (b"\x0f", list(BOX), "ann")


def test_a_confirmation_keeps_what_was_outlined_and_seen(database: Database):
    region(database, "outline")
    region(database, "missed")

    made = confirm(
        database,
        marks={3: Mark("missed", grown=True), 1: Mark("outline")},
        signs={1: [Sign.HONEYCOMB, Sign.GROUND_GLASS], 2: []},
    )

    assert made.marks == [
        {"number": 1, "digest": "outline", "grown": False},
        {"number": 3, "digest": "missed", "grown": True},
    ]
    assert made.signs == {"1": ["ground-glass opacity", "honeycomb lung"]}
    with database.snapshot() as db:
        assert made.lesion_count(db.get_one(Analysis, ANALYSIS)) == 3


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"marks": {3: Mark("elsewhere")}}, "draw it again"),
        ({"marks": {0: Mark("there")}}, "numbered from 1"),
        ({"marks": {65_536: Mark("there")}}, "numbered up to 65535"),
        ({"marks": {1: Mark("there")}, "lesions": {1: False, 2: True}}, "rejected and outlined"),
        ({"signs": {3: [Sign.HONEYCOMB]}}, "no lesion 3"),
        ({"signs": {1: [Sign.HONEYCOMB]}, "lesions": {1: False, 2: True}}, "no lesion 1"),
        ({"marks": {n: Mark("there") for n in range(3, 204)}}, "at most 200"),
    ],
)
def test_what_contradicts_itself_is_refused(database: Database, said: Any, sentence: str):
    region(database, "there")

    with pytest.raises(ReviewError, match=sentence):
        confirm(database, **said)

    with database.snapshot() as db:
        assert reviews.current_review(db, ANALYSIS) is None


def forget_all(db: Any, analysis_id: int, account_id: int) -> None:
    account = db.get_one(Account, account_id)
    drafts.save(db, analysis_id, JUDGED, digests=(), revision=1, account=account)


def discard(database: Database) -> None:
    with database.transaction() as db:
        account = accounts.named(db, "ann")
        assert account is not None
        drafts.discard(db, ANALYSIS, account.id)


@pytest.mark.parametrize(
    "in_the_other_window", [discard, lambda database: save(database, revision=1)]
)
def test_what_is_being_confirmed_is_taken_away_by_no_other_window(
    database: Database, in_the_other_window: Callable[[Database], object]
):
    region(database, "there")
    save(database, "there")

    with ThreadPoolExecutor(1) as threads, database.transaction() as db:
        account = accounts.named(db, "ann")
        assert account is not None
        judgement = Judgement(positive=True, lesions={1: True, 2: True}, marks={3: Mark("there")})
        reviews.confirm(db, ANALYSIS, judgement, seen=0, account=account, organisation="Clinic")
        other = threads.submit(in_the_other_window, database)
        with pytest.raises(TimeoutError):
            other.result(timeout=0.3)
        db.commit()
        other.result(timeout=30)

    assert kept(database) == {"there"}


@pytest.mark.parametrize(
    "in_the_other_window",
    [drafts.discard, forget_all],
)
def test_what_another_window_is_taking_away_is_not_confirmed(
    database: Database, in_the_other_window: Callable[[Any, int, int], None]
):
    region(database, "there")
    save(database, "there")

    with ThreadPoolExecutor(1) as threads, database.transaction() as db:
        account = accounts.named(db, "ann")
        assert account is not None
        in_the_other_window(db, ANALYSIS, account.id)
        confirming = threads.submit(confirm, database, marks={3: Mark("there")})
        with pytest.raises(TimeoutError):
            confirming.result(timeout=0.3)
        db.commit()
        with pytest.raises(ReviewError, match="draw it again"):
            confirming.result(timeout=30)

    with database.snapshot() as db:
        assert reviews.current_review(db, ANALYSIS) is None


def test_drafts_and_regions_go_with_their_study(database: Database, settings: Settings):
    region(database, "there")
    save(database, "there")

    assert retention.remove(database, settings, 1, actor="a")

    assert kept(database) == set()

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select

from appliance import audit, cli, collection, importing, logs, studies
from appliance.config import SETTINGS_VARIABLE, Settings, to_toml
from appliance.database import Database
from appliance.reception import Reception
from appliance.store import Store
from appliance.studies import Recorded
from appliance.tables import AuditEntry, Instance
from tests.support.instances import REAL_STUDY, Names, as_file, ct_instance, needs_real_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    names = Names.fresh()
    for number in range(4):
        as_file(ct_instance(names, InstanceNumber=number), folder / f"{number}.dcm")
    return folder


@pytest.fixture
def take(reception: Reception, database: Database, tmp_path: Path):
    """Import a folder, as the command does."""

    def run(source: Path) -> importing.Imported:
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        collected = collection.collect(source, scratch=scratch)
        return importing.take(collected, reception, database, actor="test")

    return run


def audited(database: Database) -> list[dict[str, int]]:
    with database.snapshot() as db:
        assert audit.verify(db) is None
        entries = db.scalars(select(AuditEntry).where(AuditEntry.tag == importing.TAG))
        return [entry.detail for entry in entries]


def test_what_is_imported_is_there_as_if_it_had_been_received(
    take, folder: Path, database: Database, store: Store
):
    imported = take(folder)

    assert imported.taken == {Recorded.NEW: 4}
    assert imported.refused == ()
    assert len(list(store.objects_dir.rglob("*.dcm"))) == 4
    with database.snapshot() as db:
        assert studies.count(db) == 1
        assert set(db.scalars(select(Instance.source_ae))) == {"import"}


def test_running_again_goes_on_where_it_was(take, folder: Path, database: Database):
    (folder / "3.dcm").rename(folder.parent / "later")
    take(folder)
    (folder.parent / "later").rename(folder / "3.dcm")

    again = take(folder)

    assert again.taken == {Recorded.NEW: 1, Recorded.DUPLICATE: 3}
    assert audited(database) == [
        {"new": 3, "duplicate": 0, "conflict": 0, "refused": 0},
        {"new": 1, "duplicate": 3, "conflict": 0, "refused": 0},
    ]


def test_conflicts_and_refusals_are_told(take, folder: Path, database: Database):
    names = Names.fresh()
    for number in range(2):
        ds = ct_instance(names, SOPInstanceUID="1.2.3", InstanceNumber=number)
        as_file(ds, folder / f"same-{number}")
    as_file(ct_instance(names, StudyInstanceUID=""), folder / "nobodys")
    (folder / "README.txt").write_text("no instance, and no fault")

    imported = take(folder)

    assert imported.taken == {Recorded.NEW: 5, Recorded.CONFLICT: 1}
    assert [(p.name, reason) for p, reason in imported.refused] == [
        ("nobodys", "StudyInstanceUID is missing")
    ]
    assert audited(database)[0]["refused"] == 1


@pytest.mark.parametrize("stray", [b"\0", b" "])
def test_a_padding_byte_too_many_is_left_out_and_told(
    take, folder: Path, stray: bytes, database: Database, store: Store
):
    take(folder)
    for name in ("1.dcm", "2.dcm"):
        with (folder / name).open("ab") as file:
            file.write(stray)

    imported = take(folder)

    assert imported.taken == {Recorded.DUPLICATE: 4}
    assert imported.refused == ()
    assert [(path.name, said) for path, said in imported.mended] == [
        ("1.dcm", importing.PADDED),
        ("2.dcm", importing.PADDED),
    ]
    assert len(list(store.objects_dir.rglob("*.dcm"))) == 4


@pytest.mark.parametrize(("lost", "stray"), [(0, b"x"), (2, b"\0"), (1, b"")])
def test_another_byte_too_many_or_a_part_too_few_is_refused(
    take, folder: Path, lost: int, stray: bytes
):
    file = as_file(ct_instance(Names.fresh(), PixelData=bytes(128)), folder / "cut.dcm")
    file.write_bytes(file.read_bytes()[: -lost or None] + stray)

    imported = take(folder)

    assert imported.taken == {Recorded.NEW: 4}
    assert [path.name for path, _ in imported.refused] == ["cut.dcm"]
    assert imported.mended == ()


def test_a_full_disk_ends_the_import_and_loses_nothing(
    take, reception: Reception, folder: Path, database: Database
):
    reception._min_free_bytes = 1 << 60

    imported = take(folder)

    assert len(imported.refused) == 4
    assert {reason for _, reason in imported.refused} == {
        "disk space is below the watermark, send again later"
    }
    assert audited(database)[0]["refused"] == 4


def test_a_file_that_goes_missing_under_way_is_told_and_the_rest_is_taken(
    reception: Reception, database: Database, folder: Path, tmp_path: Path
):
    collected = collection.collect(folder, scratch=tmp_path)
    (folder / "1.dcm").unlink()

    imported = importing.take(collected, reception, database, actor="test")

    assert imported.taken == {Recorded.NEW: 3}
    ((path, reason),) = imported.refused
    assert (path.name, reason) == ("1.dcm", "cannot be read: No such file or directory")


def test_an_import_broken_off_is_in_the_audit(
    reception: Reception, database: Database, folder: Path, tmp_path: Path
):
    collected = collection.collect(folder, scratch=tmp_path)
    told = iter([None])

    with pytest.raises(StopIteration):  # at the second instance, as Ctrl-C would
        importing.take(collected, reception, database, actor="test", report=lambda: next(told))

    assert audited(database) == [{"new": 2, "duplicate": 0, "conflict": 0, "refused": 0}]


def test_the_audit_names_no_folder(take, tmp_path: Path, database: Database):
    folder = tmp_path / "DOE_JOHN"
    folder.mkdir()
    as_file(ct_instance(Names.fresh()), folder / "a")

    take(folder)

    with database.snapshot() as db:
        entries = [
            (e.subject, e.actor, json.dumps(e.detail)) for e in db.scalars(select(AuditEntry))
        ]
    assert "DOE" not in str(entries)


@pytest.fixture
def invoke(settings: Settings, database: Database, tmp_path: Path, monkeypatch):
    """Run a command of `appliance` on this test's appliance."""
    file = tmp_path / "settings.toml"
    document = {
        "data_dir": str(settings.data_dir),
        "database": {"url": settings.database_url},
        "dicom": {"min_free_bytes": 0},
    }
    file.write_text(to_toml(document))
    monkeypatch.setenv(SETTINGS_VARIABLE, str(file))
    monkeypatch.setattr(logs, "configure", lambda _process: None)  # for this process alone

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli.main, list(map(str, arguments)))

    return run


def test_the_command_sums_up(invoke, folder: Path):
    first = invoke("import", folder)
    again = invoke("import", folder)

    assert first.exit_code == again.exit_code == 0, first.output
    assert "4 new, 0 there already" in first.output
    assert "0 new, 4 there already" in again.output


def test_the_command_says_what_was_mended(invoke, folder: Path):
    with (folder / "1.dcm").open("ab") as file:
        file.write(b"\0")

    result = invoke("import", folder)

    assert result.exit_code == 0
    assert "4 new" in result.output
    assert f"1.dcm: {importing.PADDED}" in result.output


def test_the_command_fails_when_something_was_refused(invoke, folder: Path):
    for number in range(2):
        as_file(ct_instance(Names.fresh(), StudyInstanceUID=""), folder / f"bad-{number}")

    result = invoke("import", folder)

    assert result.exit_code == 1
    assert "4 new" in result.output
    assert "bad-0 and 1 more: StudyInstanceUID is missing" in result.output


def test_the_command_says_that_there_is_nothing(invoke, tmp_path: Path):
    (tmp_path / "empty").mkdir()

    result = invoke("import", tmp_path / "empty")

    assert result.exit_code == 1
    assert "holds no DICOM instance" in result.output


def test_the_command_deidentify_writes_what_may_leave(invoke, folder: Path, settings: Settings):
    out = folder.parent / "out"

    result = invoke("deidentify", folder, "--out", out)

    assert result.exit_code == 0, result.output
    assert "4 images written" in result.output
    assert len([path for path in out.rglob("*") if path.is_file()]) == 4
    assert (settings.data_dir / "deidentification.key").stat().st_mode & 0o777 == 0o600


def test_the_command_deidentify_fails_where_nothing_may_leave(invoke, tmp_path: Path):
    (tmp_path / "empty").mkdir()

    result = invoke("deidentify", tmp_path / "empty", "--out", tmp_path / "out")

    assert result.exit_code == 1
    assert "nothing was written" in result.output


@needs_real_data
def test_the_real_study_is_imported(take):
    assert take(REAL_STUDY).taken == {Recorded.NEW: 133}

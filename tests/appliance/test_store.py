import errno
import hashlib
import os
import resource
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.store import Store, StoredObject


@pytest.fixture
def store(tmp_path: Path):
    return Store(tmp_path / "store")


def files_below(folder: Path):
    return [path for path in folder.rglob("*") if path.is_file()]


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(parts=st.lists(st.binary(max_size=5000), max_size=5))
def test_bytes_come_back_as_they_were_written(store: Store, parts: list[bytes]):
    with store.incoming() as file:
        for part in parts:
            file.write(part)
        stored = file.commit()

    whole = b"".join(parts)
    assert stored.path.read_bytes() == whole
    assert (stored.digest, stored.size_bytes) == (hashlib.sha256(whole).hexdigest(), len(whole))
    assert store.path_of(stored.digest) == stored.path
    assert files_below(store.incoming_dir) == []


def test_the_same_bytes_are_kept_once_and_never_removed(store: Store):
    def put(_: int) -> StoredObject:
        with store.incoming() as file:
            file.write(b"same")
            return file.commit()

    with ThreadPoolExecutor(8) as threads:
        stored = set(threads.map(put, range(32)))

    assert len(stored) == 1
    assert files_below(store.root) == [stored.pop().path]


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
def test_what_ends_before_its_commit_leaves_nothing(store: Store, error: type[BaseException]):
    def interrupted() -> None:
        with store.incoming() as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        interrupted()

    assert files_below(store.root) == []


def test_a_block_that_forgets_to_commit_leaves_nothing(store: Store):
    with store.incoming() as file:
        file.write(b"forgotten")

    assert files_below(store.root) == []


def test_file_and_folders_are_synced_before_the_object_counts(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    synced = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with store.incoming() as file:
        file.write(b"bytes")
        stored = file.commit()

    assert [Path(name).parent for name in synced] == [store.incoming_dir, store.objects_dir]
    assert synced[1] == str(stored.path.parent)


def test_a_name_that_a_crash_left_without_its_bytes_gets_them(store: Store):
    with store.incoming() as file:
        file.write(b"bytes")
        stored = file.commit()
    stored.path.write_bytes(b"")

    with store.incoming() as file:
        file.write(b"bytes")
        again = file.commit()

    assert again == stored
    assert stored.path.read_bytes() == b"bytes"
    assert files_below(store.root) == [stored.path]


def test_a_name_that_is_there_is_replaced_only_by_what_is_on_the_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    did = []
    fsync, replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        did.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().parent.name}")
        fsync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        did.append("replace")
        return replace(path, target)

    first, second = store.incoming(), store.incoming()
    with first, second:  # two senders of one instance, at the same time
        first.write(b"bytes")
        second.write(b"bytes")
        first.commit()
        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(Path, "replace", rename)
        second.commit()

    assert did == ["sync incoming", "replace", "sync objects"]


def test_bytes_whose_sync_failed_are_written_anew(store: Store, monkeypatch: pytest.MonkeyPatch):
    # Linux reports a failed write once; a second sync of the same pages says that all is well.
    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken, store.incoming() as file:
        broken.setattr(os, "fsync", fail)
        file.write(b"bytes")
        with pytest.raises(OSError, match="Input/output"):
            file.commit()
    (lost,) = files_below(store.objects_dir)
    lost_inode = lost.stat().st_ino

    with lost.open("rb"), store.incoming() as file:  # held open, or its number is used again
        file.write(b"bytes")
        stored = file.commit()

    assert stored.path.stat().st_ino != lost_inode
    assert files_below(store.root) == [stored.path]


def test_a_disk_that_is_full_to_the_last_leaves_nothing(store: Store):
    # A limit on the size of files stands for the full disk: the last write takes a part.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        with store.incoming() as file:
            for _ in range(30):
                file.write(bytes(1000))

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_500, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert files_below(store.root) == []


def test_the_folders_of_a_new_store_are_synced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    store = Store(tmp_path / "new")
    Store(tmp_path / "new")

    assert synced == [str(store.objects_dir), str(store.root)]


def test_what_is_not_synced_by_itself_is_synced_with_the_rest(store: Store, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise AssertionError(f"descriptor {descriptor} is synced by itself")

    monkeypatch.setattr(os, "fsync", refuse)
    with store.incoming() as file:
        file.write(b"bytes")
        stored = file.commit(sync=False)

    store.sync()

    assert stored.path.read_bytes() == b"bytes"


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "1.2.840", f"{'a' * 64}\n"])
def test_nothing_but_a_digest_becomes_a_path(store: Store, name: str):
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        store.path_of(name)


def test_leftovers_of_dead_writers_are_swept_and_live_ones_kept(store: Store):
    (store.incoming_dir / "dead").write_bytes(b"half")
    os.utime(store.incoming_dir / "dead", (1, 1))

    with store.incoming() as file:
        file.write(b"live")
        assert store.sweep_incoming() == 1
        stored = file.commit()

    assert files_below(store.root) == [stored.path]


def test_nobody_else_may_read_the_store(store: Store):
    with store.incoming() as file:
        stored = file.commit()

    for folder in (store.incoming_dir, store.objects_dir, stored.path.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_free_space_is_that_of_the_disk(store: Store):
    assert (
        0
        < store.free_bytes()
        <= os.statvfs(store.root).f_bavail * os.statvfs(store.root).f_frsize * 1.1
    )

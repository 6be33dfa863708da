from pathlib import Path

import pytest

from pipelines.files import whole_file


def test_a_file_appears_whole_or_stays_as_it_was(tmp_path: Path):
    path = tmp_path / "metrics.json"
    path.write_text("older")

    with pytest.raises(TypeError), whole_file(path) as file:
        file.writelines([b"half", "no bytes"])

    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
    assert path.read_text() == "older"
    with whole_file(path) as file:
        file.write(b"newer")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["newer"]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path):
    path = tmp_path / "kept" / "file"

    with whole_file(path) as one:
        one.write(b"one")
        with whole_file(path) as other:
            other.write(b"other")
            assert not path.exists()
        assert path.read_text() == "other"

    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]

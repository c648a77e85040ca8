"""Files that are whole or absent, small tables, hashes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flare.core.files import (
    atomic,
    config_hash,
    read_csv,
    read_json,
    remove_partial,
    sha256,
    stat_key,
    write_csv,
    write_json,
    write_text,
)


def test_a_file_appears_whole_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "case.nii.gz"
    with atomic(path) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == ["case.nii.gz"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half() -> None:
        with atomic(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_before_anything_was_written(tmp_path: Path) -> None:
    def nothing() -> None:
        with atomic(tmp_path / "a.txt"):
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        nothing()
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_no_half_file(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from flare.core.files import atomic\n"
        "with atomic(Path(sys.argv[1])) as t:\n"
        "    t.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.json"], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "a.json").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".partial-")
    (tmp_path / "other.txt").write_text("stays")
    remove_partial(tmp_path)
    assert os.listdir(tmp_path) == ["other.txt"]


def test_tables(tmp_path: Path) -> None:
    rows = [{"case": "a, b", "dsc": 0.5, "note": None}, {"case": "é", "dsc": 1.0, "other": 3}]
    write_csv(tmp_path / "t.csv", rows, ["case", "dsc", "note"])
    assert (tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()[0] == "case,dsc,note"
    assert read_csv(tmp_path / "t.csv") == [
        {"case": "a, b", "dsc": "0.5", "note": ""},
        {"case": "é", "dsc": "1.0", "note": ""},
    ]
    write_csv(tmp_path / "u.csv", rows[:1])
    assert read_csv(tmp_path / "u.csv") == [{"case": "a, b", "dsc": "0.5", "note": ""}]
    write_csv(tmp_path / "e.csv", [], ["case"])
    assert read_csv(tmp_path / "e.csv") == []


def test_json_and_text(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, 2.5, None], "ü": "x"})
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, None], "ü": "x"}
    write_text(tmp_path / "a.txt", "°")
    assert (tmp_path / "a.txt").read_bytes() == "°".encode()


def test_sha256(tmp_path: Path) -> None:
    content = os.urandom(3_000_001)  # more than one block
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_config_hash_depends_on_values_alone() -> None:
    assert config_hash({"a": 1, "b": {"c": 2, "d": 3}}) == config_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert config_hash({"a": (1, 2)}) == config_hash({"a": [1, 2]})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert config_hash([1, 2]) != config_hash([2, 1])


def test_config_hash_of_a_label_map() -> None:
    """Numbers and `rest` as keys of one map."""
    one = config_hash({"label_map": {5: 1, 52: 5, "rest": 0}})
    assert one == config_hash({"label_map": {"rest": 0, 52: 5, 5: 1}})
    assert one != config_hash({"label_map": {5: 1, 52: 6, "rest": 0}})


def test_a_touched_file_has_another_key(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    first = stat_key(path)
    assert first[0] == 5
    os.utime(path, ns=(1, first[1] + 1))
    assert stat_key(path) != first


def test_a_folder_changes_with_any_of_its_files(tmp_path: Path) -> None:
    keys = [stat_key(tmp_path)]
    for change in (
        lambda: (tmp_path / "0.dcm").write_bytes(b"1"),
        lambda: (tmp_path / "1.dcm").write_bytes(b""),
        lambda: os.utime(tmp_path / "0.dcm", ns=(0, 10**18)),
        lambda: (tmp_path / "1.dcm").unlink(),
    ):
        change()
        keys.append(stat_key(tmp_path))
    assert len({tuple(k) for k in keys}) == len(keys)

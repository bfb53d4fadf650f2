"""`fastard.files`: readers see the old file or the new one, never a part."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastard.files import atomic_path, require_writable_dir, write_json


def test_atomic_path_renames_on_success(tmp_path: Path) -> None:
    target = tmp_path / "plot.png"
    target.write_text("old")
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["plot.png"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_path_leaves_the_old_file_on_an_error(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_path_gives_the_permissions_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("")
    with atomic_path(tmp_path / "ours") as temporary:
        # As the writer of safetensors does.
        os.close(os.open(temporary, os.O_CREAT, 0o600))
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_atomic_path_names_what_is_missing(tmp_path: Path) -> None:
    target = tmp_path / "none" / "a.txt"
    with pytest.raises(FileNotFoundError, match="the folder .*none does not exist"):
        with atomic_path(target):
            pytest.fail("the block must not run")
    with pytest.raises(NotADirectoryError, match="cannot write .*null/a.txt: .*null is no folder"):
        with atomic_path(Path(os.devnull) / "a.txt"):
            pytest.fail("the block must not run")
    with pytest.raises(FileNotFoundError, match="nothing was written"), atomic_path(tmp_path / "a"):
        assert os.listdir(tmp_path) == []


def test_two_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with atomic_path(target) as one:
        one.write_text("one")
        with atomic_path(target) as two:
            assert one != two
            two.write_text("two")
        assert target.read_text() == "two"
    assert target.read_text() == "one"


def test_write_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {
        "é": [1, 2.5, None, True],
        "path": Path("x") / "y",
        "numpy": np.float32(0.5),
        "array": np.arange(3),
        "tensor": torch.tensor([[1.5]]),
        "scalar": torch.tensor(2),
    }
    write_json(path, content)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "é": [1, 2.5, None, True],
        "path": os.path.join("x", "y"),
        "numpy": 0.5,
        "array": [0, 1, 2],
        "tensor": [[1.5]],
        "scalar": 2,
    }
    assert path.read_text(encoding="utf-8").startswith('{\n  "é"')


@pytest.mark.parametrize(
    ("value", "error"), [(float("nan"), ValueError), (float("inf"), ValueError), ({1}, TypeError)]
)
def test_write_json_refuses_before_it_writes(
    tmp_path: Path, value: object, error: type[Exception]
) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(error):
        write_json(path, {"a": value})
    assert path.read_text() == "1\n"


def test_require_writable_dir_makes_the_folder(tmp_path: Path) -> None:
    folder = require_writable_dir(str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b"
    assert folder.is_dir()
    assert os.listdir(folder) == []
    assert require_writable_dir(folder) == folder


def test_require_writable_dir_refuses_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        with pytest.raises(NotADirectoryError, match="output folder .*is a file"):
            require_writable_dir(path)


def test_require_writable_dir_refuses_a_read_only_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(PermissionError, match="is not writable: Read-only file system"):
        require_writable_dir(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_require_writable_dir_refuses_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for path in (tmp_path, tmp_path / "below"):
        with pytest.raises(PermissionError, match="is not writable"):
            require_writable_dir(path)

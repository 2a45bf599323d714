"""The tool says why a procfile is not read, with the exit status of each reason."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest import mock

import pytest

import cplayground
from cplayground import errors, reading

TEXT = b"%s\t7\t1\t0\t1\tcat\n\n" % (b"a" * 64)


def test_a_kept_text_is_read(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(TEXT)
    assert cplayground.read(kept) == cplayground.parse(TEXT)


def test_a_refused_text_is_named_with_its_file(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(TEXT + b"x\n")
    with pytest.raises(errors.RefusedTextError) as caught:
        cplayground.read(kept)
    assert str(caught.value) == f"{kept}: line 3, column 1: 1 columns, not 6"
    assert (caught.value.status, caught.value.line, caught.value.column) == (5, 3, 1)


@pytest.mark.parametrize(
    ("number", "own", "kept"),
    [
        (errno.ENOENT, 3, 2),  # the module is not loaded
        (errno.EIO, 3, 74),  # it was unloaded during the reading
        (errno.EACCES, 4, 4),  # the mode, or the procfs of a container
        (errno.EPERM, 4, 4),
        (errno.EISDIR, 2, 2),
        (errno.ENOMEM, 74, 74),
    ],
)
def test_each_error_of_the_system_has_its_status(number: int, own: int, kept: int) -> None:
    failing = mock.patch.object(
        Path, "read_bytes", side_effect=OSError(number, os.strerror(number))
    )
    for path, status in ((reading.PROCFILE, own), ("/kept/text", kept)):
        with failing, pytest.raises(errors.Error) as caught:
            cplayground.read(path)
        assert caught.value.status == status
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("user", "hint"), [(0, "the host's own PID namespace"), (1000, "as root")])
def test_a_refused_user_is_told_what_to_do(user: int, hint: str) -> None:
    with (
        mock.patch.object(Path, "read_bytes", side_effect=PermissionError(errno.EACCES, "no")),
        mock.patch("os.geteuid", return_value=user),
        pytest.raises(errors.NotPermittedError) as caught,
    ):
        cplayground.read()
    assert hint in caught.value.hint

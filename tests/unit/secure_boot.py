"""A key for Secure Boot, and small files that it can sign, for tests without root."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from kbuild.core import sandbox
from kbuild.core.model import Settings
from kbuild.core.run import Arg
from kbuild.core.sandbox import Bind
from kbuild.ship import mok

_SOURCE = ".globl _start\n_start:\n\tmov ${number}, %eax\n\tret\n"


def efi(path: Path, number: int = 1) -> Path:
    """Make a program for EFI, as a kernel with an EFI stub is one; other numbers, other bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".o")
    source = _SOURCE.format(number=number).encode()
    subprocess.run(["as", "-o", part, "-"], input=source, check=True)
    linked: list[str | Path] = [
        "ld",
        "-m",
        "i386pep",
        "--subsystem",
        "10",
        "-e",
        "_start",
        "-o",
        path,
        part,
    ]
    subprocess.run(linked, check=True)
    part.unlink()
    # sbsign fills a file up to such a boundary before it signs.
    content = path.read_bytes()
    path.write_bytes(content + bytes(-len(content) % 512))
    return path


def with_key(settings: Settings, home: Path) -> Settings:
    """Make a key in ``home``, and return settings that sign with it."""
    own = dataclasses.replace(settings, mok_key=home / "key", mok_certificate=home / "certificate")
    mok.make(own)
    return own


def fake_sign_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a function append signatures in place of sign-file, which needs a root."""

    def enter(_: object, argv: Sequence[Arg], *, binds: Sequence[Bind], **__: object) -> None:
        def shown(place: Arg) -> Path:
            (found,) = (one for one in binds if str(place).startswith(one.target))
            return found.source / str(place).removeprefix(found.target).lstrip("/")

        program, option, signature, digest, certificate, module, out = argv
        assert str(program).endswith("/sign-file") and (option, digest) == ("-s", "sha256")
        assert shown(certificate).is_file()
        content = shown(module).read_bytes() + shown(signature).read_bytes()
        shown(out).write_bytes(content + b"\0" * 12 + b"~Module signature appended~\n")

    monkeypatch.setattr(sandbox, "enter", enter)

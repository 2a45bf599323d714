"""The tasks ``keys.*``, as a user and a pipeline call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kbuild.core import fs
from kbuild.ship import signing
from tests.unit.command_line import Here, here
from tests.unit.test_docs import first_column

__all__ = ["here"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "data/cplayground-kernel/keys"


def test_keys_are_made_listed_and_exported(here: Here, home: Path, tmp_path: Path) -> None:
    status, out, _ = here("keys.list")
    assert (status, home.exists()) == (0, False)
    assert "keys.make" in out
    status, out, _ = here("keys.make")
    assert status == 0
    made = out.splitlines()[-1].split()[-1]
    assert f"{made} signs, made " in here("keys.list")[1]
    for name in ("keyring.gpg", "keyring.asc"):
        assert here("keys.export", f"--output={tmp_path / name}")[0] == 0
    assert (tmp_path / "keyring.asc").read_text() == here("keys.export")[1]
    assert b"PUBLIC KEY BLOCK" not in (tmp_path / "keyring.gpg").read_bytes()
    # Nothing is written but the keys and the exported files.
    assert {path.name for path in tmp_path.iterdir()} == {"data", "keyring.gpg", "keyring.asc"}
    assert here("keys.make")[0] == 2


def test_a_rotation_is_shown_and_ended(here: Here) -> None:
    assert here("keys.rotate")[0] == 2
    old = here("keys.make")[1].split()[0]
    status, out, _ = here("keys.rotate")
    assert status == 0
    assert f"{old} also signs until " in out
    assert here("keys.rotate")[0] == 2
    status, out, _ = here("keys.rotate", "--finish")
    assert status == 0
    assert f"{old} retired" in out
    assert old not in out.splitlines()[-1]


def test_a_dry_run_changes_nothing(here: Here, home: Path, tmp_path: Path) -> None:
    assert here("--dry", "keys.make")[0] == 0
    assert not home.exists()
    here("keys.make")
    before = fs.sha256_tree(home)
    for words in ("keys.rotate", "keys.rotate --finish", f"keys.export --output={tmp_path / 'x'}"):
        assert here("--dry", *words.split())[0] == 0
    assert fs.sha256_tree(home) == before
    assert not (tmp_path / "x").exists()


def test_another_fingerprint_is_42(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert here("keys.export")[0] == 42
    here("keys.make")
    monkeypatch.setenv("INVOKE_SIGNING_KEY", "0" * 40)
    assert here("keys.export")[0] == 42


def test_documents_have_the_documented_fields(here: Here, tmp_path: Path) -> None:
    common = {*first_column("json.md", "Every document")}
    for words in (
        "keys.make",
        "keys.export",
        f"keys.export --output={tmp_path / 'x'}",
        "keys.rotate",
        "keys.list",
    ):
        task, *options = words.split()
        status, out, _ = here(task, "--json", *options)
        assert status == 0
        found = json.loads(out)
        assert sorted(set(found) - common) == sorted(first_column("json.md", task))
    fields = [name for cell in first_column("json.md", "A key") for name in cell.split("`, `")]
    assert sorted(found["keys"][0]) == sorted(fields)
    assert [key["role"] for key in found["keys"]] == ["also signs", "signs"]


def test_the_roles_are_documented() -> None:
    assert sorted(first_column("signing.md", "Roles")) == sorted(signing.Role)
    assert (
        "60 days"
        in Path(signing.__file__).parents[2].joinpath("docs/reference/signing.md").read_text()
    )
    assert signing.ROTATION.days == 60

"""The tasks on the archive, with their documents and exit statuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kbuild import answer
from kbuild.archive import operations
from kbuild.core.model import Settings
from tests.unit import releases
from tests.unit.command_line import Here, here
from tests.unit.releases import release
from tests.unit.test_docs import first_column

__all__ = ["here"]

ONE, TWO = release(1, small=True), release(2, small=True)
COMMON = {*answer.COMMON}


@pytest.fixture
def given(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An archive with two staged releases, to which the configuration leads."""
    given = releases.settings(tmp_path / "own")
    monkeypatch.setenv("INVOKE_ARCHIVE_DIR", str(given.archive))
    monkeypatch.setenv("INVOKE_KEYS_DIR", str(given.keys))
    for one in (ONE, TWO):
        operations.stage(given, one, releases.files(given.build, one))
    return given


def asked(run_here: Here, name: str, *words: str, status: int = 0) -> dict[str, Any]:
    code, out, err = run_here(name, *words, "--json")
    found: dict[str, Any] = json.loads(out)
    assert code == status, err
    if not found["error"]:
        assert sorted(set(found) - COMMON) == sorted(
            field for cell in first_column("json.md", name) for field in cell.split("`, `")
        )
    return found


def test_the_archive_is_signed_again(given: Settings, here: Here) -> None:
    asked(here, "promote", ONE.id)
    before = (given.archive / "dists/bookworm").readlink()
    found = asked(here, "sign-archive")
    assert sorted(found["until"]) == ["bookworm", "bookworm-staging"]
    assert found["summary"].startswith("signed: bookworm, bookworm-staging, valid until 2")
    assert (given.archive / "dists/bookworm").readlink() != before
    assert asked(here, "verify-archive")["findings"] == []


@pytest.mark.usefixtures("given")
def test_a_certificate_is_withdrawn_by_its_digest_only(here: Here) -> None:
    found = asked(here, "sign-archive", "--withdraw-mok", "0" * 64, status=2)
    assert "no such certificate" in found["error"]["what"]
    assert "none" in found["error"]["expected"]


def test_without_an_archive_nothing_is_signed(here: Here) -> None:
    found = asked(here, "sign-archive", status=2)
    assert "there is no archive" in found["error"]["what"]


@pytest.mark.usefixtures("given")
def test_a_release_is_promoted_and_rolled_back(here: Here) -> None:
    assert asked(here, "promote", ONE.id)["release"]["percent"] == 10
    done = asked(here, "promote", ONE.id, "--percent", "100")
    assert done["summary"] == f"promoted to 100 %: {ONE.id}"
    asked(here, "promote", TWO.id, "--percent=50")
    listed = asked(here, "releases")["releases"]
    assert [(one["id"], one["state"], one["percent"]) for one in listed] == [
        (TWO.id, "promoted", 50),
        (ONE.id, "promoted", 100),
    ]
    back = asked(here, "rollback", TWO.id, "--reason", "hangs")
    assert (back["older"], back["release"]["state"]) == (ONE.id, "withdrawn")
    assert asked(here, "verify-archive")["findings"] == []


@pytest.mark.usefixtures("given")
def test_the_list_for_people(here: Here) -> None:
    status, out, _ = here("releases")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split() == ["release", "state", "since"]
    assert [line.split()[:2] for line in lines[1:]] == [[TWO.id, "staged"], [ONE.id, "staged"]]


def test_without_an_archive(here: Here, tmp_path: Path) -> None:
    status, out, _ = here("releases")
    assert (status, "no release in" in out) == (0, True)
    for words in (("verify-archive",), ("promote", ONE.id), ("rollback", ONE.id)):
        found = asked(here, *words, status=2)
        assert found["error"]["what"].startswith("there is no archive in ")
    assert not (tmp_path / "data").exists()


def test_damage_has_its_status_and_its_place(given: Settings, here: Here) -> None:
    (path,) = (given.archive / "pool").rglob("linux-image-6*cplayground.2-*.deb")
    path.write_bytes(b"x")
    found = asked(here, "verify-archive", status=65)
    assert {one["path"] for one in found["findings"]} == {str(path.relative_to(given.archive))}
    assert asked(here, "promote", TWO.id, status=40)["error"]["kind"] == "evidence"
    status, _, err = here("verify-archive")
    assert status == 65
    assert path.name in err


@pytest.mark.usefixtures("given")
def test_requests_that_make_no_sense(here: Here) -> None:
    assert asked(here, "promote", "no-such-release", status=2)["error"]["kind"] == "usage"
    assert here("promote", ONE.id, "--percent", "30")[0] == 2
    assert here("promote")[0] == 2
    assert here("rollback")[0] == 2


def test_a_dry_run_changes_nothing(given: Settings, here: Here) -> None:
    before = sorted(given.archive.rglob("*"))
    for words in (("promote", ONE.id), ("rollback", ONE.id), ("verify-archive",), ("releases",)):
        assert here("--dry", *words)[0] == 0
    assert sorted(given.archive.rglob("*")) == before

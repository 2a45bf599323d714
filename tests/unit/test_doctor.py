"""The doctor's findings on machines that have everything, nothing, and half."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kbuild import doctor
from kbuild.core.errors import UserError
from kbuild.core.model import Settings
from kbuild.doctor import Finding
from tests.unit import fake_kernel

PROJECT = Path(__file__).resolve().parents[2]
LIST = """\
# comment
mmdebstrap   mmdebstrap                    makes roots
uidmap       newuidmap,newgidmap           maps ids

keyring      {keyring}                     trusts
python3-venv -                             makes .venv
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings of a project whose list names four packages, on a PATH without programs."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "host-packages.txt").write_text(LIST.format(keyring=tmp_path / "keyring.gpg"))
    (tmp_path / "bin").mkdir()
    # Every run of a program needs these.
    for program in ("cat", "setpriv"):
        (tmp_path / "bin" / program).symlink_to(shutil.which(program) or "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("kbuild.core.run._SBIN", ())
    sources(tmp_path, "")
    return Settings(
        project=project,
        build=tmp_path / "build",
        cache=tmp_path / "cache",
        jobs=2,
        mirrors=("http://a.example/debian",),
    )


def sources(top: Path, text: str) -> None:
    """Let apt-get list these sources as the machine's."""
    fake_kernel.write(top / "sources", text)
    script = f"#!/bin/sh\ncat {top}/sources\n"
    fake_kernel.write(top / "bin/apt-get", script, mode=0o755)


def install(settings: Settings, *programs: str) -> None:
    for program in programs:
        path = settings.project.parent / "bin" / program
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)


def by_name(settings: Settings) -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor.check(settings)}


def test_a_missing_program_names_its_package(settings: Settings) -> None:
    install(settings, "mmdebstrap", "newuidmap")
    found = by_name(settings)
    assert found["mmdebstrap"].ok
    assert found["newuidmap"].ok
    assert not found["newgidmap"].ok
    assert "maps ids" in found["newgidmap"].detail
    assert "apt-get install --no-install-recommends uidmap" in found["newgidmap"].remedy
    assert "python3-venv" not in found


def test_a_missing_file_is_seen(settings: Settings) -> None:
    keyring = settings.project.parent / "keyring.gpg"
    assert not by_name(settings)[str(keyring)].ok
    keyring.touch()
    assert by_name(settings)[str(keyring)].ok


def test_the_list_of_this_project_is_complete() -> None:
    packages = doctor.host_packages(PROJECT / "host-packages.txt")
    assert len({package.name for package in packages}) == len(packages)
    needs = [need for package in packages for need in package.needs]
    assert len(set(needs)) == len(needs)
    assert {"mmdebstrap", "bwrap", "qemu-system-x86_64", "gpgv", "setpriv"} <= set(needs)


def test_an_incomplete_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "host-packages.txt"
    path.write_text("# fine\nmmdebstrap mmdebstrap\n")
    with pytest.raises(UserError, match="line 2 is incomplete"):
        doctor.host_packages(path)


def test_a_check_that_fails_itself_is_a_finding(settings: Settings) -> None:
    (settings.project / "host-packages.txt").unlink()
    found = by_name(settings)
    assert not found["programs"].ok
    assert found["programs"].detail.startswith("This could not be checked. FileNotFoundError: ")
    assert found["Python"].ok  # and the others are made all the same


def test_no_mirror_is_a_finding_with_the_errors_own_hint(settings: Settings) -> None:
    finding = by_name(replace(settings, mirrors=()))["mirrors"]
    assert "No mirror of Debian's main archive is known" in finding.detail
    assert not finding.ok
    assert "with --mirror" in finding.remedy


def test_a_mirrors_password_is_not_shown(settings: Settings) -> None:
    secret = replace(settings, mirrors=("http://me:secret@a.example/debian",))
    assert by_name(secret)["mirror"].detail == "http://***@a.example/debian"


def usage(free: int) -> Callable[[Path], object]:
    return lambda path: SimpleNamespace(total=2 * free, used=free, free=free)


@pytest.mark.parametrize(("free", "ok"), [(doctor.DISK_NEEDED - 1, False), (10**11, True)])
def test_disk_space(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, free: int, ok: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", usage(free))
    found = by_name(settings)
    assert found["disk for build/"].ok is ok
    assert found["disk for caches"].ok is ok
    assert bool(found["disk for caches"].remedy) is not ok


def test_memory() -> None:
    text = "MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable:   2048 kB\n"
    assert doctor.memory_available(text) == 2048 * 1024
    with pytest.raises(ValueError, match="no MemAvailable"):
        doctor.memory_available("MemTotal: 1 kB\n")


def test_without_root_the_privileges_are_missing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert by_name(settings)["privileges"].ok
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    found = by_name(settings)["privileges"]
    assert not found.ok
    assert "sudo ./inv" in found.remedy


def test_caches_are_sized_by_part(settings: Settings) -> None:
    assert by_name(settings)["caches"].detail.endswith("cache: empty; safe to delete")
    (settings.cache / "files").mkdir(parents=True)
    (settings.cache / "files" / "linux.tar").write_bytes(b"x" * 200_000)
    (settings.cache / "roots").mkdir()
    (settings.cache / "x.lock").touch()
    detail = by_name(settings)["caches"].detail
    assert "files 20" in detail
    assert "roots 0 B" in detail
    assert "x.lock" not in detail


def test_kvm_is_never_a_failure(settings: Settings) -> None:
    assert by_name(settings)["accelerator"].ok


def test_the_accelerator_that_was_tried_is_shown(settings: Settings) -> None:
    directory = settings.cache / "accelerator"
    directory.mkdir(parents=True)
    (directory / "1.json").write_text('{"accelerator": "tcg", "evidence": "KVM hung"}')
    assert by_name(settings)["accelerator tried"].detail == "tcg: KVM hung"
    (directory / "2.json").write_text("{}")
    found = [one for one in doctor.check(settings) if one.name == "accelerator tried"]
    assert [one.detail.rpartition("/")[2] for one in found] == [
        "tcg: KVM hung",
        "2.json is damaged: the next guest repeats the trial",
    ]
    assert all(one.ok for one in found)


def test_rendering() -> None:
    findings = (
        Finding("git", True, "/usr/bin/git"),
        Finding("bwrap", False, "not found [it] enters roots", "install bubblewrap"),
    )
    assert doctor.render(findings, width=80) == (
        "ok       git    /usr/bin/git\n"
        "MISSING  bwrap  not found [it] enters roots\n"
        "bwrap: install bubblewrap\n"
    )
    assert not doctor.healthy(findings)
    assert doctor.healthy(findings[:1])


def test_findings_are_sentences(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    project_list = (PROJECT / "host-packages.txt").read_text()
    (settings.project / "host-packages.txt").write_text(project_list.replace("/usr/", "/none/"))
    settings.cache.touch()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(shutil, "disk_usage", usage(5))
    monkeypatch.setattr(doctor, "MEMORY_NEEDED", 1 << 60)
    monkeypatch.setattr(doctor, "_PYTHON_NEEDED", (4, 0))
    bad = [one for one in doctor.check(replace(settings, mirrors=())) if not one.ok]
    assert len(bad) > 30
    for finding in bad:
        for said in (finding.detail, finding.remedy):
            assert re.fullmatch(r"([A-Z/].*\w.*\.)?", said), finding
        assert len(finding.detail.split()) > 3, finding
        assert not re.search(r"\.\.$|; it |which (the|a|children)\b", finding.detail), finding


def test_a_place_that_cannot_be_is_named(settings: Settings) -> None:
    assert "places" not in by_name(settings)
    settings.cache.touch()
    assert "cannot be a directory" in by_name(settings)["places"].detail

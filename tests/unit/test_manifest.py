"""The manifest: which inputs each result was made from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from kbuild.core.errors import BuildError
from kbuild.core.fs import sha256_file
from kbuild.core.model import Root
from kbuild.ship import manifest
from kbuild.ship.manifest import Manifest
from tests.unit import fake_kernel


def describe(tmp_path: Path) -> tuple[Path, Manifest]:
    settings = replace(fake_kernel.settings(tmp_path), revision=2)
    kernel = fake_kernel.kernel(tmp_path)
    fragment = fake_kernel.write(tmp_path / "own.config", "CONFIG_TRIM=y  # größer\n")
    kernel = replace(kernel, target=replace(kernel.target, fragments=(fragment,)))
    root = Root("bookworm", tmp_path / "root", "0" * 64, {"make": "4.3-4.1", "bc": "1.07.1-3"})
    packages = [
        fake_kernel.package(settings.build / "debs", name, "1", name) for name in ("b", "a")
    ]
    described = manifest.describe(
        settings,
        [kernel],
        packages,
        {"compile": 12.34567, "fetch": 1},
        build=manifest.build_record(settings, kernel, root, fake_kernel.EPOCH),
    )
    return settings.build / "manifest.json", described


def test_round_trip(tmp_path: Path) -> None:
    path, described = describe(tmp_path)
    manifest.write(path, described)
    assert manifest.read(path) == described
    assert manifest.verify(path) == described


def test_a_record_says_how_its_kernel_was_built(tmp_path: Path) -> None:
    path, described = describe(tmp_path)
    manifest.write(path, described)
    _, build = manifest.single(manifest.read(path))
    assert (build.revision, build.epoch) == (2, fake_kernel.EPOCH)
    assert build.root == {"bc": "1.07.1-3", "make": "4.3-4.1"}
    (fragment,) = build.fragments
    assert (fragment.name, fragment.text) == ("own.config", "CONFIG_TRIM=y  # größer\n")
    assert fragment.sha256 == sha256_file(tmp_path / "own.config")


def test_a_record_of_an_earlier_version_is_read_and_says_less(tmp_path: Path) -> None:
    path, described = describe(tmp_path)
    manifest.write(path, described)
    raw = json.loads(path.read_text())
    del raw["kernels"][0]["build"]
    path.write_text(json.dumps(raw))
    found = manifest.read(path)
    assert found.outputs == described.outputs
    with pytest.raises(BuildError, match="does not say how it was built"):
        manifest.single(found)
    with pytest.raises(BuildError, match="not the record of one target"):
        manifest.single(replace(described, kernels=described.kernels * 2))


def test_outputs_are_tied_to_inputs(tmp_path: Path) -> None:
    _, described = describe(tmp_path)
    (kernel,) = described.kernels
    assert kernel.signers == ("A" * 40, "B" * 40)
    assert kernel.base_version == "6.1.192-2"
    assert [file.name for file in kernel.files] == [
        "linux-source-6.1",
        "linux-image-6.1.0-56-cloud-amd64",
        "linux-headers-6.1.0-56-cloud-amd64",
        "linux-kbuild-6.1",
    ]
    assert kernel.config_sha256 == sha256_file(tmp_path / "config")
    assert kernel.patches[0].sha256 == sha256_file(tmp_path / "patches/0001-export.patch")
    assert kernel.exports == ("get_files_struct", "put_files_struct")
    assert kernel.method == "fast"
    assert [output.path for output in described.outputs] == [
        "debs/a_1_amd64.deb",
        "debs/b_1_amd64.deb",
    ]
    assert described.seconds == {"compile": 12.346, "fetch": 1}


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    path, described = describe(tmp_path)
    manifest.write(path, described)
    first = path.read_bytes()
    turned = replace(described, seconds=dict(reversed(list(described.seconds.items()))))
    manifest.write(path, turned)
    assert path.read_bytes() == first


def test_changed_and_lost_outputs_are_named(tmp_path: Path) -> None:
    path, described = describe(tmp_path)
    manifest.write(path, described)
    with (path.parent / "debs/a_1_amd64.deb").open("ab") as stream:
        stream.write(b"x")
    (path.parent / "debs/b_1_amd64.deb").unlink()
    with pytest.raises(BuildError, match="2 of 2 outputs") as caught:
        manifest.verify(path)
    assert "no such file  debs/b_1_amd64.deb" in str(caught.value.found)
    assert "debs/a_1_amd64.deb" in str(caught.value.expected)


def test_package_from_elsewhere_is_refused(tmp_path: Path) -> None:
    package = fake_kernel.package(tmp_path / "elsewhere", "a", "1")
    with pytest.raises(BuildError, match="outside the build directory"):
        manifest.describe(fake_kernel.settings(tmp_path), [], [package], {})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is not a manifest"),
        ("[]", "is not a manifest"),
        ("{}", "is not a manifest"),
        ('{"format": 99}', "another format"),
    ],
)
def test_damaged_manifest_is_refused(tmp_path: Path, text: str, match: str) -> None:
    path = fake_kernel.write(tmp_path / "manifest.json", text)
    with pytest.raises(BuildError, match=match):
        manifest.read(path)


def test_unknown_field_is_refused(tmp_path: Path) -> None:
    path, described = describe(tmp_path)
    manifest.write(path, described)
    raw = json.loads(path.read_text())
    raw["outputs"][0]["colour"] = "red"
    path.write_text(json.dumps(raw))
    with pytest.raises(BuildError, match="colour"):
        manifest.read(path)


def test_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="cannot read"):
        manifest.verify(tmp_path / "manifest.json")


def git(where: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    done = subprocess.run(
        ["git", "-C", where, *identity, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def repository(where: Path) -> str:
    """Make a repository with one commit; returns its name."""
    fake_kernel.write(where / "file", "1")
    fake_kernel.write(where / "kmod/main.c", "1")
    git(where, "init", "-q")
    git(where, "add", "--all")
    git(where, "commit", "-q", "-m", "one")
    return git(where, "rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("path", "dirty"),
    [
        (None, False),
        ("file", True),
        # Untracked: only what an output is made of counts.
        ("invoke.yaml", False),
        ("notes/kmod/x", False),
        ("kmod/new.c", True),
        ("patches/5.11/new.patch", True),
    ],
)
def test_a_commit_is_dirty_when_an_input_changed(
    tmp_path: Path, path: str | None, dirty: bool
) -> None:
    head = repository(tmp_path)
    if path:
        fake_kernel.write(tmp_path / path, "2")
    assert manifest.project_commit(tmp_path) == head + "-dirty" * dirty


def test_a_removed_file_is_dirty(tmp_path: Path) -> None:
    head = repository(tmp_path)
    (tmp_path / "file").unlink()
    assert manifest.project_commit(tmp_path) == f"{head}-dirty"


def test_the_commit_of_a_clone_of_another_owner_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A git that takes every owner for another, as root's does in a user's clone."""
    head = repository(tmp_path / "clone")
    program = shutil.which("git")
    fake_kernel.write(
        tmp_path / "bin/git",
        f'#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec {program} "$@"\n',
    )
    (tmp_path / "bin/git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        git(tmp_path / "clone", "status")
    assert "dubious ownership" in refused.value.stderr
    assert manifest.project_commit(tmp_path / "clone") == head
    fake_kernel.write(tmp_path / "clone/file", "2")
    assert manifest.project_commit(tmp_path / "clone") == f"{head}-dirty"


def test_asking_for_the_commit_starts_no_program_and_writes_nothing(tmp_path: Path) -> None:
    head = repository(tmp_path)
    for key in ("core.fsmonitor", "core.hooksPath"):
        git(tmp_path, "config", key, str(tmp_path / "program"))
    fake_kernel.write(tmp_path / "program", f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "program").chmod(0o755)
    git(tmp_path, "status")
    assert (tmp_path / "started").exists()
    (tmp_path / "started").unlink()
    os.utime(tmp_path / "file", (1, 1))  # the index has another time: git would refresh it
    index = (tmp_path / ".git/index").read_bytes()
    assert manifest.project_commit(tmp_path) == head
    assert not (tmp_path / "started").exists()
    assert (tmp_path / ".git/index").read_bytes() == index


@pytest.mark.parametrize("left", ["nothing", "an empty .git", "a repository without a commit"])
def test_a_checkout_without_a_commit_of_its_own_says_so(
    tmp_path: Path, left: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A tarball that was unpacked inside another repository has not that one's commit."""
    repository(tmp_path)
    project = tmp_path / "project"
    fake_kernel.write(project / "kmod/main.c", "1")
    if left == "an empty .git":
        (project / ".git").mkdir()
    elif left != "nothing":
        git(project, "init", "-q")
    assert manifest.project_commit(project) is None
    assert "no commit is recorded: fatal: " in caplog.text

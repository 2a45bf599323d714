"""A second build elsewhere: what is the same, and that each difference of the place is noticed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kbuild import reproducing
from kbuild.answer import Answer, document
from kbuild.core import fs, places, run
from kbuild.core.errors import (
    BuildError,
    InfrastructureError,
    IrreproducibleError,
    KbuildError,
    LostDependencyError,
    UserError,
)
from kbuild.core.model import Base, Root, Settings, Target
from kbuild.fetch import roots, source
from kbuild.ship import manifest, mok, versions
from kbuild.ship.manifest import BuildRecord, FragmentRecord
from tests.unit import fake_kernel, secure_boot
from tests.unit.test_manifest import git

TOY = Path(__file__).parent / "data/reproduce"
ROOT = {"gcc-12": "12.2.0-14", "make": "4.3-4.1"}
SIGNATURE = "cplayground.ko.sig"
FRAGMENT = "CONFIG_TRIM=y  # größer\n"


class Toy:
    """A checkout with a pipeline of two packages, and what its first build left."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = Settings(
            project=home / "project",
            build=home / "build",
            cache=home / "cache",
            archive=home / "archive",
            jobs=2,
        )
        self.base = fake_kernel.base()
        self.root = Root("bookworm", home / "root", "0" * 64, ROOT)
        monkeypatch.setattr(source, "fetch", self.fetch)
        monkeypatch.setattr(roots, "compile_root", lambda *_: self.root)
        if os.geteuid() != 0:
            namespace = ("unshare", "--uts", "--map-root-user", "--")
            monkeypatch.setattr(reproducing, "_OWN_NAME", namespace)
        project = self.settings.project
        shutil.copytree(TOY, project)
        for place in places.both(self.settings):
            places.mark(place)
        fake_kernel.write(project / "requirements.lock", "one\n")
        fake_kernel.write(project / "leak", "nothing\n")
        described = manifest.describe(
            fake_kernel.settings(home),
            [fake_kernel.kernel(home / "kernel")],
            [],
            {},
            build=BuildRecord(2, 1, (FragmentRecord("own.config", "0", FRAGMENT),), ROOT),
        )
        manifest.write(project / "record.json", described)
        git(project, "init", "-q")
        self.commit()

    def fetch(self, settings: Settings, target: Target) -> Base:
        assert (target.version, target.flavour) == ("6.1.192-2", "cloud-amd64")
        return self.base

    def commit(self, **files: str) -> None:
        for name, content in files.items():
            fake_kernel.write(self.settings.project / name.replace("_", "."), content)
        git(self.settings.project, "add", "--all")
        git(self.settings.project, "commit", "-q", "-m", "a change")

    @property
    def record(self) -> Path:
        return self.settings.build / "bookworm/cloud-amd64/record.json"

    def package(self, leak: str = "nothing") -> None:
        """Build the packages for the first time, and record the commit."""
        if leak != "nothing":
            self.commit(leak=leak)
        project, fragment = self.settings.project, self.settings.build / "own.config"
        fake_kernel.write(fragment, FRAGMENT)
        words = ["--suite", "bookworm", "--flavour", "cloud-amd64", "--variant", "release"]
        words += ["--version", "6.1.192-2", "--modules", "keep", "--fragment", str(fragment)]
        subprocess.run(
            [sys.executable, "-P", "-m", "kbuild.cli", "package", *words],
            check=True,
            umask=0o022,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(project),
                "INVOKE_BUILD_DIR": str(self.settings.build),
                "INVOKE_CACHE_DIR": str(self.settings.cache),
                "INVOKE_REVISION": "2",
                "INVOKE_JOBS": "2",
                "USER": "somebody",
            },
        )
        self.edit(lambda raw: raw | {"commit": git(project, "rev-parse", "HEAD")})

    def edit(self, change: Callable[[dict[str, object]], Mapping[str, object]]) -> None:
        raw = json.loads(self.record.read_text())
        self.record.write_text(json.dumps(change(raw)))

    def reproduce(self) -> Answer:
        return reproducing.run(self.settings, self.record)

    def difference(self) -> IrreproducibleError:
        """Reproduce, and return the error; it is an error of the task, with its status."""
        found = self.reproduce()
        assert isinstance(found.error, IrreproducibleError) and found.status == 41
        return found.error

    def equal(self) -> bool:
        """Reproduce, and return whether that is a success."""
        found = self.reproduce()
        return (found.status, found.error) == (0, None)

    @property
    def left(self) -> list[str]:
        """The remains of second builds, besides the lock."""
        place = self.settings.build / "reproduce"
        return [path.name for path in place.glob("[!.]*")]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    return Toy(tmp_path, monkeypatch)


def test_the_same_packages_are_found_equal(toy: Toy) -> None:
    """The packages have the options in them, so each was given again: fragment, revision, …"""
    toy.package()
    found = toy.reproduce()
    assert (found.status, found.error) == (0, None)
    assert found.data["release"] == "bookworm-cloud-amd64-6.1.192-2+cplayground2"
    packages = json.loads(toy.record.read_text())["outputs"]
    told = json.loads(document("reproduce", 0, found.data))["packages"]
    assert [(one["file"], one["size"], one["rebuilt"], one["equal"]) for one in told] == [
        (Path(one["path"]).name, one["size"], one["sha256"], True) for one in packages
    ]
    first, second = found.text.splitlines()
    assert first.startswith("equal") and first.endswith("toy_1_amd64.deb")
    assert second.endswith("meta_1_amd64.deb")
    assert "2 of 2 packages are equal bit for bit" in found.summary
    assert toy.left == []


@pytest.mark.parametrize(
    ("leak", "shown"),
    [
        ("clock", "usr/share/toy"),
        ("host", f"+{reproducing.HOSTNAME}"),
        ("zone", "++1400"),
        ("umask", "+0o27"),
        ("modes", "+0o640"),
        ("place", "/checkout"),
        ("results", "/build"),
        ("user", "+rebuilder"),
        ("jobs", "+3"),
    ],
)
def test_a_leak_of_the_place_is_found_and_shown(toy: Toy, leak: str, shown: str) -> None:
    toy.package(leak)
    answer = toy.reproduce()
    error = answer.error
    assert isinstance(error, IrreproducibleError) and answer.status == error.exit_status == 41
    assert "1 of 2 packages" in error.what
    found = str(error.found)
    assert "in toy_1_amd64.deb:" in found and shown in found
    assert "meta_1" not in found
    assert [line.split()[0] for line in answer.text.splitlines()] == ["DIFFERS", "equal"]
    # Both packages stay for a closer look.
    assert toy.left == ["bookworm-cloud-amd64-6.1.192-2+cplayground2"]
    assert error.log is not None and shown in error.log.read_text()


def test_nothing_of_an_earlier_attempt_is_used_again(toy: Toy) -> None:
    toy.package("cache")
    (toy.settings.cache / "ccache").mkdir()
    assert toy.equal()
    toy.commit(leak="host")
    toy.edit(lambda raw: raw | {"commit": git(toy.settings.project, "rev-parse", "HEAD")})
    for _ in range(2):
        toy.difference()


def test_the_host_keeps_its_name(toy: Toy) -> None:
    before = os.uname().nodename
    toy.package()
    toy.reproduce()
    assert os.uname().nodename == before != reproducing.HOSTNAME


def test_the_recorded_commit_is_built_and_not_the_checkout(toy: Toy) -> None:
    toy.package()
    toy.commit(leak="clock")
    fake_kernel.write(toy.settings.project / "leak", "host\n")
    assert toy.equal()


def test_a_commit_with_other_requirements_gets_an_environment_of_its_own(toy: Toy) -> None:
    toy.package()
    inv = toy.settings.project / "inv"
    fake_kernel.write(
        inv,
        f'#!/bin/sh\nTOY_LOCK="two\n" exec {sys.executable} -P -m kbuild.cli "$@"\n',
        mode=0o755,
    )
    toy.commit(requirements_lock="two\n")
    toy.edit(lambda raw: raw | {"commit": git(toy.settings.project, "rev-parse", "HEAD")})
    toy.commit(requirements_lock="one\n")
    assert toy.equal()


def test_a_kernel_that_always_differs_is_told(toy: Toy, caplog: pytest.LogCaptureFixture) -> None:
    toy.package("host")
    kernels = json.loads(toy.record.read_text())["kernels"]
    toy.edit(lambda raw: raw | {"kernels": [kernels[0] | {"method": "rebuild"}]})
    assert "a new key" in str(toy.difference().hint)
    assert "a new key" in caplog.text


def test_a_package_that_is_not_made_again_is_named(toy: Toy) -> None:
    toy.package()

    def renamed(raw: dict[str, object]) -> Mapping[str, object]:
        text = json.dumps(raw).replace('"name": "meta"', '"name": "other"')
        return json.loads(text.replace("meta_1_amd64", "other_1_amd64"))  # type: ignore[no-any-return]

    toy.edit(renamed)
    found = str(toy.difference().found)
    assert "not made  other_1_amd64.deb" in found and "not at hand" in found


def test_the_packages_of_an_archive_are_compared_too(toy: Toy) -> None:
    """A release's manifest lies apart from its packages, which are in the pool."""
    toy.package("host")
    pool = toy.settings.archive / "pool/main/toy"
    pool.mkdir(parents=True)
    for path in toy.record.parent.glob("*.deb"):
        path.rename(pool / path.name)
    home = toy.settings.archive / "releases/one"
    home.mkdir(parents=True)
    toy.record.rename(home / "manifest.json")
    path = reproducing.find(toy.settings, Target("trixie", "lab"), release="one", manifest_file="")
    error = reproducing.run(toy.settings, path).error
    assert error is not None and f"+{reproducing.HOSTNAME}" in str(error.found)


@pytest.mark.parametrize(
    ("commit", "error", "match"),
    [
        (None, BuildError, "not built from a commit"),
        ("a" * 40 + "-dirty", BuildError, "not built from a commit"),
        ("--upload-pack=x", BuildError, "not built from a commit"),
        ("a" * 40, UserError, "not in this repository"),
    ],
)
def test_a_commit_that_cannot_be_built_is_refused(
    toy: Toy, commit: str | None, error: type[KbuildError], match: str
) -> None:
    toy.package()
    toy.edit(lambda raw: raw | {"commit": commit})
    with pytest.raises(error, match=match):
        toy.reproduce()
    assert toy.left == []


@pytest.mark.parametrize("field", ["suite", "flavour", "variant", "base_version"])
def test_a_manifest_of_others_names_no_directory_elsewhere(toy: Toy, field: str) -> None:
    toy.package()
    kernels = json.loads(toy.record.read_text())["kernels"]
    toy.edit(lambda raw: raw | {"kernels": [kernels[0] | {field: "../../archive"}]})
    (toy.settings.archive / "kept").mkdir(parents=True)
    with pytest.raises(UserError):
        toy.reproduce()
    assert (toy.settings.archive / "kept").exists() and toy.left == []


def test_a_newer_root_is_named_and_is_no_verdict(toy: Toy) -> None:
    toy.package()
    versions = ROOT | {"gcc-12": "12.2.0-14+deb12u1", "bc": "1.07"}
    toy.root = dataclasses.replace(toy.root, versions=versions)
    with pytest.raises(InfrastructureError, match="other packages than the one") as caught:
        toy.reproduce()
    assert str(caught.value.found).splitlines() == [
        "bc: nothing recorded, 1.07 here",
        "gcc-12: 12.2.0-14 recorded, 12.2.0-14+deb12u1 here",
    ]
    assert "newer than the record" in str(caught.value.hint)
    assert toy.left == []


def test_a_source_that_the_archive_replaced_is_named(toy: Toy) -> None:
    toy.package()
    changed = dataclasses.replace(toy.base.source, sha256="1" * 64)
    toy.base = dataclasses.replace(toy.base, source=changed)
    with pytest.raises(InfrastructureError, match="no longer has the files") as caught:
        toy.reproduce()
    assert "linux-source-6.1 6.1.192-2: " + "1" * 64 in str(caught.value.found)


@pytest.mark.parametrize(
    ("status", "error"), [("69", InfrastructureError), ("3", BuildError), ("1", BuildError)]
)
def test_a_second_build_that_fails_is_no_difference(
    toy: Toy, status: str, error: type[KbuildError]
) -> None:
    toy.package()
    toy.commit(leak=status)
    toy.edit(lambda raw: raw | {"commit": git(toy.settings.project, "rev-parse", "HEAD")})
    with pytest.raises(error, match=r"the second build .* failed") as caught:
        toy.reproduce()
    assert "cannot go on" in str(caught.value.found)
    assert caught.value.log is not None and "cannot go on" in caught.value.log.read_text()


def signed(toy: Toy, home: Path) -> Path:
    """Let the record be of a signed kernel, and return the directory of its signatures."""
    own = secure_boot.with_key(toy.settings, home / "mok")
    assert own.mok_certificate is not None
    place = toy.record.parent / versions.directory("6.1.192-2", 2) / mok.HOME
    for name in (mok.KERNEL, SIGNATURE):
        fake_kernel.write(place / name, name)
    shutil.copy(own.mok_certificate, place / mok.CERTIFICATE)
    digest = mok.read(own.mok_certificate)[0].digest

    def change(raw: dict[str, Any]) -> Mapping[str, object]:
        (kernel,) = raw["kernels"]
        kernel["build"]["certificate"] = digest
        return raw

    toy.edit(change)
    return place


def test_the_second_build_gets_the_signatures_and_no_key(toy: Toy, tmp_path: Path) -> None:
    toy.package("signature")
    place = signed(toy, tmp_path)
    assert toy.equal()
    (place / SIGNATURE).write_text("another one")
    toy.difference()


@pytest.mark.parametrize("lost", [mok.KERNEL, SIGNATURE, mok.CERTIFICATE])
def test_signatures_that_are_not_at_hand_are_no_verdict(
    toy: Toy, tmp_path: Path, lost: str
) -> None:
    toy.package("signature")
    place = signed(toy, tmp_path)
    (place / lost).unlink()
    with pytest.raises(InfrastructureError, match="signatures of"):
        toy.reproduce()
    assert toy.left == []


def test_a_kernel_that_does_not_fit_its_signature_is_a_difference(toy: Toy, tmp_path: Path) -> None:
    toy.package()
    signed(toy, tmp_path)
    toy.commit(leak="42")
    toy.edit(lambda raw: raw | {"commit": git(toy.settings.project, "rev-parse", "HEAD")})
    with pytest.raises(IrreproducibleError, match="differs from the second build") as caught:
        toy.reproduce()
    assert "cannot go on" in str(caught.value.found)


def test_a_lost_diffoscope_is_told_before_the_build(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.package()
    tools = toy.settings.project / "bin"
    for name in ("git", "setpriv", "tar", "unshare"):
        fake_kernel.write(tools / name, f'#!/bin/sh\nexec {shutil.which(name)} "$@"\n', mode=0o755)
    monkeypatch.setattr(run, "_SBIN", ())
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(LostDependencyError, match="diffoscope") as caught:
        toy.reproduce()
    assert "doctor" in str(caught.value.hint)
    assert toy.left == []


def test_the_first_difference_is_one_of_a_file_if_there_is_any() -> None:
    control = ["├── control.tar.xz", "│ ├── ./md5sums", "│ │ @@ -1 +1 @@", "│ │ -1  boot/vmlinuz"]
    modes = ["├── data.tar.xz", "│ ├── data.tar", "│ │ ├── file list", "│ │ │ @@ -1 +1 @@"]
    one = ["│ │ ├── ./a", "│ │ │ @@ -1 +1 @@", "│ │ │ -x", "│ │ │ +y"]
    other = ["│ │ ├── ./b", "│ │ │ @@ -1 +1 @@", "│ │ │ -z"]
    first = reproducing.first_difference
    assert first("\n".join(control + modes + one + other)) == one
    assert first("\n".join(control + modes)) == modes
    assert first("\n".join(control)) == control
    assert len(first("\n".join([*one, *(f"│ │ -{n}" for n in range(10**5))]))) == 30


def test_without_a_record_it_says_what_to_do(toy: Toy) -> None:
    for release, file in (("", ""), ("gone", ""), ("", "gone.json")):
        with pytest.raises(UserError, match="no record of packages") as caught:
            reproducing.find(
                toy.settings, Target("bookworm", "lab"), release=release, manifest_file=file
            )
        assert "./inv package" in str(caught.value.hint)


def test_a_dry_run_changes_nothing(toy: Toy) -> None:
    dry = dataclasses.replace(toy.settings, dry=True)
    path = reproducing.find(dry, Target("bookworm", "lab"), release="", manifest_file="")
    assert "does not exist yet" in reproducing.run(dry, path).text
    toy.package()
    before = fs.sha256_tree(toy.settings.build)
    found = reproducing.run(dry, toy.record)
    assert "would build bookworm-cloud-amd64-6.1.192-2+cplayground2 again" in found.text
    assert fs.sha256_tree(toy.settings.build) == before

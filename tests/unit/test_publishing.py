"""The repository holds the packages of every target, whatever becomes of their records."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kbuild.core import fs
from kbuild.core.errors import BuildError
from kbuild.core.model import Settings
from kbuild.ship import manifest, publishing, versions
from kbuild.ship.manifest import KernelRecord, Manifest, Output
from tests.unit import damage, fake_kernel


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return fake_kernel.settings(tmp_path)


class Targets:
    """Publishes targets of one suite or another, each with real, small packages."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        built = fake_kernel.kernel(settings.build.parent)
        self.kernel = manifest.describe(settings, [built], [], {}).kernels[0]

    def home(self, target: str, suite: str = "bookworm") -> Path:
        return self.settings.build / suite / target

    def publish(
        self, target: str, suite: str = "bookworm", *, dkms: str = "0.1.0", revision: int = 1
    ) -> list[str]:
        """Publish a target; returns the names of the packages in the repository afterwards."""
        flavour = "lab" if target.startswith("lab") else "cloud-amd64"
        variant = target.removeprefix(flavour).removeprefix("-") or "release"
        kernel = replace(
            self.kernel,
            suite=suite,
            flavour=flavour,
            variant=variant,
            release=versions.release("6.1.0-56", target, revision=revision),
        )
        home = self.home(target, suite)
        outputs = [
            *(
                self.package(home / "packages", name, f"6.1.192-2~{suite}")
                for name in names_of(kernel)
            ),
            self.package(home.parent / "packages-dkms", "cplayground-dkms", f"{dkms}~{suite}"),
        ]
        mine = Manifest(manifest.FORMAT, None, dkms, (kernel,), tuple(outputs), {})
        publishing.repository(self.settings, home, mine).ensure()
        return self.published()

    def package(self, directory: Path, name: str, version: str) -> Output:
        path = directory / f"{name}_{version}_amd64.deb"
        if directory.name == "packages-dkms":
            for other in set(directory.glob("*.deb")) - {path}:
                other.unlink()
        if not path.exists():
            fake_kernel.package(directory, name, version, name)
        return Output(
            name,
            version,
            "amd64",
            path.relative_to(self.settings.build).as_posix(),
            fs.sha256_file(path),
            path.stat().st_size,
        )

    def published(self) -> list[str]:
        pool = self.settings.build / "repo" / "pool"
        return sorted(path.name.partition("_")[0] for path in pool.rglob("*.deb"))

    def victim(self, target: str) -> Path:
        return next(self.home(target).glob("packages/linux-image-6*.deb"))


def names_of(kernel: KernelRecord) -> tuple[str, ...]:
    return publishing._packages(kernel)


@pytest.fixture
def targets(settings: Settings) -> Targets:
    return Targets(settings)


BOTH = sorted(
    [f"{part}-{name}" for name in ("cloud-amd64", "lab") for part in (
        "linux-image-cplayground",
        "linux-headers-cplayground",
        "cplayground-modules",
        "linux-image-6.1.0-56-cplayground",
        "linux-headers-6.1.0-56-cplayground",
        "cplayground-modules-6.1.0-56-cplayground",
    )]
    + ["cplayground-dkms"]
)  # fmt: skip


def test_the_repository_holds_every_target(targets: Targets) -> None:
    assert len(targets.publish("lab")) == 7
    assert targets.publish("cloud-amd64") == BOTH
    assert targets.publish("lab") == BOTH
    whole = manifest.verify(targets.settings.build / "manifest.json")
    assert sorted(one.name for one in whole.outputs) == BOTH
    assert sorted(one.flavour for one in whole.kernels) == ["cloud-amd64", "lab"]


def test_what_targets_share_is_there_as_it_was_made_last(targets: Targets) -> None:
    for target, suite in (("lab", "bookworm"), ("lab", "trixie"), ("cloud-amd64", "bookworm")):
        targets.publish(target, suite)
    # Two of bookworm know a package that a third has replaced, which is of another suite's run.
    names = targets.publish("cloud-amd64", dkms="0.2.0")
    assert names == targets.publish("lab", "trixie")
    dkms = [path.name for path in targets.settings.build.rglob("repo/**/cplayground-dkms_*")]
    assert sorted(dkms) == [
        "cplayground-dkms_0.1.0~trixie_amd64.deb",
        "cplayground-dkms_0.2.0~bookworm_amd64.deb",
    ]


@pytest.mark.parametrize("harm", [damage.emptied, damage.rotten, damage.lost])
def test_a_damaged_package_of_another_target_is_taken_from_the_repository(
    targets: Targets, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    targets.publish("lab")
    harm(targets.victim("lab"))
    assert targets.publish("cloud-amd64") == BOTH
    assert "./inv package --suite bookworm --flavour lab --variant release" in caplog.text
    assert targets.publish("cloud-amd64") == BOTH
    manifest.verify(targets.settings.build / "manifest.json")
    if harm is not damage.lost:
        targets.victim("lab").unlink()
    targets.publish("lab")
    whole = manifest.verify(targets.settings.build / "manifest.json")
    assert not [one.path for one in whole.outputs if one.path.startswith("repo/")]


def test_a_kernel_that_is_nowhere_whole_stops_the_others_and_nothing_is_published(
    targets: Targets,
) -> None:
    targets.publish("lab")
    victim = targets.victim("lab")
    damage.emptied(victim)
    (pooled,) = targets.settings.build.glob(f"repo/pool/**/{victim.name}")
    damage.emptied(pooled)
    before = fs.sha256_tree(targets.settings.build / "repo")
    with pytest.raises(BuildError, match=r"would lose linux-image-6.*lab of bookworm") as caught:
        targets.publish("cloud-amd64")
    assert "./inv package --suite bookworm --flavour lab --variant release" in str(caught.value)
    assert fs.sha256_tree(targets.settings.build / "repo") == before
    victim.unlink()
    assert targets.publish("lab") == BOTH
    assert targets.publish("cloud-amd64") == BOTH


def test_the_command_that_helps_names_the_revision(
    targets: Targets, caplog: pytest.LogCaptureFixture
) -> None:
    targets.publish("lab", revision=2)
    damage.emptied(targets.victim("lab"))
    targets.publish("cloud-amd64")
    assert "INVOKE_REVISION=2 ./inv package --suite bookworm --flavour lab" in caplog.text


@pytest.mark.parametrize("harm", [damage.emptied, damage.edited, damage.lost])
def test_a_damaged_record_of_another_target_is_made_again(
    targets: Targets, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    caplog.set_level(logging.WARNING)
    targets.publish("lab")
    path = targets.home("lab") / manifest.RECORD
    before = manifest.read(path)
    harm(path)
    if harm is damage.edited:
        path.write_text(path.read_text().replace('"outputs"', '"oatputs"'))
    assert targets.publish("cloud-amd64") == BOTH
    assert f"{path}: " in caplog.text
    assert dataclasses.replace(manifest.read(path), seconds=before.seconds) == before


def test_a_record_that_cannot_be_made_again_names_its_target(targets: Targets) -> None:
    targets.publish("lab-debug")
    damage.cut(targets.home("lab-debug") / manifest.RECORD)
    damage.cut(targets.settings.build / "manifest.json")
    before = targets.published()
    with pytest.raises(BuildError, match="lab-debug of bookworm, cannot be read") as caught:
        targets.publish("cloud-amd64")
    assert "./inv package --suite bookworm --flavour lab --variant debug" in str(caught.value)
    assert str(targets.home("lab-debug")) in str(caught.value.hint)
    assert targets.published() == before
    # The hint helps, and packages that were made by then are not forgotten.
    after = targets.publish("lab-debug")
    assert after == targets.publish("cloud-amd64")
    assert len(after) == 13


def test_a_target_whose_results_were_removed_leaves_the_repository(targets: Targets) -> None:
    targets.publish("lab")
    fs.remove_tree(targets.home("lab"))
    assert len(targets.publish("cloud-amd64")) == 7


@pytest.mark.parametrize("harm", [damage.emptied, damage.edited])
def test_a_damaged_repository_is_made_again(targets: Targets, harm: Callable[[Path], None]) -> None:
    targets.publish("lab")
    pool = fs.sha256_tree(targets.settings.build / "repo" / "pool")
    for path in targets.settings.build.glob("repo/**/*.deb"):
        harm(path)
    targets.publish("lab")
    assert fs.sha256_tree(targets.settings.build / "repo" / "pool") == pool

"""Names, versions, and the two orders: dpkg's and the boot loader's."""

from __future__ import annotations

import itertools
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from debian.debian_support import Version

from kbuild.core.errors import BuildError, UserError
from kbuild.kernel import quilt
from kbuild.ship import versions
from tests import grub

PROJECT = Path(__file__).resolve().parents[2]

# Ascending, as apt must see them.
ORDERED = (
    "6.1.191-1+cplayground9",
    "6.1.192-1+cplayground1",
    "6.1.192-2",
    "6.1.192-2+b1",
    "6.1.192-2+cplayground1",
    "6.1.192-2+cplayground2",
    "6.1.192-2+cplayground10",
    "6.1.192-2+deb12u1",
    "6.1.192-3",
    "6.1.193-1",
    "7.1.8-1~bpo13+1",
    "7.1.8-1~bpo13+1+cplayground1",
    "7.1.8-1",
    "7.1.8-1+cplayground1",
)

# Ascending, as a boot menu must have them: the last one is booted.  Our revisions of one base come
# right after it.
BOOTED = (
    "6.1.0-55-cloud-amd64",
    "6.1.0-55-cplayground-cloud-amd64",
    "6.1.0-56-cloud-amd64",
    "6.1.0-56-cplayground-cloud-amd64",
    "6.1.0-56-cplayground.2-cloud-amd64",
    "6.1.0-56-cplayground.10-cloud-amd64",
    "6.1.0-57-cloud-amd64",
    "6.1.0-57-cplayground-cloud-amd64",
    "6.1.0-57-cplayground.2-cloud-amd64",
    "6.1.0-100-cloud-amd64",
)
# The names since trixie; an ABI that changes without a new upstream version gets a number.
BOOTED_SINCE_TRIXIE = (
    "6.12.115+deb13-cloud-amd64",
    "6.12.115+deb13-cplayground-cloud-amd64",
    "6.12.115+deb13-cplayground.2-cloud-amd64",
    "6.12.115+deb13-cplayground.10-cloud-amd64",
    "6.12.115+deb13.1-cloud-amd64",
    "6.12.115+deb13.1-cplayground-cloud-amd64",
    "6.12.115+deb13.1-cplayground.2-cloud-amd64",
    "6.12.117+deb13-cloud-amd64",
    "6.12.117+deb13-cplayground-cloud-amd64",
    "7.3.4+deb13-cloud-amd64",
    "7.3.4+deb13-cplayground-cloud-amd64",
)
# A flavour whose name has no dash.
BOOTED_LAB = tuple(f"6.1.0-56-cplayground{revision}-lab" for revision in ("", ".2", ".10"))


def dpkg_less(left: str, right: str) -> bool:
    return subprocess.run(["dpkg", "--compare-versions", left, "lt", right]).returncode == 0


def test_package_versions_order() -> None:
    for low, high in itertools.pairwise(ORDERED):
        assert Version(low) < Version(high)
        assert dpkg_less(low, high), (low, high)
        assert not dpkg_less(high, low), (low, high)


def test_package_version_is_the_one_whose_order_is_tested() -> None:
    assert versions.package_version("6.1.192-2", 1) in ORDERED
    assert versions.package_version("6.1.192-2", 10) in ORDERED
    assert versions.package_version("7.1.8-1~bpo13+1", 1) in ORDERED


@pytest.mark.parametrize(
    ("base", "later"),
    [
        ("5.10.262-1", ["5.10.262-1+deb11u1", "5.10.262-2", "5.10.263-1"]),
        ("6.1.192-2", ["6.1.192-2+deb12u1", "6.1.192-3", "6.1.193-1"]),
        ("6.12.117-1", ["6.12.117-1+deb13u1", "6.12.117-2", "6.12.118-1"]),
        ("7.3.4-1~bpo13+1", ["7.3.4-1~bpo13+2", "7.3.4-2~bpo13+1", "7.3.4-1", "7.3.5-1~bpo13+1"]),
    ],
)
def test_the_packages_of_every_suite_keep_the_order(base: str, later: list[str]) -> None:
    ours = versions.package_version(base, 1)
    assert dpkg_less(base, ours)
    assert all(dpkg_less(ours, one) for one in later)


@pytest.mark.parametrize("base", ["", "6.1.192", "2:6.1-1", "6.1-1+cplayground1", "6.1 -1", "x-1"])
def test_package_version_refuses_versions_of_no_distro(base: str) -> None:
    with pytest.raises(UserError, match="not the version of a distro kernel"):
        versions.package_version(base, 1)


def test_package_version_refuses_revision_zero() -> None:
    with pytest.raises(UserError, match="counts from 1"):
        versions.package_version("6.1.192-2", 0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("6.1.0-56", "cloud-amd64"), "6.1.0-56-cplayground-cloud-amd64"),
        (("6.1.0-56", "lab"), "6.1.0-56-cplayground-lab"),
        (("6.1.0-56", "lab", "kasan"), "6.1.0-56-cplayground-lab-kasan"),
        (("6.12.111+deb13", "amd64"), "6.12.111+deb13-cplayground-amd64"),
        (("6.12.115+deb13.1", "cloud-amd64"), "6.12.115+deb13.1-cplayground-cloud-amd64"),
        (("6.1.0-56", "lab", "kasan", 2), "6.1.0-56-cplayground.2-lab-kasan"),
        (
            ("6.12.115+deb13.1", "cloud-amd64", "lockdep", 100),
            "6.12.115+deb13.1-cplayground.100-cloud-amd64-lockdep",
        ),
    ],
)
def test_release(arguments: tuple[Any, ...], expected: str) -> None:
    assert versions.release(*arguments) == expected
    # The length that struct new_utsname leaves for it.
    assert len(expected) <= 64


@pytest.mark.parametrize(
    "arguments",
    [
        ("6.1.0-56", "Cloud"),
        ("6.1.0-56", "cloud_amd64"),
        ("6.1.0-56", "cloud-amd64/.."),
        ("6.1.0-56", ""),
        ("6.1.0-56", "lab", "kasan-lockdep"),
        ("6.1.0-56-cloud-amd64", "lab"),
        ("", "lab"),
        ("6.1.0-56", "lab", "release", 0),
    ],
)
def test_release_refuses_parts_that_break_names(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(UserError):
        versions.release(*arguments)


def test_release_parses_as_dkms_parses_it() -> None:
    """DKMS's postinst cuts /boot/config-* at its dashes and asks dpkg which is newer."""

    def version_and_abi(release: str) -> str:
        version, abi, _flavour = release.split("-", 2)
        return f"{version}-{abi}"

    assert version_and_abi("6.1.0-56-cplayground-cloud-amd64") == "6.1.0-56"
    assert version_and_abi("6.1.0-56-cplayground-lab-kasan") == "6.1.0-56"
    assert version_and_abi("6.1.0-56-cplayground.2-cloud-amd64") == "6.1.0-56"
    for low, high in itertools.pairwise(BOOTED):
        assert not dpkg_less(version_and_abi(high), version_and_abi(low))


def test_the_project_has_one_version() -> None:
    """The module, pyproject.toml and the newest release in the changelog agree."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"(?m)^## \[(\d[\d.]*)\]", changelog)
    assert versions.module_version(PROJECT) == project["version"] == released[0]


@pytest.mark.parametrize(
    ("heading", "epoch"),
    [
        ("## [0.2.0] - 2026-11-30", 1795996800),
        ("## [0.2.0] - 2026-02-30", None),
        ("## [0.2.0]", None),
        ("## [Unreleased]", None),
        ("## [0.2.0.1] - 2026-11-30", None),
        ("## [0.1.0] - 2026-11-30", None),
    ],
)
def test_the_date_of_the_module_is_that_of_its_heading(
    tmp_path: Path, heading: str, epoch: int | None
) -> None:
    (tmp_path / "kmod").mkdir()
    (tmp_path / "kmod/VERSION").write_text("0.2.0\n")
    log = tmp_path / "CHANGELOG.md"
    log.write_text(f"# Changelog\n\n## [0.3.0] - 2026-12-24\n\n{heading}\n\n- That.\n")
    if epoch is not None:
        assert versions.module_epoch(tmp_path) == epoch
        log.unlink()
    with pytest.raises(BuildError, match=r"0\.2\.0 has no date") as caught:
        versions.module_epoch(tmp_path)
    assert caught.value.expected == f"a heading in {log}, such as '## [0.2.0] - 2026-11-30'"


def test_the_projects_own_module_has_a_date() -> None:
    assert versions.module_epoch(PROJECT) % 86400 == 0


def test_names_of_packages() -> None:
    release = versions.release("6.1.0-56", "cloud-amd64")
    assert versions.image_package(release) == "linux-image-6.1.0-56-cplayground-cloud-amd64"
    assert versions.headers_package(release) == "linux-headers-6.1.0-56-cplayground-cloud-amd64"
    assert versions.modules_package(release) == (
        "cplayground-modules-6.1.0-56-cplayground-cloud-amd64"
    )
    assert versions.image_meta("cloud-amd64") == "linux-image-cplayground-cloud-amd64"
    assert versions.headers_meta("cloud-amd64") == "linux-headers-cplayground-cloud-amd64"
    assert versions.modules_meta("cloud-amd64") == "cplayground-modules-cloud-amd64"
    assert versions.image_meta("lab", "kasan") == "linux-image-cplayground-lab-kasan"


@pytest.mark.parametrize("booted", [BOOTED, BOOTED_SINCE_TRIXIE, BOOTED_LAB])
def test_boot_order_as_dpkg_has_it(booted: tuple[str, ...]) -> None:
    """GRUB 2.06 of Debian 12 compares what follows vmlinuz- with dpkg (version_test_gt)."""
    for low, high in itertools.pairwise(booted):
        assert dpkg_less(low, high), (low, high)


@pytest.mark.parametrize("booted", [BOOTED, BOOTED_SINCE_TRIXIE, BOOTED_LAB])
def test_boot_order_as_sort_has_it(booted: tuple[str, ...]) -> None:
    """GRUB since 2.12 sorts the paths with sort -V (version_sort)."""
    paths = [f"/boot/vmlinuz-{release}" for release in booted]
    shuffled = "\n".join(reversed(paths)) + "\n"
    done = subprocess.run(
        ["sort", "-V"], input=shuffled, text=True, capture_output=True, env={"LC_ALL": "C"}
    )
    assert done.stdout.splitlines() == paths


def grub_library(root: Path, text: str) -> Path:
    library = root / "usr/share/grub/grub-mkconfig_lib"
    library.parent.mkdir(parents=True)
    library.write_text(text)
    return root


# The same contracts as in grub-common, in our words.
OLD_GRUB = """
version_find_latest () {
    latest=$1
    for kernel; do
        if dpkg --compare-versions "${kernel#*-}" gt "${latest#*-}"; then latest=$kernel; fi
    done
    echo "$latest"
}
version_sort () { echo "the old menu does not sort" >&2; exit 1; }
"""
NEW_GRUB = """
version_sort () { LC_ALL=C sort -V "$@"; }
"""


@pytest.mark.parametrize("library", [OLD_GRUB, NEW_GRUB], ids=["grub-2.06", "grub-2.12"])
def test_boot_order_runs_the_function_of_the_root(tmp_path: Path, library: str) -> None:
    root = grub_library(tmp_path, library)
    mixed = [*BOOTED[::2], *BOOTED[1::2]]
    assert grub.boot_order(mixed, root) == tuple(reversed(BOOTED))


def test_boot_order_fails_without_grub(tmp_path: Path) -> None:
    with pytest.raises(BuildError):
        grub.boot_order(BOOTED, tmp_path)


@pytest.mark.parametrize(
    ("upstream", "specifier", "expected"),
    [
        ("6.1.192", ">=5.11,<8", True),
        ("5.11", ">=5.11,<8", True),
        ("5.10.260", ">=5.11,<8", False),
        ("5.10.260", "<5.11", True),
        ("6.12~rc3", ">=5.11,<8", True),
        ("5.11~rc1", ">=5.11", False),
        ("8.0", "<8", False),
        ("6.1.9", ">=6.1.10", False),
    ],
)
def test_upstream_in_range(upstream: str, specifier: str, expected: bool) -> None:
    assert quilt.upstream_in_range(upstream, specifier) is expected


def test_upstream_in_range_refuses_invalid_versions_and_ranges() -> None:
    with pytest.raises(UserError, match="not an upstream kernel version"):
        quilt.upstream_in_range("6.1.192-2", ">=5.11")
    with pytest.raises(UserError, match="not a range"):
        quilt.upstream_in_range("6.1.192", "from 5.11 on")

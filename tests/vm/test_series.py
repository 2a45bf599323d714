"""Patch series on the target's real source tree: ours applies, and that of 2020 is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild.core import suites
from kbuild.core.errors import BuildError
from kbuild.core.model import Settings, Target
from kbuild.fetch import source, unpack
from kbuild.guest.image import GuestImage
from kbuild.kernel import patches, quilt

OF_2020 = Path("tests/unit/data/series-2020")


@pytest.fixture(scope="module")
def pristine(
    settings: Settings, suite: str, guest_image: GuestImage, request: pytest.FixtureRequest
) -> tuple[Path, str]:
    """The unpacked source of the image's kernel, and its version."""
    version = request.config.getoption("kernel_version")
    # All flavours have the same source.  Nothing is fetched here, and these files are there.
    flavour = suites.base_flavour(guest_image.kernels[0].flavour)
    base = source.fetch(settings, Target(suite, flavour, version=version))
    return unpack.unpack(settings, base), base.upstream


def test_our_series_applies_and_does_what_it_declares(
    settings: Settings, pristine: tuple[Path, str], tmp_path: Path
) -> None:
    tree, upstream = pristine
    series = quilt.choose(settings.project / "patches", upstream)
    patches.foresee(tree, series, tmp_path / "tree", base_version=upstream)


def test_the_patches_of_2020_are_refused_for_what_changed(
    settings: Settings, pristine: tuple[Path, str], tmp_path: Path
) -> None:
    tree, upstream = pristine
    series = quilt.read_series(settings.project / OF_2020)
    text = (tree / "fs/file.c").read_text()
    reasons = {one.function: one.reason for one in patches.refusals(tree, series)}
    if "get_files_struct(" in text:
        assert "get_files_struct" not in reasons
    else:
        assert reasons["get_files_struct"] == "this kernel has no get_files_struct() there"
    assert "reset_files_struct" in reasons["put_files_struct"]
    assert "'void exit_files(struct task_struct *tsk)'" in reasons["put_files_struct"]
    with pytest.raises(BuildError, match="does not apply"):
        patches.foresee(tree, series, tmp_path / "tree", base_version=upstream)

"""Settings of ccache when a kernel is compiled."""

import os
import subprocess
from pathlib import Path

from kbuild.core.model import Settings
from kbuild.kernel import ccache
from kbuild.kernel.kconfig import Fragment


def test_the_cache_is_there_when_a_root_shows_it(tmp_path: Path) -> None:
    settings = Settings(project=tmp_path, build=tmp_path / "build", cache=tmp_path / "cache")
    shown = ccache.bind(settings)
    assert shown.writable
    assert shown.source.is_dir()
    assert ccache.environment(distro_options=False)["CCACHE_DIR"] == shown.target


def test_an_option_that_is_not_set_is_defined_nowhere(tmp_path: Path) -> None:
    ccache.write_options(tmp_path, Fragment("final", {"HZ": "250", "KASAN": "n", "SMP": "y"}))
    assert (tmp_path / "options").read_text() == "CONFIG_HZ=250\nCONFIG_SMP=y\n"


def test_options_that_are_the_same_leave_the_file_alone(tmp_path: Path) -> None:
    # ccache looks into a file again whose time is another.
    final = Fragment("final", {"SMP": "y"})
    ccache.write_options(tmp_path, final)
    os.utime(tmp_path / "options", (1, 1))
    ccache.write_options(tmp_path, final)
    assert (tmp_path / "options").stat().st_mtime == 1


def test_the_host_compiler_is_never_known_by_its_dependencies(tmp_path: Path) -> None:
    ccache.write_host_compiler(tmp_path, "gcc-12")
    fake = tmp_path / "ccache"
    fake.write_text('#!/bin/sh\necho "depend: ${CCACHE_DEPEND-no}" "$@"\n')
    fake.chmod(0o755)
    said = subprocess.run(
        [tmp_path / "host-compiler", "-c", "a b.c"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "CCACHE_DEPEND": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "depend: no gcc-12 -c a b.c\n"

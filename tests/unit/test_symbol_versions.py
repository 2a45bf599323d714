"""Symbol versions through a compiler cache: make's variables, and the programs it calls."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kbuild.kernel import symbol_versions
from tests.unit import toy

OPTIONS = {"MODVERSIONS": "y"}
PREPROCESSOR = "$(CPP) -D__GENKSYMS__ $(c_flags) $<"
# as scripts/Makefile.build of each has it
LINUX_5_10 = r"""
cmd_gensymtypes_c =                                                         \
    $(CPP) -D__GENKSYMS__ $(c_flags) $< |                                   \
    scripts/genksyms/genksyms $(if $(1), -T $(2))                           \
     -r $(firstword $(wildcard $(2:.symtypes=.symref) /dev/null))

quiet_cmd_cc_symtypes_c = SYM $(quiet_modtag) $@
"""
LINUX_6_1 = r"""
genksyms = scripts/genksyms/genksyms		\
	$(if $(1), -T $(2))

cmd_gensymtypes_c = $(CPP) -D__GENKSYMS__ $(c_flags) $< | $(genksyms)

quiet_cmd_cc_symtypes_c = SYM $(quiet_modtag) $@
"""
LINUX_7_3 = r"""
ifdef CONFIG_GENDWARFKSYMS
cmd_gensymtypes_c = $(if $(skip_gendwarfksyms),,	\
	$(call getexportsymbols,\1) | $(gendwarfksyms) $@)
else
cmd_gensymtypes_c = $(CPP) -D__GENKSYMS__ $(c_flags) $< | $(genksyms)
endif # CONFIG_GENDWARFKSYMS
"""


def tree(tmp_path: Path, makefile: str) -> Path:
    toy.write(tmp_path / "scripts/Makefile.build", makefile)
    return tmp_path


@pytest.mark.parametrize(
    ("makefile", "genksyms"),
    [
        (
            LINUX_5_10,
            "scripts/genksyms/genksyms $(if $(1), -T $(2))"
            " -r $(firstword $(wildcard $(2:.symtypes=.symref) /dev/null))",
        ),
        (LINUX_6_1, "$(genksyms)"),
        (LINUX_7_3, "$(genksyms)"),
    ],
)
def test_make_is_told_in_the_kernels_own_words(
    tmp_path: Path, makefile: str, genksyms: str
) -> None:
    said = symbol_versions.arguments(tree(tmp_path, makefile), OPTIONS)
    assert said == [f"cmd_gensymtypes_c=/mnt/input/symbol-versions {genksyms} -- {PREPROCESSOR}"]


@pytest.mark.parametrize(
    ("makefile", "options"),
    [
        (LINUX_6_1, {}),
        (LINUX_7_3, {**OPTIONS, "GENDWARFKSYMS": "y"}),
        ("cmd_gensymtypes_c = $(CPP) -D__OTHER__ $(c_flags) $< | $(genksyms)\n", OPTIONS),
        ("", OPTIONS),
    ],
    ids=["no versions", "from DWARF", "an unknown way", "no way"],
)
def test_unknown_ways_are_left_to_the_kernel(
    tmp_path: Path, makefile: str, options: dict[str, str]
) -> None:
    assert symbol_versions.arguments(tree(tmp_path, makefile), options) == []


CCACHE = """\
#!/bin/sh
echo "$CCACHE_DEPEND $CCACHE_EXTRAFILES ${CCACHE_PREFIX-no prefix} $CCACHE_STATSLOG" >>log
exec "$@"
"""
# Prints its arguments and its input, and ends as it is told.
GENKSYMS = """\
#!/bin/sh
echo "genksyms $*"
grep -v -e '^#' -e '^$'
exit ${GENKSYMS_STATUS-0}
"""


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A directory with the programs, a pretended ccache and genksyms, and a file to preprocess."""
    symbol_versions.write_programs(tmp_path)
    for name, text in (("bin/ccache", CCACHE), ("genksyms", GENKSYMS)):
        toy.write(tmp_path / name, text)
        (tmp_path / name).chmod(0o755)
    toy.write(tmp_path / "f.c", "VALUE\n#ifdef __GENKSYMS__\nexported\n#endif\n")
    return tmp_path


def call(
    build: Path, *words: str, genksyms: str = "./genksyms -r /dev/null", **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(str(build / "symbol-versions"), *genksyms.split(), "--"),
            *("gcc", "-E", "-D__GENKSYMS__", *words),
        ],
        cwd=build,
        env={
            **os.environ,
            "PATH": f"{build}/bin:{os.environ['PATH']}",
            "CCACHE_EXTRAFILES": "options",
            "CCACHE_PREFIX": "icecc",
            "CCACHE_STATSLOG": "/mnt/statistics/ccache.log",
            **env,
        },
        capture_output=True,
        text=True,
    )


FLAGS = ("-Wp,-MMD,./.f.o.d", '-DVALUE="a  b"', "f.c")


def test_the_versions_are_what_genksyms_makes_of_the_preprocessed_file(build: Path) -> None:
    done = call(build, *FLAGS)
    assert (done.returncode, done.stdout) == (0, 'genksyms -r /dev/null\n"a  b"\nexported\n')
    assert (build / ".f.o.d").exists()
    assert not list(build.glob(".*.versions"))


def test_the_cache_knows_what_made_them(build: Path) -> None:
    call(build, *FLAGS)
    depend, made_by, prefix = (build / "log").read_text().split(" ", 2)
    gcc = subprocess.run(["which", "gcc"], capture_output=True, text=True, check=True)
    assert depend == "1"
    assert made_by == f"options:{gcc.stdout.strip()}:./genksyms"
    # Workers of icecream could not make them; and they are counted apart from objects.
    assert prefix == "no prefix /mnt/statistics/symbol-versions.log\n"


@pytest.mark.parametrize("genksyms", ["./genksyms -T f.symtypes", "./genksyms -r f.symref"])
def test_calls_that_read_or_write_more_are_not_cached(build: Path, genksyms: str) -> None:
    done = call(build, *FLAGS, genksyms=genksyms)
    assert done.stdout.startswith(genksyms.removeprefix("./") + "\n")
    assert not (build / "log").exists()


def test_without_a_dependency_file_nothing_is_cached(build: Path) -> None:
    done = call(build, *FLAGS[1:])
    assert done.stdout.endswith('"a  b"\nexported\n')
    assert not (build / "log").exists()


def test_a_failure_of_either_is_one(build: Path) -> None:
    missing = call(build, *FLAGS[:-1], "missing.c")
    assert missing.returncode != 0
    assert "missing.c" in missing.stderr
    assert call(build, *FLAGS, GENKSYMS_STATUS="1").returncode != 0

"""Orchestration of a kernel build, on a toy tree with fake tools: a second instead of an hour."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kbuild.core import fs
from kbuild.core.errors import BuildError, GuardError, KilledError, UserError
from kbuild.core.model import BuiltKernel, Root, Settings, Target
from kbuild.kernel import (
    compilation,
    debian_image,
    makelog,
    patches,
    planning,
    quilt,
    symvers,
)
from kbuild.kernel.kconfig import Fragment
from kbuild.kernel.planning import Plan
from tests.unit import damage, toy

CLOUD = Target("bookworm", "cloud-amd64")
LAB = Target("bookworm", "lab")


@dataclass(frozen=True)
class Bench:
    """A toy distro with everything that a build needs."""

    settings: Settings
    distro: toy.ToyDistro
    root: Root
    home: Path

    def plan(self, target: Target = CLOUD, modules: str = "auto") -> Plan:
        return planning.make_plan(
            self.settings,
            target,
            self.distro.base,
            release=f"6.1.0-56-cplayground-{target.flavour}",
            package_version=f"6.1.192-2+cplayground{self.settings.revision}",
            distro_config=self.distro.headers / f"usr/src/linux-headers-{toy.RELEASE}/.config",
            timestamp=1763288260,
            pristine=self.distro.pristine,
            modules=modules,
        )

    def build(self, target: Target = CLOUD, modules: str = "auto") -> BuiltKernel:
        series = quilt.choose(self.distro.patches, self.distro.base.upstream)
        tree = patches.apply(
            self.distro.pristine, series, self.home / "tree", base_version="6.1.192-2"
        )
        return compilation.kernel(
            self.settings,
            self.root,
            self.plan(target, modules),
            tree,
            distro_image=self.distro.image,
            distro_headers=self.distro.headers,
            home=self.home / target.flavour,
            before=lambda: patches.mend(self.distro.pristine, tree),
        ).ensure()

    def compiled(self) -> list[str]:
        """Return the objects that the last build made."""
        return [line.split()[1] for line in self.log().splitlines() if line.startswith("  CC ")]

    def log(self, flavour: str = "cloud-amd64") -> str:
        return (self.settings.build / f"logs/kernel-6.1.0-56-cplayground-{flavour}.log").read_text()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("PATH", f"{toy.FAKE_TOOLS}:{os.environ['PATH']}")
    project = tmp_path / "project"
    toy.write(project / "fragments/lab.config", "CONFIG_MODULES=y\n# CONFIG_SWAP is not set\n")
    settings = Settings(project=project, build=tmp_path / "build", cache=tmp_path / "cache", jobs=2)
    root = Root(suite="bookworm", path=tmp_path / "root", digest="root1")
    return Bench(settings, toy.make(tmp_path / "distro"), root, tmp_path / "home")


def test_the_fast_path_keeps_the_distros_modules(bench: Bench) -> None:
    built = bench.build()
    assert built.method == "fast"
    assert built.modules == bench.distro.image / "lib/modules" / toy.RELEASE
    exported = symvers.read(built.symvers)
    theirs = {"exit_files", "module_layout", "open", "ext4_thing"}
    assert set(exported) == theirs | {"get_files_struct", "put_files_struct"}
    config = built.config.read_text()
    assert 'CONFIG_SYSTEM_TRUSTED_KEYS="/mnt/input/distro-modules.pem"' in config
    given = bench.home / "cloud-amd64/input"
    assert (given / "distro.btf").read_bytes() == toy.BTF
    assert (given / "distro-modules.pem").read_text().startswith("-----BEGIN CERTIFICATE")


def test_a_configuration_that_is_not_the_distros_stops_the_fast_path(bench: Bench) -> None:
    # as where the root lacks a compiler that the distro's build had: Kconfig says nothing
    toy.write(bench.distro.pristine / "refused", "MODVERSIONS\n")
    with pytest.raises(GuardError, match="differ from the distro's kernel") as caught:
        bench.build()
    assert caught.value.found == "CONFIG_MODVERSIONS: y -> n"
    assert not (bench.home / "cloud-amd64/Module.symvers").exists()


def test_an_image_of_another_vermagic_is_refused(bench: Bench) -> None:
    toy.write(bench.distro.pristine / "flags", "SMP preempt mod_unload modversions ")
    with pytest.raises(GuardError, match="its vermagic differs") as caught:
        bench.build()
    assert caught.value.expected == ("6.1.0-56-cplayground-cloud-amd64 SMP mod_unload modversions ")
    assert caught.value.found == (
        "6.1.0-56-cplayground-cloud-amd64 SMP preempt mod_unload modversions "
    )


def test_a_full_build_says_where_its_configuration_is_not_the_distros(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    toy.write(bench.distro.pristine / "refused", "MODVERSIONS\n")
    bench.build(modules="rebuild")
    assert "1 option(s) differ from the distro's" in caplog.text
    assert "CONFIG_MODVERSIONS: y -> n" in caplog.text


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("  CC      fs/file.o", True),
        ("  CC [M]  fs/ext4/inode.o", True),
        ("  LD [M]  fs/ext4/ext4.o", True),
        ("  AS      arch/x86/lib/memset_64.o", True),
        ("  HOSTCC  scripts/kconfig/conf.o", True),
        ("  AR      fs/built-in.a", False),
        ("  HOSTLD  scripts/kconfig/conf", False),
        ("  LD      vmlinux", False),
        ("  CC      kernel/bounds.s", False),
        ("make[1]: Entering directory '/mnt/out.o'", False),
    ],
)
def test_an_object_is_what_counting_the_files_finds(line: str, counts: bool) -> None:
    assert (makelog._OBJECT.match(line) is not None) == counts


def test_nothing_is_rebuilt_when_nothing_changed(bench: Bench) -> None:
    bench.build()
    before = bench.log()
    again = bench.build()
    assert bench.log() == before
    assert again.method == "fast"


@pytest.mark.parametrize(
    ("file", "flavour", "appended", "again"),
    [
        ("guard.py", "cloud-amd64", "STRICTER = True\n", True),
        ("guard.py", "cloud-amd64", "# A guard.\n", False),
        ("guard.py", "lab", "STRICTER = True\n", False),
        ("compilation.py", "lab", "FASTER = True\n", True),
        ("compilation.py", "lab", '"""Prose."""\n', False),
        ("in_root/symbol-versions", "lab", "true\n", True),
        ("makelog.py", "cloud-amd64", "MORE = True\n", False),
    ],
)
def test_a_kernel_is_looked_at_again_when_code_changed_that_decides_it(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    file: str,
    flavour: str,
    appended: str,
    again: bool,
) -> None:
    caplog.set_level("INFO")
    code = tmp_path / "kernel"
    shutil.copytree(Path(planning.__file__).parent, code)
    monkeypatch.setattr(planning, "__file__", str(code / "planning.py"))
    target = dataclasses.replace(CLOUD, flavour=flavour)
    bench.build(target)
    with (code / file).open("a") as stream:
        stream.write(appended)
    caplog.clear()
    bench.build(target)
    assert ("recipe changed" in caplog.text) == again


ALL = ["fs/file.o", "fs/open.o", "kernel/module.o"]


@pytest.mark.parametrize(
    ("victim", "harm"),
    [
        ("Module.symvers", damage.edited),
        ("compiler", damage.lost),
        ("out/.config", damage.cut),
        ("out/System.map", damage.rotten),
        ("out/arch/x86/boot/bzImage", damage.emptied),
        ("out/include/generated/autoconf.h", damage.emptied),
        ("out/vmlinux", damage.emptied),
    ],
)
def test_a_damaged_kernel_is_compiled_anew(
    bench: Bench, victim: str, harm: Callable[[Path], None]
) -> None:
    bench.build()
    home = bench.home / "cloud-amd64"
    before = (home / victim).read_bytes()
    # make would take this for a finished object.
    damage.emptied(home / "out/fs/open.o")
    bench.build()
    assert (home / "out/fs/open.o").stat().st_size == 0
    harm(home / victim)
    bench.build()
    assert (home / victim).read_bytes() == before
    assert (home / "out/fs/open.o").stat().st_size > 0
    assert bench.compiled() == ALL
    log = bench.log()
    bench.build()
    assert bench.log() == log


def test_a_kernel_whose_stamp_is_damaged_is_compiled_anew(bench: Bench) -> None:
    bench.build()
    damage.emptied(bench.home / "cloud-amd64/kernel.json")
    damage.emptied(bench.home / "cloud-amd64/out/fs/open.o")
    bench.build()
    assert bench.compiled() == ALL


def test_a_kernel_of_an_earlier_version_is_not_compiled_again(bench: Bench) -> None:
    bench.build()
    home = bench.home / "cloud-amd64"
    raw = json.loads((home / "kernel.json").read_text())
    fs.write_json(home / "kernel.json", raw | {"outputs": ["Module.symvers", "compiler"]})
    inode, text = (home / "out").stat().st_ino, (home / "Module.symvers").read_text()
    bench.build()
    assert (home / "out").stat().st_ino == inode
    damage.edited(home / "Module.symvers")
    bench.build()
    assert (home / "Module.symvers").read_text() == text


def test_a_source_that_was_edited_is_not_compiled(bench: Bench) -> None:
    bench.build()
    victim = bench.home / "tree/fs/open.c"
    victim.unlink()
    victim.write_text("int backdoor;\n")
    again = dataclasses.replace(bench, settings=dataclasses.replace(bench.settings, revision=2))
    again.build()
    assert victim.read_text() == (bench.distro.pristine / "fs/open.c").read_text()
    # Objects that may come from the other text are compiled again.
    assert again.compiled() == ["fs/open.o"]


def test_an_edited_patch_rebuilds_only_its_file(bench: Bench) -> None:
    bench.build()
    patch = bench.distro.patches / "5.11/export.patch"
    patch.write_text(patch.read_text().replace("task->files", "READ_ONCE(task->files)"))
    bench.build()
    compiled = [line for line in bench.log().splitlines() if line.startswith("  CC ")]
    assert compiled == ["  CC      fs/file.o"]


def test_another_revision_is_another_kernel(bench: Bench) -> None:
    image = bench.build().output / "arch/x86/boot/bzImage"
    assert image.read_text() == "6.1.192-2+cplayground1 (2025-11-16)"
    dataclasses.replace(bench, settings=dataclasses.replace(bench.settings, revision=2)).build()
    assert image.read_text() == "6.1.192-2+cplayground2 (2025-11-16)"


def test_a_failed_build_goes_on_where_it_stopped(bench: Bench) -> None:
    broken = bench.distro.pristine / "lib/zlast.c"
    toy.write(broken, "int x;\nvoid broken(void)\n#error on purpose\n")
    with pytest.raises(BuildError):
        bench.build()
    assert "  CC      fs/open.o" in bench.log()
    broken.unlink()
    broken.write_text("int x;\n")
    bench.build()
    assert "  CC      lib/zlast.o" in bench.log()
    assert "  CC      fs/open.o" not in bench.log()


def test_an_object_of_a_build_that_was_cut_short_is_made_again(bench: Bench) -> None:
    built = bench.build()
    whole = (built.output / "fs/open.o").read_bytes()
    header = bench.home / "tree/include/linux/fdtable.h"
    os.utime(header)  # every object is to be made again
    cut = bench.distro.pristine / "cut"
    toy.write(cut, "open.o\n")
    (bench.home / "cloud-amd64/kernel.json").unlink()
    with pytest.raises(KilledError, match="does not build"):
        bench.build()
    assert (built.output / "fs/open.o").read_bytes() != whole
    cut.unlink()
    again = bench.build()
    assert (again.output / "fs/open.o").read_bytes() == whole
    assert not list((bench.home / "cloud-amd64").glob("*.making"))


@pytest.mark.parametrize(
    ("victim", "harm"),
    [
        ("input/config", damage.cut),
        ("input/configured", damage.edited),
        ("out/.config", damage.emptied),
        ("out/.config", damage.rotten),
    ],
)
def test_a_configuration_that_a_power_cut_damaged_is_made_again(
    bench: Bench, victim: str, harm: Callable[[Path], None]
) -> None:
    broken = bench.distro.pristine / "lib/zlast.c"
    toy.write(broken, "#error on purpose\n")
    with pytest.raises(BuildError):
        bench.build()
    home = bench.home / "cloud-amd64"
    before = (home / "out/.config").read_text()
    harm(home / victim)
    broken.unlink()
    assert bench.build().config.read_text() == before


def test_the_first_error_is_shown_with_its_lines(bench: Bench) -> None:
    toy.write(bench.distro.pristine / "fs/bad.c", "int x;\n\n#error on purpose\n")
    with pytest.raises(BuildError, match="does not build") as caught:
        bench.build()
    found = caught.value.found or ""
    assert found.splitlines()[0].endswith("In function 'broken':")
    assert "fs/bad.c:3:2: error: #error on purpose" in found
    assert "CC" not in found
    assert caught.value.log is not None
    assert found in caught.value.log.read_text()


def test_a_changed_struct_is_refused_by_name(bench: Bench) -> None:
    patch = bench.distro.patches / "5.11/export.patch"
    patch.write_text(
        patch.read_text()
        + "--- a/include/linux/fdtable.h\n+++ b/include/linux/fdtable.h\n"
        + "@@ -1,2 +1,3 @@\n struct files_struct;\n+struct fdtable { int more; };\n"
        + " void put_files_struct(struct files_struct *fs);\n"
    )
    with pytest.raises(GuardError) as caught:
        bench.build()
    assert "exit_files, module_layout, open" in (caught.value.found or "")
    assert not (bench.home / "cloud-amd64/kernel.json").exists()


def test_the_lab_is_built_in_full(bench: Bench) -> None:
    built = bench.build(LAB)
    assert built.method == "rebuild"
    assert built.modules == bench.home / "lab/modules/lib/modules/6.1.0-56-cplayground-lab"
    assert built.modules.is_dir()
    assert "# CONFIG_SWAP is not set" in built.config.read_text()


def test_the_distros_salt_is_left_out_where_it_has_one(bench: Bench) -> None:
    assert "BUILD_SALT" not in bench.plan().config
    config = bench.distro.headers / f"usr/src/linux-headers-{toy.RELEASE}/.config"
    config.write_text(config.read_text() + f'CONFIG_BUILD_SALT="{toy.RELEASE}"\n')
    for modules in ("auto", "rebuild"):
        assert 'CONFIG_BUILD_SALT=""\n' in bench.plan(modules=modules).config
    # and that is no reason to refuse the fast path
    assert bench.build().method == "fast"


def test_the_options_are_there_for_ccache_as_the_compiler_sees_them(bench: Bench) -> None:
    bench.build()
    home = bench.home / "cloud-amd64"
    options = (home / "input/options").read_text()
    config = (home / "out/.config").read_text()
    # An option that is not set is defined nowhere, and one that has gone is none.
    assert "# CONFIG_KASAN is not set\n" in config
    assert sorted(options.splitlines()) == sorted(
        line for line in config.splitlines() if line.startswith("CONFIG_")
    )


def test_files_are_known_by_dependencies_where_the_options_are_the_distros(bench: Bench) -> None:
    own = bench.home / "own.config"
    toy.write(own, "CONFIG_SWAP=y\n")
    for target, modules, said in (
        (CLOUD, "auto", "CCACHE_DEPEND=1"),
        (CLOUD, "rebuild", "CCACHE_DEPEND=1"),
        (dataclasses.replace(CLOUD, fragments=(own,)), "rebuild", ""),
        (LAB, "auto", ""),
    ):
        bench.build(target, modules)
        assert (bench.home / target.flavour / "out/ccache").read_text() == said


def test_macros_are_tracked_where_something_asks_for_it(bench: Bench) -> None:
    def told(plan: Plan, *, plain: bool = False) -> dict[str, str]:
        said = compilation.make_arguments(bench.settings, plan, plain=plain)
        return dict(one.split("=", 1) for one in said if "=" in one)

    fast, full = told(bench.plan()), told(bench.plan(modules="rebuild"))
    # Debug info, which a full build makes, tells of the macros' arguments.
    assert fast["CC"] == "ccache gcc-12 -ftrack-macro-expansion=1"
    assert full["CC"] == "ccache gcc-12"
    assert fast["CPP"] == full["CPP"] == "gcc-12 -E -ftrack-macro-expansion=0"
    plain = told(bench.plan(modules="rebuild"), plain=True)
    assert (plain["CC"], plain["HOSTCC"]) == ("gcc-12", "gcc-12")
    assert "CPP" not in plain


def test_what_makes_the_fast_path_faster_is_not_asked_of_a_full_build(bench: Bench) -> None:
    fast, full = (
        {one.partition("=")[0]: one for one in compilation.make_arguments(bench.settings, plan)}
        for plan in (bench.plan(), bench.plan(modules="rebuild"))
    )
    assert fast["KCFLAGS"] == "KCFLAGS=-g0 -Wno-misleading-indentation"
    assert fast["KAFLAGS"] == "KAFLAGS=-g0"
    assert {"KCFLAGS", "KAFLAGS", "PAHOLE"}.isdisjoint(full)


def test_the_host_compiler_is_one_word_since_rustc_is_given_it_as_it_is(bench: Bench) -> None:
    bench.build()
    said = compilation.make_arguments(bench.settings, bench.plan())
    (host,) = (one.removeprefix("HOSTCC=") for one in said if one.startswith("HOSTCC="))
    assert host == "/mnt/input/host-compiler"
    # as the root shows the directory of that name
    assert os.access(bench.home / "cloud-amd64/input/host-compiler", os.X_OK)


def test_a_dropped_option_is_an_error_that_names_it(bench: Bench) -> None:
    toy.write(bench.settings.project / "fragments/lab.config", "CONFIG_KASAN=y\nCONFIG_MODULES=y\n")
    toy.write(bench.distro.pristine / "refused", "KASAN\n")
    with pytest.raises(BuildError, match=r"1 option\(s\) of the fragments are not") as caught:
        bench.build(LAB)
    assert "CONFIG_KASAN: wanted y" in (caught.value.found or "")
    # The next run must not take the refused configuration for a good one.
    with pytest.raises(BuildError, match="are not in the final configuration"):
        bench.build(LAB)


def test_another_compiler_stops_the_fast_path_before_it_starts(bench: Bench) -> None:
    config = bench.distro.headers / f"usr/src/linux-headers-{toy.RELEASE}/.config"
    config.write_text(config.read_text().replace("12.2.0", "12.3.0"))
    with pytest.raises(GuardError, match="not the one that built"):
        bench.build()
    assert not (bench.settings.build / "logs").exists()


def test_a_module_without_signature_stops_the_fast_path(bench: Bench) -> None:
    toy.write(bench.distro.image / "lib/modules" / toy.RELEASE / "kernel/bare.ko", "")
    with pytest.raises(BuildError, match="not all signed with one key"):
        bench.build()


@pytest.mark.parametrize(
    "said",
    [
        "echo 1 SMP x; echo 1 SMP y",  # two of them
        "echo 1 SMP x",  # one module of two has one
        "true",
    ],
)
def test_the_modules_have_one_vermagic_each_and_the_same(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    modules = bench.distro.image / "lib/modules" / toy.RELEASE
    assert debian_image.vermagic_flags(bench.root, modules) == "SMP mod_unload modversions "
    toy.write(modules / "kernel/second.ko.xz", "")
    toy.write(tmp_path / "bin/modinfo", f"#!/bin/sh\n{said}\n")
    (tmp_path / "bin/modinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(BuildError, match="do not share one vermagic") as caught:
        debian_image.vermagic_flags(bench.root, modules)
    assert caught.value.expected == "2 modules, one vermagic"


def test_a_lost_export_is_noticed_in_a_full_build(bench: Bench) -> None:
    series = quilt.choose(bench.distro.patches, "6.1.192")
    patch = dataclasses.replace(series.patches[0], exports=("get_files_struct", "gone"))
    tree = patches.apply(bench.distro.pristine, series, bench.home / "t", base_version="6.1.192-2")
    bare = dataclasses.replace(tree, series=dataclasses.replace(series, patches=(patch,)))
    with pytest.raises(GuardError, match="does not export the symbols that the series declares"):
        compilation.kernel(
            bench.settings,
            bench.root,
            bench.plan(LAB),
            bare,
            distro_image=bench.distro.image,
            distro_headers=bench.distro.headers,
            home=bench.home / "lab",
        ).ensure()


@pytest.mark.parametrize(
    ("target", "distro", "fragments", "modules", "method"),
    [
        (CLOUD, {"MODVERSIONS": "y"}, (), "auto", "fast"),
        (CLOUD, {"MODVERSIONS": "y"}, (), "keep", "fast"),
        (CLOUD, {"MODVERSIONS": "y"}, (), "rebuild", "rebuild"),
        (CLOUD, {"MODVERSIONS": "n"}, (), "auto", "rebuild"),
        (CLOUD, {"MODVERSIONS": "y"}, (Fragment("own", {"A": "y"}),), "auto", "rebuild"),
        (LAB, {"MODVERSIONS": "y"}, (), "auto", "rebuild"),
    ],
)
def test_the_method_follows_from_what_is_asked_and_what_is_there(
    target: Target,
    distro: dict[str, str],
    fragments: tuple[Fragment, ...],
    modules: str,
    method: str,
) -> None:
    assert planning.choose_method(target, Fragment("d", distro), fragments, modules)[0] == method


@pytest.mark.parametrize(
    ("target", "distro"), [(LAB, {"MODVERSIONS": "y"}), (CLOUD, {"MODVERSIONS": "n"})]
)
def test_modules_that_cannot_be_kept_are_refused(target: Target, distro: dict[str, str]) -> None:
    with pytest.raises(UserError, match="cannot be kept"):
        planning.choose_method(target, Fragment("d", distro), (), "keep")


def test_an_unknown_wish_is_refused() -> None:
    with pytest.raises(UserError, match="--modules kep"):
        planning.choose_method(CLOUD, Fragment("d", {"MODVERSIONS": "y"}), (), "kep")


def test_an_unknown_variant_is_refused(bench: Bench) -> None:
    with pytest.raises(UserError, match="variant 'kosher'"):
        planning.fragments_of(bench.settings, Target("bookworm", "lab", "kosher"))


@pytest.mark.parametrize(
    ("log", "first"),
    [
        ("  CC a.o\na.c:1: error: x\n  CC b.o\nmake: *** [a.o] Error 1\n", "a.c:1: error: x"),
        ("  LD v\nld: a.o: undefined reference to `f'\n", "ld: a.o: undefined reference to `f'"),
        ('ERROR: modpost: "f" [m.ko] undefined!\n', 'ERROR: modpost: "f" [m.ko] undefined!'),
        ("  CC a.o\nmake: *** [Makefile:1: all] Error 2\n", "  CC a.o"),
        ("nothing at all", "nothing at all"),
    ],
)
def test_first_error(log: str, first: str) -> None:
    assert makelog.first_error(log).splitlines()[0] == first

"""The bench of builds: each case can be run by itself, and the table shows what was measured."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from kbuild.core import places, sandbox
from kbuild.core.errors import UserError
from kbuild.core.model import Base, Settings, Target
from kbuild.core.run import Completed
from kbuild.core.sandbox import Bind
from kbuild.fetch import roots, source, unpack
from kbuild.kernel import compilation, patches, quilt
from kbuild.measure import build as bench_build
from kbuild.measure import build_cases, build_table, misses
from kbuild.measure.build import Bench
from kbuild.measure.build_cases import CASES, Case, Measurement
from kbuild.measure.stats import BenchError
from kbuild.pipeline import images, stages
from kbuild.pipeline.stage import Made
from tests.unit import fake_kernel, toy

CLOUD = Target("bookworm", "cloud-amd64")
LAB = Target("bookworm", "lab")
AMD64 = Target("bookworm", "amd64")


def names(cases: tuple[Case, ...]) -> list[str]:
    return [case.name for case in cases]


def test_by_default_the_cases_that_suit_a_target_are_measured() -> None:
    everything = [name for name in CASES if name != "point-release"]
    assert names(build_cases.choose(CLOUD, ())) == everything
    assert "point-release" in names(build_cases.choose(CLOUD, (), before="6.1.187-1"))
    assert "fast" not in names(build_cases.choose(LAB, ()))
    # Many hours: counted, not compiled, unless the user asks for it.
    assert not {"plain", "full", "full-ccache"} & set(names(build_cases.choose(AMD64, ())))
    assert {"count", "fast"} <= set(names(build_cases.choose(AMD64, ())))
    assert names(build_cases.choose(AMD64, ["full"])) == ["full"]


@pytest.mark.parametrize(
    ("target", "case", "words"),
    [
        (LAB, "fast", "no fast path"),
        (CLOUD, "point-release", "--before"),
        (CLOUD, "slow", "no such case"),
    ],
)
def test_a_case_that_cannot_be_is_refused(target: Target, case: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        build_cases.choose(target, [case])
    assert words in str(caught.value)


def measurement(case: str, cpu_s: float, **more: object) -> Measurement:
    one = Measurement(case, "6.1.192-2", wall_s=cpu_s / 2, cpu_s=cpu_s)
    return dataclasses.replace(one, **more)  # type: ignore[arg-type]


def bench(tmp_path: Path, target: Target = CLOUD) -> Bench:
    return Bench(fake_kernel.settings(tmp_path), target, "", lambda: 0.0)


def test_a_failed_case_is_not_shown_with_the_figures_of_an_earlier_run() -> None:
    found = {"full": measurement("full", 100.0), "fast": measurement("fast", 10.0)}
    text = build_table.render(CLOUD, found, absent={"full": "FAILED: build error"}, width=200)
    assert "FAILED: build error" in text
    assert "met: 1/3" not in text


def test_an_aim_names_the_measurement_it_is_compared_with() -> None:
    found = {
        "full": measurement("full", 100.0, version="6.1.187-1", began="2026-11-21"),
        "fast": measurement("fast", 10.0),
    }
    assert build_table.judge(CASES["fast"], CLOUD, found).endswith("CPU, of 6.1.187-1")
    cloud = {"count": measurement("count", 1.0, objects=1), "full": measurement("full", 1000.0)}
    mine = {"count": measurement("count", 1.0, objects=2), "fast": measurement("fast", 10.0)}
    text = build_table.render(AMD64, mine, cloud, width=300)
    assert "met: 1/8 of full's CPU, extrapolated" in text


def test_a_damaged_result_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"full": {"case": "full", "missed": [], "load": []}}')
    with pytest.raises(BenchError, match="does not hold"):
        build_cases.read(path)
    assert build_cases.read(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("case", "target", "cpu_s", "words"),
    [
        ("fast", CLOUD, 33.0, "met: 1/3 of full's CPU"),
        ("fast", CLOUD, 34.0, "missed: 1/3"),
        ("fast", AMD64, 12.0, "met: 1/8"),
        ("fast", AMD64, 13.0, "missed: 1/8"),
        ("patch", LAB, 360.0, "met: 3 min 00 s wall"),
        ("patch", LAB, 361.0, "missed"),
        ("nothing", LAB, 11.0, "missed: 5.0 s"),
        ("full-ccache", CLOUD, 1.0, ""),
    ],
)
def test_a_target_is_met_or_missed(case: str, target: Target, cpu_s: float, words: str) -> None:
    found = {"full": measurement("full", 100.0), case: measurement(case, cpu_s)}
    assert build_table.judge(CASES[case], target, found).startswith(words)


def test_without_the_other_value_nothing_is_judged() -> None:
    found = {"fast": measurement("fast", 1.0)}
    assert build_table.judge(CASES["fast"], CLOUD, found) == ""


def test_a_full_build_of_amd64_is_extrapolated_and_said_to_be() -> None:
    cloud = {
        "count": measurement("count", 1.0, objects=5000),
        "full": measurement("full", 1000.0),
    }
    mine = {"count": measurement("count", 1.0, objects=20000)}
    text = build_table.render(AMD64, mine, cloud, width=200)
    assert "extrapolated: cloud-amd64's × 4.0" in text
    assert "1 h 06 min" in text
    # Not where it was measured, nor from what was not.
    assert build_table.extrapolate({**mine, "full": cloud["full"]}, cloud) is None
    assert build_table.extrapolate(mine, {"full": cloud["full"]}) is None
    assert build_table.extrapolate({}, cloud) is None


def test_the_table_shows_ratios_and_misses() -> None:
    found = {
        "full": measurement("full", 100.0),
        "full-ccache": measurement(
            "full-ccache",
            25.0,
            hits=9,
            misses=1,
            missed=("/mnt/source/init/version.c",),
            counters={"cache_miss": 1, "direct_cache_hit": 9},
        ),
    }
    text = build_table.render(CLOUD, found, width=200)
    (row,) = [line for line in text.splitlines() if line.startswith("full-ccache  ")]
    assert "9 of 10" in row
    assert "0.250" in row
    assert "full-ccache: 1 misses: /mnt/source/init/version.c" in text
    assert "ccache counted cache_miss 1" in text


def test_an_edit_changes_the_patchs_code_and_nothing_of_its_shape(tmp_path: Path) -> None:
    distro = toy.make(tmp_path)
    path = distro.patches / "5.11/export.patch"
    before = path.read_text()
    bench_build.edit(path)
    after = path.read_text()
    assert after.count("EXPORT_SYMBOL(get_files_struct);") == 1
    assert len(after.splitlines()) == len(before.splitlines())
    # It still applies, and still does what it declares.
    series = quilt.choose(distro.patches, "6.1.192")
    patches.apply(distro.pristine, series, tmp_path / "tree", base_version="6.1.192-2")
    bench_build.edit(path)
    assert path.read_text() == before


def test_every_series_of_ours_can_be_edited(tmp_path: Path) -> None:
    marks = sorted((Path(__file__).parents[2] / "patches").glob("*/series"))
    assert marks
    for mark in marks:
        for patch in quilt.read_series(mark.parent).patches:
            copy = tmp_path / patch.path.name
            copy.write_text(patch.path.read_text())
            bench_build.edit(copy)
            assert copy.read_text() != patch.path.read_text()


def test_a_patch_without_an_export_cannot_be_edited(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("+int x;\n")
    with pytest.raises(BenchError, match="no export"):
        bench_build.edit(tmp_path / "p")


def test_cpu_time_is_that_of_a_control_group_of_our_own(tmp_path: Path) -> None:
    top = tmp_path / "unified"
    (top / "user.slice").mkdir(parents=True)
    mounts, own = tmp_path / "mounts", tmp_path / "cgroup"
    mounts.write_text(f"proc /proc proc rw 0 0\ncgroup2 {top} cgroup2 rw 0 0\n")
    own.write_text("4:memory:/elsewhere\n0::/user.slice\n")
    with bench_build.cpu_account(mounts=mounts, own=own) as cpu:
        (group,) = (top / "user.slice").glob("cplayground-bench-*")
        assert (group / "cgroup.procs").read_text() == str(os.getpid())
        (group / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
        assert cpu() == 2.5
    # Back where it was: the group could not go away with us in it.
    assert (top / "user.slice/cgroup.procs").read_text() == str(os.getpid())


def test_without_control_groups_nothing_is_measured(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("proc /proc proc rw 0 0\n")
    with (
        pytest.raises(BenchError, match="no control group"),
        bench_build.cpu_account(mounts=tmp_path / "mounts"),
    ):
        pass
    with pytest.raises(BenchError, match="usage_usec"):
        bench_build.cpu_seconds("nr_periods 0\n")


def test_objects_are_counted_in_makes_output() -> None:
    said = (
        "  gcc-12 -Wp,-MMD,fs/.file.o.d -O2 -c -o fs/file.o fs/file.c ; ./tools/objtool fs/file.o\n"
        "echo '  CC      fs/file.o'\n"
        "ld -r -o fs/built-in.o fs/file.o\n"
        "gcc-12 -D__ASSEMBLY__ -c -o arch/x86/entry/entry_64.o arch/x86/entry/entry_64.S\n"
    )
    assert bench_build.count_objects(said) == 2


# The cases themselves, with a pipeline that builds nothing.

STATISTICS = "# /mnt/source/a.c\ncache_miss\n# /mnt/source/b.c\ndirect_cache_hit\n"


@dataclasses.dataclass
class Pretended:
    """A pipeline whose kernels have two objects, one of them compiled; it notes what is asked."""

    top: Path
    settings: list[Settings] = dataclasses.field(default_factory=list)
    wishes: list[str] = dataclasses.field(default_factory=list)
    versions: list[str | None] = dataclasses.field(default_factory=list)
    commands: list[list[str]] = dataclasses.field(default_factory=list)
    caches: list[list[str]] = dataclasses.field(default_factory=list)  # before each build
    packed: int = 0
    projects: list[Path] = dataclasses.field(default_factory=list)
    digests: Iterator[int] = dataclasses.field(default_factory=itertools.count)
    cannot_keep: bool = False
    silent: bool = False  # no program of a root says or leaves anything
    again: str = "packaged x in 1 s"  # printed by a run with nothing to do

    def fetch(self, settings: Settings, target: Target) -> Base:
        self.versions.append(target.version)
        return dataclasses.replace(fake_kernel.base(), version=target.version or "6.1.192-2")

    def resolve(self, settings: Settings, target: Target) -> Base:
        if target.version == "6.1.1-1":
            raise UserError("bookworm has no linux 6.1.1-1")
        return self.fetch(settings, target)

    def prepare(
        self, settings: Settings, target: Target, base: Base, *, modules: str = "auto"
    ) -> object:
        self.wishes.append(modules)
        if modules == "keep" and self.cannot_keep:
            raise UserError("the distro's modules cannot be kept")
        plan = SimpleNamespace(target=target, config="CONFIG_A=y\n", method="rebuild")
        tree = SimpleNamespace(path=self.top)
        return SimpleNamespace(
            base=base, plan=plan, tree=tree, distro_image=self.top, distro_headers=self.top
        )

    def build(self, made: Made) -> object:
        settings, home = made.settings, made.where.version
        self.settings.append(settings)
        assert not (home / "out").exists()
        cache = settings.cache / "ccache"
        self.caches.append(sorted(path.name for path in cache.iterdir()))
        toy.write(cache / "0" / str(len(self.settings)), "")
        toy.write(home / "out/fs/a.o", "")
        toy.write(home / "out/fs/b.o", "")
        toy.write(home / "statistics/ccache.log", STATISTICS)
        toy.write(home / "statistics/symbol-versions.log", STATISTICS)
        return SimpleNamespace(output=home / "out", source=home, method="rebuild")

    def pack(self) -> None:
        self.packed += 1

    def package(self, settings: Settings, target: Target) -> object:
        self.projects.append(settings.project)
        kernel = SimpleNamespace(base=fake_kernel.base(), digest=next(self.digests))
        return SimpleNamespace(kernel=kernel)

    def enter(
        self,
        root: object,
        argv: list[str],
        *,
        binds: list[Bind],
        on_line: Callable[[str], None] = lambda _: None,
        **_: object,
    ) -> Completed:
        self.commands.append(argv)
        if "bindeb-pkg" in argv and not self.silent:
            on_line("  CC      fs/a.o")
            toy.write(binds[-1].source / "linux-image-6.1.192_1_amd64.deb", "")
            toy.write(binds[-1].source / "out/fs/a.o", "")
        said = "gcc-12 -O2 -c -o fs/a.o fs/a.c\n" if "-n" in argv and not self.silent else ""
        return Completed((), 0, said, "", 0.0)

    def make_arguments(self, *_: object, plain: bool) -> list[str]:
        compiler = "gcc-12" if plain else "ccache gcc-12"
        return ["make", "O=/mnt/out", f"CC={compiler}", "KERNELRELEASE=x"]


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    one = Pretended(tmp_path)
    for place in places.both(fake_kernel.settings(tmp_path)):
        places.mark(place)
    distro = toy.make(tmp_path / "toy")
    nothing, ticks = Completed((), 0, "", "", 0.0), itertools.count()
    for module, name, function in (
        (source, "fetch", one.fetch),
        (source, "resolve", one.resolve),
        (unpack, "unpack_deb", lambda *_: distro.headers),
        (stages, "prepare", one.prepare),
        (stages, "kernel", lambda made: SimpleNamespace(ensure=lambda: one.build(made))),
        (stages, "kernel_packages", lambda _: SimpleNamespace(ensure=one.pack)),
        (stages, "package", one.package),
        (images, "guest_image", lambda *_: None),
        (compilation, "make_arguments", one.make_arguments),
        (roots, "compile_root", lambda *_: None),
        (sandbox, "enter", one.enter),
        # "./inv package", and the machine's control groups.
        (
            bench_build,
            "run_program",
            lambda *_, **__: dataclasses.replace(nothing, stderr=one.again),
        ),
        (bench_build, "cpu_account", lambda: contextlib.nullcontext(lambda: float(next(ticks)))),
    ):
        monkeypatch.setattr(module, name, function)
    return one


@pytest.mark.parametrize("case", CASES)
def test_every_case_can_be_measured(tmp_path: Path, pretended: Pretended, case: str) -> None:
    given = dataclasses.replace(bench(tmp_path), before="6.1.187-1")
    found = bench_build.measure(given, CASES[case])
    assert (found.case, found.version) == (case, "6.1.192-2")
    assert build_cases.read(given.result)[case] == found


def test_results_are_kept_by_case_and_read_again(tmp_path: Path, pretended: Pretended) -> None:
    said: list[str] = []
    settings = fake_kernel.settings(tmp_path)
    path = bench_build.run(settings, CLOUD, names=["nothing"], say=said.append)
    bench_build.run(settings, CLOUD, names=["fast"], say=said.append)
    found = build_cases.read(path)
    assert set(found) == {"nothing", "fast"}
    assert (found["fast"].hits, found["fast"].missed) == (1, ("/mnt/source/a.c",))
    assert "our full build, cold: not measured" in said[-1]


def test_a_suite_without_a_fast_path_is_measured_all_the_same(
    tmp_path: Path, pretended: Pretended
) -> None:
    said: list[str] = []
    config = tmp_path / "toy/headers/usr/src" / f"linux-headers-{toy.RELEASE}/.config"
    config.write_text(config.read_text().replace("CONFIG_MODVERSIONS=y\n", ""))
    path = bench_build.run(fake_kernel.settings(tmp_path), CLOUD, say=said.append)
    assert set(build_cases.read(path)) == {*CASES} - {"fast", "fast-ccache", "point-release"}
    assert "no CONFIG_MODVERSIONS" in said[0]


def test_a_case_that_fails_keeps_no_other_from_being_measured(
    tmp_path: Path, pretended: Pretended
) -> None:
    said: list[str] = []
    pretended.cannot_keep = True
    settings = fake_kernel.settings(tmp_path)
    with pytest.raises(UserError, match="cannot be kept"):
        bench_build.run(settings, CLOUD, names=("fast", "nothing"), say=said.append)
    # The table came first.
    assert "FAILED: usage error: the distro's modules cannot be kept" in said[0]
    assert set(build_cases.read(bench(tmp_path).result)) == {"nothing"}


def test_a_cold_build_has_an_empty_cache_and_no_helpers(
    tmp_path: Path, pretended: Pretended
) -> None:
    given = bench(tmp_path)
    helped = dataclasses.replace(given.settings, remote_cache="redis://x", scheduler="farm")
    given = dataclasses.replace(given, settings=helped)
    toy.write(helped.cache / "ccache/of-the-machine", "")
    for _ in range(2):
        found = bench_build.measure(given, CASES["full"])
    (_, used) = pretended.settings
    assert pretended.caches == [[], []]
    assert pretended.wishes == ["rebuild", "rebuild"]
    assert (used.remote_cache, used.scheduler) == ("", "")
    assert used.build != given.settings.build
    # All but the compiler's cache is the machine's, and that stays as it was.
    for shelf in ("files", "roots", "trees", "apt", "locks"):
        assert (used.cache / shelf).samefile(helped.cache / shelf)
    assert (helped.cache / "ccache/of-the-machine").exists()
    assert not (used.cache / "objects").exists()
    assert (found.objects, found.hits, found.misses) == (2, 1, 1)
    assert found.missed == ("/mnt/source/a.c",)
    assert found.versions == (1, 1)
    text = build_table.render(CLOUD, build_cases.read(given.result), width=300)
    assert "symbol versions of 1 of 2 files from ccache" in text


def test_a_full_build_is_packed_as_bindeb_pkg_does(tmp_path: Path, pretended: Pretended) -> None:
    used = iter([10.0, 70.0, 100.0])
    given = dataclasses.replace(bench(tmp_path), cpu=lambda: next(used))
    found = bench_build.measure(given, CASES["full"])
    assert pretended.packed == 1
    assert (found.cpu_s, found.packages_cpu_s) == (90.0, 30.0)
    text = build_table.render(CLOUD, build_cases.read(given.result), width=300)
    assert "30 s of the CPU for packages" in text


def test_misses_are_explained_by_the_build_that_filled_the_cache(
    tmp_path: Path, pretended: Pretended
) -> None:
    given = dataclasses.replace(bench(tmp_path), before="6.1.187-1")
    assert not bench_build.measure(given, CASES["fast"]).reasons, "nothing filled its cache"
    for case in ("fast-ccache", "point-release"):
        # Neither build left a command for the file.
        assert bench_build.measure(given, CASES[case]).reasons == {misses.NO_OBJECT: 1}
    text = build_table.render(CLOUD, build_cases.read(given.result), width=200)
    assert f"by number of files: 1 {misses.NO_OBJECT}" in text


def test_a_warm_build_has_the_cold_ones_cache_and_a_new_output(
    tmp_path: Path, pretended: Pretended
) -> None:
    given = bench(tmp_path)
    # The cold one comes first, and only once.
    bench_build.measure(given, CASES["fast-ccache"])
    bench_build.measure(given, CASES["fast-ccache"])
    cold, warm, _ = pretended.settings
    assert pretended.wishes == ["keep"] * 3
    assert pretended.caches == [[], ["0"], ["0"]]
    assert warm.cache == cold.cache
    assert warm.build != cold.build
    bench_build.measure(given, CASES["full-ccache"])
    assert pretended.wishes[3:] == ["rebuild", "rebuild"], "of a full build, not of the fast path"
    assert pretended.caches[3:] == [[], ["0"]]


def test_a_point_release_comes_after_another_version(tmp_path: Path, pretended: Pretended) -> None:
    given = dataclasses.replace(bench(tmp_path), before="6.1.187-1")
    found = bench_build.measure(given, CASES["point-release"])
    assert pretended.versions == ["6.1.187-1", None]
    assert pretended.caches == [[], ["0"]]
    assert found.version == "6.1.192-2"
    assert "after 6.1.187-1" in found.note


@pytest.mark.parametrize("before", ["6.1.192-2", "6.1.1-1"])
def test_the_earlier_version_is_looked_up_before_hours_of_other_cases(
    tmp_path: Path, pretended: Pretended, before: str
) -> None:
    settings = bench(tmp_path).settings
    with pytest.raises(UserError, match=r"has no linux 6\.1\.1-1|is the newest version"):
        bench_build.run(settings, CLOUD, names=["full", "point-release"], before=before)
    assert not pretended.settings


def test_the_plain_build_uses_no_cache_and_has_to_leave_packages(
    tmp_path: Path, pretended: Pretended
) -> None:
    found = bench_build.measure(bench(tmp_path), CASES["plain"])
    configure, build = pretended.commands
    assert configure[-1] == "olddefconfig"
    assert build[-1] == "bindeb-pkg"
    assert "CC=gcc-12" in build
    assert not [word for word in build if word.startswith("KERNELRELEASE")]
    assert (found.objects, found.note) == (1, "1 packages")


def test_a_build_that_leaves_nothing_is_no_measurement(
    tmp_path: Path, pretended: Pretended
) -> None:
    pretended.silent = True
    given = bench(tmp_path)
    for case, words in (("plain", "no image package"), ("count", "names nothing")):
        with pytest.raises(BenchError, match=words):
            bench_build.measure(given, CASES[case])
    assert build_cases.read(given.result) == {}


def test_objects_are_counted_without_compiling_them(tmp_path: Path, pretended: Pretended) -> None:
    found = bench_build.measure(bench(tmp_path, LAB), CASES["count"])
    assert [command[-1] for command in pretended.commands] == ["allnoconfig", "prepare", "modules"]
    assert found.objects == 1


def test_nothing_is_only_nothing_when_nothing_was_made(
    tmp_path: Path, pretended: Pretended
) -> None:
    pretended.again = "building x: y"
    with pytest.raises(BenchError, match="nothing changed"):
        bench_build.measure(bench(tmp_path), CASES["nothing"])


def test_an_edit_of_the_patch_is_made_in_a_copy_of_the_checkout(
    tmp_path: Path, pretended: Pretended
) -> None:
    given = bench(tmp_path)
    ours = given.settings.project / "patches"
    before = quilt.choose(ours, "6.1.192").digest
    assert "then installed" in bench_build.measure(given, CASES["patch"]).note
    assert quilt.choose(pretended.projects[0] / "patches", "6.1.192").digest != before
    assert quilt.choose(ours, "6.1.192").digest == before


def test_an_edit_has_to_have_changed_the_kernel(tmp_path: Path, pretended: Pretended) -> None:
    pretended.digests = itertools.repeat(1)
    with pytest.raises(BenchError, match="built again"):
        bench_build.measure(bench(tmp_path), CASES["patch"])

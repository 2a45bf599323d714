"""The bench of builds: cases that can be run alone, kept results, and a table that is honest."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from kbuild.core import progress, sandbox
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
from tests.unit import fake_kernel, toy

CLOUD = Target("bookworm", "cloud-amd64")
LAB = Target("bookworm", "lab")
AMD64 = Target("bookworm", "amd64")


def names(cases: tuple[Case, ...]) -> list[str]:
    return [case.name for case in cases]


def test_by_default_what_makes_sense_is_measured() -> None:
    everything = [name for name in CASES if name != "point-release"]
    assert names(build_cases.choose(CLOUD, ())) == everything
    assert "point-release" in names(build_cases.choose(CLOUD, (), before="6.1.187-1"))
    assert "fast" not in names(build_cases.choose(LAB, ()))
    # Many hours: counted, not compiled, unless somebody asks for it.
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


def test_every_case_has_its_measurement() -> None:
    assert set(bench_build._MEASURE) == set(CASES)
    for case in CASES.values():
        assert case.needs in ("", *CASES)
        assert case.of in ("", *CASES)


def measurement(case: str, cpu_s: float, **more: object) -> Measurement:
    one = Measurement(case, "6.1.192-2", wall_s=cpu_s / 2, cpu_s=cpu_s)
    return dataclasses.replace(one, **more)  # type: ignore[arg-type]


def bench(tmp_path: Path, target: Target = CLOUD) -> Bench:
    return Bench(fake_kernel.settings(tmp_path), target, "", lambda: 0.0)


def pretend(monkeypatch: pytest.MonkeyPatch, done: list[str]) -> None:
    def measured(given: Bench, case: Case) -> Measurement:
        done.append(case.name)
        if not case.needs:
            made = bench_build._private_cache(given, case.name) / "ccache/0/1"
            made.mkdir(parents=True, exist_ok=True)
        return measurement(case.name, 10.0, missed=("a.c",), load=(1.0, 2.0), hits=1, misses=1)

    functions: dict[str, Callable[[Bench, Case], Measurement]] = dict.fromkeys(CASES, measured)
    monkeypatch.setattr(bench_build, "_MEASURE", functions)
    monkeypatch.setattr(bench_build, "cpu_account", lambda: contextlib.nullcontext(lambda: 0.0))


def test_results_are_kept_by_case_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    said: list[str] = []
    pretend(monkeypatch, done)
    settings = fake_kernel.settings(tmp_path)
    settings.cache.mkdir()
    path = bench_build.run(settings, CLOUD, names=["nothing"], say=said.append)
    bench_build.run(settings, CLOUD, names=["patch"], say=said.append)
    found = build_cases.read(path)
    assert set(found) == {"nothing", "patch"}
    assert found["patch"] == measurement(
        "patch", 10.0, missed=("a.c",), load=(1.0, 2.0), hits=1, misses=1
    )
    assert "our full build, cold: not measured" in said[-1]


@pytest.mark.parametrize("asked", [(), ("fast", "nothing")])
def test_a_suite_without_a_fast_path_is_measured_all_the_same(
    asked: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    said: list[str] = []
    pretend(monkeypatch, done)
    distro = toy.make(tmp_path / "toy")
    config = distro.headers / f"usr/src/linux-headers-{toy.RELEASE}/.config"
    config.write_text(config.read_text().replace("CONFIG_MODVERSIONS=y\n", ""))
    monkeypatch.setattr(source, "fetch", lambda *_: distro.base)
    monkeypatch.setattr(unpack, "unpack_deb", lambda *_: distro.headers)
    settings = fake_kernel.settings(tmp_path)
    settings.cache.mkdir()
    fast = bench_build._MEASURE["fast"]

    def refused(given: Bench, case: Case) -> Measurement:
        fast(given, case)
        raise UserError("the distro's modules cannot be kept")

    monkeypatch.setitem(bench_build._MEASURE, "fast", refused)
    if asked:
        with pytest.raises(UserError, match="cannot be kept"):
            bench_build.run(settings, CLOUD, names=asked, say=said.append)
        # The table came first, and what was to be measured after it was.
        assert done == ["fast", "nothing"]
        assert "FAILED: usage error: the distro's modules cannot be kept" in said[0]
    else:
        bench_build.run(settings, CLOUD, say=said.append)
        assert not {"fast", "fast-ccache"} & set(done)
        assert {"full", "patch", "nothing"} <= set(done)
        assert "no CONFIG_MODVERSIONS" in said[0]


def test_a_failed_case_is_not_shown_with_the_figures_of_an_earlier_run() -> None:
    found = {"full": measurement("full", 100.0), "fast": measurement("fast", 10.0)}
    text = build_table.render(CLOUD, found, absent={"full": "FAILED: build error"}, width=200)
    assert "FAILED: build error" in text
    assert "met: 1/3" not in text


def test_a_target_says_what_it_was_compared_with() -> None:
    found = {
        "full": measurement("full", 100.0, version="6.1.187-1", began="2026-11-21"),
        "fast": measurement("fast", 10.0),
    }
    assert build_table.judge(CASES["fast"], CLOUD, found).endswith("CPU, of 6.1.187-1")
    cloud = {"count": measurement("count", 1.0, objects=1), "full": measurement("full", 1000.0)}
    mine = {"count": measurement("count", 1.0, objects=2), "fast": measurement("fast", 10.0)}
    text = build_table.render(AMD64, mine, cloud, width=300)
    assert "met: 1/8 of full's CPU, extrapolated" in text


def test_a_warm_case_measures_the_cold_one_first_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    pretend(monkeypatch, done)
    settings = fake_kernel.settings(tmp_path)
    settings.cache.mkdir()
    given = bench(tmp_path)
    bench_build.measure(given, CASES["full-ccache"])
    bench_build.measure(given, CASES["full-ccache"])
    assert done == ["full", "full-ccache", "full-ccache"]


def test_a_private_cache_shares_all_but_the_compilers(tmp_path: Path) -> None:
    given = bench(tmp_path)
    for shelf in ("ccache", "objects"):
        (given.settings.cache / shelf).mkdir(parents=True)
    (given.settings.cache / "ccache/result").touch()
    cache = bench_build._private_cache(given, "full", empty=True)
    # The machine had none of these before.
    for shelf in ("files", "roots", "trees", "apt", "locks"):
        assert (cache / shelf).samefile(given.settings.cache / shelf)
    assert list((cache / "ccache").iterdir()) == []
    # How many objects a build had is what a build finds out.
    assert not (cache / "objects").exists()
    (cache / "ccache/mine").touch()
    assert (bench_build._private_cache(given, "full") / "ccache/mine").exists()
    bench_build._private_cache(given, "full", empty=True)
    # The machine's own survives.
    assert (given.settings.cache / "ccache/result").exists()
    assert not (cache / "ccache/mine").exists()


def test_a_damaged_result_is_said(tmp_path: Path) -> None:
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


def test_objects_are_counted_in_what_make_says() -> None:
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
class Seen:
    """What the pretended pipeline was asked for."""

    settings: list[Settings] = dataclasses.field(default_factory=list)
    wishes: list[str] = dataclasses.field(default_factory=list)
    versions: list[str | None] = dataclasses.field(default_factory=list)
    commands: list[list[str]] = dataclasses.field(default_factory=list)
    packed: list[bool] = dataclasses.field(default_factory=list)


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """A pipeline whose kernels have two objects, one of them compiled."""
    asked = Seen()
    (fake_kernel.settings(tmp_path).cache / "files").mkdir(parents=True)

    def fetch(settings: Settings, target: Target) -> Base:
        asked.versions.append(target.version)
        return dataclasses.replace(fake_kernel.base(), version=target.version or "6.1.192-2")

    def prepare(settings: Settings, target: Target, base: Base, *, modules: str = "auto") -> object:
        asked.wishes.append(modules)
        plan = SimpleNamespace(target=target, config="CONFIG_A=y\n", method="rebuild")
        tree = SimpleNamespace(path=tmp_path)
        return SimpleNamespace(
            base=base, plan=plan, tree=tree, distro_image=tmp_path, distro_headers=tmp_path
        )

    def kernel(settings: Settings, *_: object, home: Path, **__: object) -> object:
        asked.settings.append(settings)
        assert not (home / "out").exists()
        for name in ("out/fs/a.o", "out/fs/b.o", "out/fs/b.c"):
            toy.write(home / name, "")
        toy.write(home / "statistics/ccache.log", STATISTICS)
        toy.write(home / "statistics/symbol-versions.log", STATISTICS)
        built = SimpleNamespace(output=home / "out", source=home, method="rebuild")
        return SimpleNamespace(ensure=lambda: built)

    def enter(
        root: object,
        argv: list[str],
        *,
        binds: list[Bind],
        on_line: Callable[[str], None] = lambda _: None,
        **_: object,
    ) -> Completed:
        asked.commands.append(argv)
        if "bindeb-pkg" in argv:
            on_line("  CC      fs/a.o")
            toy.write(binds[-1].source / "linux-image-6.1.192_1_amd64.deb", "")
            toy.write(binds[-1].source / "out/fs/a.o", "")
        return Completed((), 0, "gcc-12 -O2 -c -o fs/a.o fs/a.c\n" if "-n" in argv else "", "", 0.0)

    monkeypatch.setattr(source, "fetch", fetch)
    monkeypatch.setattr(stages, "prepare", prepare)
    monkeypatch.setattr(compilation, "kernel", kernel)
    packed = SimpleNamespace(ensure=lambda: asked.packed.append(True))
    monkeypatch.setattr(stages, "kernel_packages", lambda _: packed)

    def make_arguments(*_: object, plain: bool) -> list[str]:
        compiler = "gcc-12" if plain else "ccache gcc-12"
        return ["make", "O=/mnt/out", f"CC={compiler}", "KERNELRELEASE=x"]

    monkeypatch.setattr(compilation, "make_arguments", make_arguments)
    monkeypatch.setattr(roots, "compile_root", lambda *_: None)
    monkeypatch.setattr(sandbox, "enter", enter)
    return asked


def test_a_cold_build_is_cold_and_alone(tmp_path: Path, seen: Seen) -> None:
    given = bench(tmp_path)
    helped = dataclasses.replace(given.settings, remote_cache="redis://x", scheduler="farm")
    given = dataclasses.replace(given, settings=helped)
    toy.write(given.home / "cache-full/ccache/0/1", "")
    found = bench_build.measure(given, CASES["full"])
    (used,) = seen.settings
    assert seen.wishes == ["rebuild"]
    assert (used.remote_cache, used.scheduler) == ("", "")
    assert used.build != given.settings.build
    assert not list((used.cache / "ccache").iterdir())
    assert (used.cache / "files").samefile(given.settings.cache / "files")
    assert (found.objects, found.hits, found.misses) == (2, 1, 1)
    assert found.missed == ("/mnt/source/a.c",)
    assert found.versions == (1, 1)
    kept = build_cases.read(given.result)
    assert kept == {"full": found}
    text = build_table.render(CLOUD, kept, width=300)
    assert "symbol versions of 1 of 2 files from ccache" in text


def test_what_is_compared_with_bindeb_pkg_is_packed_too(tmp_path: Path, seen: Seen) -> None:
    used = iter([10.0, 70.0, 100.0])
    given = dataclasses.replace(bench(tmp_path), cpu=lambda: next(used))
    found = bench_build.measure(given, CASES["full"])
    assert seen.packed == [True]
    assert (found.cpu_s, found.packages_cpu_s) == (90.0, 30.0)
    text = build_table.render(CLOUD, build_cases.read(given.result), width=300)
    assert "30 s of the CPU for packages" in text


def test_misses_are_explained_by_the_build_that_filled_the_cache(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[misses.Build, misses.Build]] = []

    def why(missed: Sequence[str], before: misses.Build, after: misses.Build) -> dict[str, int]:
        assert before.output.is_dir()
        asked.append((before, after))
        return {"a header changed (x.h 1)": len(missed)}

    monkeypatch.setattr(misses, "why", why)
    given = dataclasses.replace(bench(tmp_path), before="6.1.187-1")
    bench_build.measure(given, CASES["fast"])
    assert not asked, "nothing filled a cold one's"
    toy.write(seen.settings[0].cache / "ccache/0/1", "")
    bench_build.measure(given, CASES["fast-ccache"])
    found = bench_build.measure(given, CASES["point-release"])
    assert found.reasons == {"a header changed (x.h 1)": 1}
    assert [before.output.relative_to(given.home).as_posix() for before, _ in asked] == [
        "fast/bookworm/cloud-amd64/6.1.192-2/out",
        "point-release-before/bookworm/cloud-amd64/6.1.187-1/out",
    ]
    text = build_table.render(CLOUD, build_cases.read(given.result), width=200)
    assert "by number of files: 1 a header changed (x.h 1)" in text


def test_a_warm_build_has_the_cold_ones_cache_and_a_new_output(tmp_path: Path, seen: Seen) -> None:
    given = bench(tmp_path)
    bench_build.measure(given, CASES["fast"])
    toy.write(seen.settings[0].cache / "ccache/0/1", "")
    bench_build.measure(given, CASES["fast-ccache"])
    cold, warm = seen.settings
    assert seen.wishes == ["keep", "keep"]
    bench_build.measure(given, CASES["full-ccache"])
    assert seen.wishes[2:] == ["rebuild", "rebuild"], "of a full build, not of the fast path"
    assert warm.cache == cold.cache
    assert warm.build != cold.build
    assert (warm.cache / "ccache/0/1").exists()


def test_a_point_release_comes_after_another_version(tmp_path: Path, seen: Seen) -> None:
    given = dataclasses.replace(bench(tmp_path), before="6.1.187-1")
    found = bench_build.measure(given, CASES["point-release"])
    assert seen.versions == ["6.1.187-1", None]
    assert found.version == "6.1.192-2"
    assert "after 6.1.187-1" in found.note


@pytest.mark.parametrize("before", ["6.1.192-2", "6.1.1-1"])
def test_the_earlier_version_is_looked_up_before_hours_of_other_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    def resolve(settings: Settings, target: Target) -> SimpleNamespace:
        if target.version == "6.1.1-1":
            raise UserError("bookworm has no linux 6.1.1-1")
        return SimpleNamespace(version=target.version or "6.1.192-2")

    monkeypatch.setattr(source, "resolve", resolve)
    monkeypatch.setattr(bench_build, "measure", lambda *_: pytest.fail("something was measured"))
    settings = bench(tmp_path).settings
    with pytest.raises(UserError, match=r"has no linux 6\.1\.1-1|is the newest version"):
        bench_build.run(settings, CLOUD, names=["nothing", "point-release"], before=before)


def test_the_plain_build_says_how_far_it_is(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_LOG_EVERY_S", 0.0)
    caplog.set_level("INFO")
    bench_build.measure(bench(tmp_path), CASES["plain"])
    assert "make bindeb-pkg: 1 of 6352 objects" in caplog.text


def test_the_plain_build_uses_no_cache_and_has_to_leave_packages(
    tmp_path: Path, seen: Seen
) -> None:
    found = bench_build.measure(bench(tmp_path), CASES["plain"])
    configure, build = seen.commands
    assert configure[-1] == "olddefconfig"
    assert build[-1] == "bindeb-pkg"
    assert "CC=gcc-12" in build
    assert not [word for word in build if word.startswith("KERNELRELEASE")]
    assert (found.objects, found.note) == (1, "1 packages")


def test_a_plain_build_without_an_image_is_no_measurement(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Completed((), 0, "", "", 0.0)
    monkeypatch.setattr(sandbox, "enter", lambda *_, **__: nothing)
    given = bench(tmp_path)
    for case, words in (("plain", "no image package"), ("count", "names nothing")):
        with pytest.raises(BenchError, match=words):
            bench_build.measure(given, CASES[case])
    assert build_cases.read(given.result) == {}


def test_objects_are_counted_without_compiling_them(tmp_path: Path, seen: Seen) -> None:
    found = bench_build.measure(bench(tmp_path, LAB), CASES["count"])
    assert [command[-1] for command in seen.commands] == ["allnoconfig", "prepare", "modules"]
    assert found.objects == 1


@pytest.mark.parametrize(("said", "right"), [("packaged x in 1 s", True), ("building x: y", False)])
def test_nothing_is_only_nothing_when_nothing_was_made(
    said: str, right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = SimpleNamespace(version="6.1.192-2")
    done = SimpleNamespace(kernel=SimpleNamespace(base=base))
    monkeypatch.setattr(stages, "package", lambda *_: done)
    completed = Completed((), 0, "", said, 0.0)
    monkeypatch.setattr(bench_build, "run_program", lambda *_, **__: completed)
    given = bench(tmp_path)
    if right:
        assert bench_build.measure(given, CASES["nothing"]).version == "6.1.192-2"
        return
    with pytest.raises(BenchError, match="nothing changed"):
        bench_build.measure(given, CASES["nothing"])


@pytest.mark.parametrize("digests", [("1", "2"), ("1", "1")])
def test_an_edit_has_to_have_changed_the_kernel(
    digests: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(digests)
    projects = []

    def package(settings: Settings, target: Target) -> object:
        projects.append(settings.project)
        digest = left.pop(0)
        return SimpleNamespace(kernel=SimpleNamespace(base=fake_kernel.base(), digest=digest))

    monkeypatch.setattr(stages, "package", package)
    monkeypatch.setattr(images, "guest_image", lambda *_: None)
    given = bench(tmp_path)
    before = quilt.choose(given.settings.project / "patches", "6.1.192").digest
    if digests[0] == digests[1]:
        with pytest.raises(BenchError, match="built again"):
            bench_build.measure(given, CASES["patch"])
    else:
        assert "then installed" in bench_build.measure(given, CASES["patch"]).note
    # The copy was edited, and not the checkout.
    assert quilt.choose(projects[0] / "patches", "6.1.192").digest != before
    assert quilt.choose(given.settings.project / "patches", "6.1.192").digest == before

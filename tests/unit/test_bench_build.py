"""The bench of builds: cases that can be run alone, kept results, and a table that is honest."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild import bench_build, patches
from kbuild.bench import BenchError
from kbuild.bench_build import CASES, Bench, Case, Measurement
from kbuild.errors import UserError
from kbuild.model import Target
from tests.unit import fake_kernel, toy

CLOUD = Target("bookworm", "cloud-amd64")
LAB = Target("bookworm", "lab")
AMD64 = Target("bookworm", "amd64")


def names(cases: tuple[Case, ...]) -> list[str]:
    return [case.name for case in cases]


def test_by_default_what_makes_sense_is_measured() -> None:
    everything = [name for name in CASES if name != "point-release"]
    assert names(bench_build.choose(CLOUD, ())) == everything
    assert "point-release" in names(bench_build.choose(CLOUD, (), before="6.1.187-1"))
    assert "fast" not in names(bench_build.choose(LAB, ()))
    # Many hours: counted, not compiled, unless somebody asks for it.
    assert not {"plain", "full", "full-ccache"} & set(names(bench_build.choose(AMD64, ())))
    assert {"count", "fast"} <= set(names(bench_build.choose(AMD64, ())))
    assert names(bench_build.choose(AMD64, ["full"])) == ["full"]


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
        bench_build.choose(target, [case])
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
    found = bench_build.read(path)
    assert set(found) == {"nothing", "patch"}
    assert found["patch"] == measurement(
        "patch", 10.0, missed=("a.c",), load=(1.0, 2.0), hits=1, misses=1
    )
    assert "our full build, cold: not measured" in said[-1]


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
    for shelf in ("files", "roots", "ccache"):
        (given.settings.cache / shelf).mkdir(parents=True)
    (given.settings.cache / "ccache/result").touch()
    cache = bench_build._private_cache(given, "full", empty=True)
    assert (cache / "files").samefile(given.settings.cache / "files")
    assert list((cache / "ccache").iterdir()) == []
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
        bench_build.read(path)
    assert bench_build.read(tmp_path / "none") == {}


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
    assert bench_build.judge(CASES[case], target, found).startswith(words)


def test_without_the_other_value_nothing_is_judged() -> None:
    found = {"fast": measurement("fast", 1.0)}
    assert bench_build.judge(CASES["fast"], CLOUD, found) == ""


def test_a_full_build_of_amd64_is_extrapolated_and_said_to_be() -> None:
    cloud = {
        "count": measurement("count", 1.0, objects=5000),
        "full": measurement("full", 1000.0),
    }
    mine = {"count": measurement("count", 1.0, objects=20000)}
    text = bench_build.render(AMD64, mine, cloud, width=200)
    assert "extrapolated: cloud-amd64's × 4.0" in text
    assert "1 h 06 min" in text
    # Not where it was measured, nor from what was not.
    assert bench_build.extrapolate({**mine, "full": cloud["full"]}, cloud) is None
    assert bench_build.extrapolate(mine, {"full": cloud["full"]}) is None
    assert bench_build.extrapolate({}, cloud) is None


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
    text = bench_build.render(CLOUD, found, width=200)
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
    series = patches.choose(distro.patches, "6.1.192")
    patches.apply(distro.pristine, series, tmp_path / "tree", base_version="6.1.192-2")
    bench_build.edit(path)
    assert path.read_text() == before


def test_every_series_of_ours_can_be_edited(tmp_path: Path) -> None:
    for mark in (Path(__file__).parents[2] / "patches").glob("*/series"):
        for patch in patches.read_series(mark.parent).patches:
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

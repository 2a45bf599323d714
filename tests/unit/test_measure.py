"""Statistics, parsing and tables of the benchmarks; nothing here looks at a clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kbuild.core.errors import UserError
from kbuild.core.model import Settings, Target
from kbuild.measure import procfile as bench_procfile
from kbuild.measure import stats
from kbuild.measure.procfile import LOADS, Load, Method
from kbuild.measure.stats import Aim, BenchError, Comparison, Pass, Series

PROJECT = Path(__file__).resolve().parents[2]


def test_passes_are_read() -> None:
    assert stats.parse_passes("pass 1500 3 40\npass 1600 3 40\n") == (
        Pass(1500, 3, 40),
        Pass(1600, 3, 40),
    )


@pytest.mark.parametrize(
    "text", ["", "\n", "pass 1 2\n", "pass 1 2 3\nlooped 4\n", "pass 0 2 3\n", "pass -1 2 3\n"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BenchError):
        stats.parse_passes(text)


def test_a_spread_has_quartiles_and_extremes() -> None:
    found = stats.spread([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (found.least, found.q1, found.median, found.q3, found.most) == (1, 2, 3, 4, 5)
    assert found.count == 5
    assert stats.spread([7.0]) == stats.Spread(7, 7, 7, 7, 7, 1)
    with pytest.raises(ValueError, match="no value"):
        stats.spread([])


def test_the_interval_of_a_median_is_the_sign_tests() -> None:
    # From the tables of the binomial distribution: with 20 values the 6th from either end,
    # with 6 the ends themselves, with 5 none is 95 % sure.
    twenty = [float(n) for n in range(1, 21)]
    assert stats.median_interval(twenty[::-1]) == (6, 15)
    assert stats.median_interval(twenty[:6]) == (1, 6)
    assert stats.median_interval(twenty[:5]) is None
    assert stats.median_interval([]) is None
    assert stats.median_interval(twenty, confidence=0.99) == (4, 17)


def test_a_loss_is_seen_or_excluded() -> None:
    def said(*ratios: float) -> str:
        control = Series("control", dict.fromkeys(range(len(ratios)), 2.0))
        read = Series("read", {k: 2.0 * value for k, value in enumerate(ratios)})
        return stats.loss(Comparison("c", "c", "per s", "control", (control, read)), "read")

    assert said(0.98, 1, 1, 1.01, 1, 0.99, 1.03) == (
        "read ÷ control: 1.00, at 95 % 0.980–1.03: no loss seen, one of more than 2.0 % is excluded"
    )
    assert said(0.8, 0.9, 0.9, 0.88, 0.91, 0.92).endswith("0.800–0.920: a loss of 8.0 % at least")
    assert said(1.2, 1.1, 1.1, 1.1, 1.1, 1.3).endswith("one of more than 0.0 % is excluded")
    assert said(0.5, 0.5) == "read ÷ control: 2 rounds are too few to tell"


def test_a_ratio_is_taken_within_rounds() -> None:
    # Round 1 was twice as slow for both: the ratio does not know of it.
    slow = Series("slow", {0: 10.0, 1: 20.0, 2: 10.0})
    fast = Series("fast", {0: 2.0, 1: 4.0, 3: 100.0})
    found = stats.ratio(slow, fast)
    assert found is not None
    assert (found.least, found.most, found.count) == (5.0, 5.0, 2)


def test_a_ratio_of_rounds_that_were_never_shared_is_none() -> None:
    assert stats.ratio(Series("a", {0: 1.0}), Series("b", {1: 1.0})) is None
    assert stats.ratio(Series("a", why="no"), Series("b", {1: 1.0})) is None


def test_a_series_has_values_or_a_reason() -> None:
    with pytest.raises(ValueError, match="either values or a reason"):
        Series("silent")
    with pytest.raises(ValueError, match="either values or a reason"):
        Series("both", {0: 1.0}, "no BTF")


def test_a_comparison_needs_its_reference() -> None:
    with pytest.raises(ValueError, match="no series is called module"):
        Comparison("n", "t", "µs", "module", (Series("lsof", {0: 1.0}),))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.01234, "0.0123"),
        (0.9999, "1.00"),
        (4.567, "4.57"),
        (78.94, "78.9"),
        (123.4, "123"),
        (1234.5, "1,230"),
        (45678.0, "45,700"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert stats.number(value) == text


def example() -> Comparison:
    return Comparison(
        "few",
        "few: 10 processes",
        "µs per line",
        "module",
        (
            Series("module", {0: 2.0, 1: 4.0}),
            Series("lsof", {0: 100.0, 1: 200.0}),
            Series("BPF iterator", why="the kernel has no BTF"),
        ),
    )


def test_the_table_shows_ratios_and_missing_measurements() -> None:
    text = stats.render(example(), width=160)
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "3.00  [2.50–3.50]  2.00–4.00" in rows["module"]
    assert rows["lsof"].endswith("50.0  [50.0–50.0]  50.0–50.0")
    assert rows["BPF iterator"].endswith("not measurable here: the kernel has no BTF")


def test_one_round_has_no_spread() -> None:
    assert stats.show_spread(stats.spread([2.0])) == "2.00 (once)"


def test_the_json_holds_every_round() -> None:
    series = json.loads(json.dumps(stats.to_json(example())))["series"]
    assert series["module"]["rounds"] == {"0": 2.0, "1": 4.0}
    assert series["lsof"]["ratio"]["median"] == 50.0
    assert series["lsof"]["ratio"]["count"] == 2
    assert series["BPF iterator"] == {"not measurable here": "the kernel has no BTF"}


def test_an_aim_is_judged_by_the_median_ratio() -> None:
    said = "lsof ÷ module at least 40: 1 of 1, the least 50.0"
    assert stats.judge(Aim("lsof", 40), [example()]) == said
    said = "lsof ÷ module at least 60: 0 of 1; not few (50.0)"
    assert stats.judge(Aim("lsof", 60), [example()]) == said


def test_an_aim_that_nothing_was_measured_for_is_not_met() -> None:
    said = "BPF iterator ÷ module at least 2: not measurable here"
    assert stats.judge(Aim("BPF iterator", 2), [example()]) == said
    assert (
        stats.judge(Aim("lsfd", 2), [example()]) == "lsfd ÷ module at least 2: not measurable here"
    )


def test_work_is_operations_per_second() -> None:
    assert bench_procfile.parse_work("work 300 1000000\n") == 300_000
    for text in ("work 300 0\n", "work 300\n", ""):
        with pytest.raises(BenchError):
            bench_procfile.parse_work(text)


def test_the_pass_that_was_disturbed_least_counts() -> None:
    assert bench_procfile.least_us([Pass(5000, 1, 1), Pass(2500, 1, 1), Pass(9000, 1, 1)]) == 2.5


def test_each_method_comes_first_once() -> None:
    methods = [Method(name, lambda _passes, _pids: []) for name in "abc"]
    orders = ["".join(m.name for m in bench_procfile.rotate(methods, turn)) for turn in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]


def test_the_modules_default_backend_is_what_others_are_compared_with() -> None:
    names = [one.name for one in bench_procfile.module_methods(["export", "stock"])]
    assert names == ["module, export", "module, stock"]


def test_tools_are_told_the_processes() -> None:
    command = bench_procfile.tool("lsof", "-p", "PIDS")(3, [10, 20])
    assert command == ["/tmp/programs/bench_run", "passes", "3", "lsof", "-p", "10,20"]
    assert bench_procfile.psutil(2, [10, 20])[-3:] == ["2", "10", "20"]


def test_a_method_that_saw_too_little_is_refused() -> None:
    load = Load("l", 2, 10)
    method = Method("lsof", lambda _passes, _pids: [])
    bench_procfile.check_lines(method, [Pass(1, 20, 1), Pass(1, 99, 1)], load)
    with pytest.raises(BenchError, match="lsof did not show the load l"):
        bench_procfile.check_lines(method, [Pass(1, 24, 1), Pass(1, 19, 1)], load)


@pytest.mark.parametrize(("fewer", "lines"), [(0, 24), (1, 23)])
def test_a_method_that_prints_the_same_must_print_all_of_it(fewer: int, lines: int) -> None:
    load = Load("l", 2, 10)
    method = Method("m", lambda _passes, _pids: [], fewer=fewer)
    bench_procfile.check_lines(method, [Pass(1, lines, 1)], load)
    for wrong in (lines - 1, lines + 1):
        with pytest.raises(BenchError):
            bench_procfile.check_lines(method, [Pass(1, wrong, 1)], load)


def test_loads_are_few_and_many_sparse_and_long() -> None:
    assert {name: load.name for name, load in LOADS.items()} == {name: name for name in LOADS}
    assert Load("l", 3, 10).lines == 36
    assert {load.stride > 1 for load in LOADS.values()} == {True, False}
    # The longest path that can be read, and what the table of a process may hold.
    assert all(load.path < 4096 for load in LOADS.values())
    assert all(load.files * load.stride + 64 < 1 << 20 for load in LOADS.values())
    options = bench_procfile.load_options(LOADS["sparse"], host=3)
    assert options.pop("host") == 3
    source = (PROJECT / "kbuild/measure/programs/bench_load.c").read_text()
    assert all(f'{{ "{name}", ' in source for name in options)


def test_only_the_cases_asked_for_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ids", "compare", "busy_host", "disturbance"):
        monkeypatch.setattr(
            bench_procfile, name, lambda *given, name=name: (name, *given[1:-1], given[-1])
        )

    def measured(*names: str) -> list[object]:
        return list(bench_procfile._comparisons(None, 2, names))  # type: ignore[arg-type]

    assert measured("disturbance", "sparse") == [
        ("disturbance", 2),
        ("compare", LOADS["sparse"], 2),
    ]
    assert len(measured()) == len(LOADS) + 3


def test_aims_are_judged_under_loads_alone() -> None:
    beside = Comparison("ids", "ids", "ns", "module", (Series("module", {0: 1.0}),))
    assert bench_procfile.verdicts([beside]) == []
    kept = bench_procfile.describe({"kernel": "k"}, [beside])
    assert (kept["conditions"], kept["aims"]) == ({"kernel": "k"}, [])
    load = Comparison("sparse", "s", "µs", "module", (*beside.series, Series("C walk", {0: 50.0})))
    said = bench_procfile.verdicts([beside, load])
    assert "C walk ÷ module at least 40: 1 of 1, the least 50.0" in said
    assert "BPF iterator ÷ module at least 2: not measurable here" in said


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"loads": ["heavy"]}, "no such load: heavy"),
        ({"kernel": "mine"}, "no such kernel: mine"),
        ({"rounds": 0}, "at least one round"),
    ],
)
def test_requests_that_make_no_sense(options: dict[str, object], text: str, tmp_path: Path) -> None:
    settings = Settings(project=PROJECT, build=tmp_path, cache=tmp_path)
    with pytest.raises(UserError, match=text):
        bench_procfile.run(settings, Target("bookworm", "lab"), **options)  # type: ignore[arg-type]

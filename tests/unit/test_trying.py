"""Trying the module without guests: output, exit status and the guest that stands by."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kbuild.core.errors import BuildError
from kbuild.core.model import Settings, Target
from kbuild.guest import triage
from kbuild.guest.outcome import Outcome
from kbuild.kernel.module import BuiltModule
from kbuild.lab import quick, setup, trying
from kbuild.lab.findings import Finding, QuickResult, Step
from kbuild.lab.trying import Attempt, Part, TryFailedError

OOPS = "[    9.0] BUG: kernel NULL pointer dereference, address: 0000000000000000\n"
GOOD = QuickResult(
    findings=(),
    steps=(Step("load", 0.0, 0.5, "backend=export"), Step("still", 0.5, 1.5, "21 processes")),
    reads=7,
    records=70,
    armed=frozenset({"lockdep"}),
    complete=True,
    seconds=2.0,
)


class FakeConsole:
    path = Path("/nowhere/console.log")


class FakeMachine:
    console = FakeConsole()


class FakeGuest:
    """A guest, as far as trying uses one."""

    machine = FakeMachine()

    def read(self, _: str) -> bytes:
        return b"21.50 40.00\n"

    def __init__(self, text: str = "", heard: bool = True) -> None:
        self._text = text
        self.heard = heard
        self.alive = True
        self.abandoned = False

    def reports(self) -> tuple[triage.Report, ...]:
        return triage.scan(self._text)

    def abandon(self) -> None:
        self.alive = False
        self.abandoned = True


class World:
    """The surroundings of a try: its guests and results, in order."""

    def __init__(self, tmp_path: Path) -> None:
        self.settings = Settings(project=tmp_path, build=tmp_path / "build", cache=tmp_path / "c")
        self.guests: list[FakeGuest] = []
        self.make_guest: Callable[[], FakeGuest] = FakeGuest
        self.results: list[QuickResult | Exception] = []
        self.broken = False
        self.said: list[str] = []
        self.asked: list[dict[str, object]] = []
        self.sources: list[Path] = []

    def prepare(self, *_: object, **__: object) -> object:
        world = self

        class FakeLab:
            release = "6.1.0-fake"
            settings = world.settings
            target = Target("bookworm", "lab", "debug")
            programs: dict[str, Path] = {}  # noqa: RUF012 - read only

        return FakeLab()

    def build(self, _: object, source: Path, *, out: Path) -> BuiltModule:
        self.sources.append(source)
        if self.broken:
            raise BuildError("the module does not build", found="kmod/cplayground.c:7: error")
        path = out / "cplayground.ko"
        out.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        return BuiltModule(path, "6.1.0-fake", ("export", "stock"), "", 1.0)

    def open(self, *_: object, **__: object) -> FakeGuest:
        self.guests.append(self.make_guest())
        return self.guests[-1]

    def judge(self, guest: FakeGuest, *_: object, **options: object) -> QuickResult:
        assert guest.alive
        self.asked.append(options)
        result = self.results.pop(0) if self.results else GOOD
        if isinstance(result, Exception):
            raise result
        return result

    def run(
        self, *, backend: str = "", window_us: int = trying.WINDOW_US, watch: bool = False
    ) -> None:
        target = Target("bookworm", "lab", "debug")
        say = self.said.append
        trying.run(
            self.settings, target, backend=backend, window_us=window_us, watch=watch, say=say
        )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(setup, "prepare", made.prepare)
    monkeypatch.setattr(setup, "build_module", made.build)
    monkeypatch.setattr(setup, "open_guest", made.open)
    monkeypatch.setattr(quick, "run", made.judge)
    return made


def edits(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], None]) -> None:
    """Simulate one change of files for each step; the step runs before the change is seen."""

    def watch(*_: object, **__: object) -> Iterator[set[tuple[int, str]]]:
        for step in steps:
            step()
            yield {(1, "/x/kmod/cplayground.c")}

    monkeypatch.setattr("watchfiles.watch", watch)


def test_a_good_module_passes_and_each_part_is_shown(world: World) -> None:
    world.run()
    (text,) = world.said
    for word in (
        "prepare",
        "6.1.0-fake",
        "compile",
        "restore",
        "load",
        "still",
        "21 processes",
        "passed in",
        "lockdep",
    ):
        assert word in text
    assert world.sources == [world.settings.project / "kmod"]
    assert (world.asked[0]["backend"], world.asked[0]["window_us"]) == ("", trying.WINDOW_US)
    assert [guest.alive for guest in world.guests] == [False]


def test_the_users_words_reach_the_suite(world: World) -> None:
    world.run(backend="stock", window_us=7)
    assert (world.asked[0]["backend"], world.asked[0]["window_us"]) == ("stock", 7)


def test_the_kernels_report_comes_first_and_decides_the_status(world: World) -> None:
    world.make_guest = lambda: FakeGuest(OOPS)
    finding = Finding("NULL dereference", "BUG: kernel NULL pointer dereference", 1.0)
    world.results = [QuickResult((finding,), GOOD.steps, 0, 0, frozenset(), False, 2.0)]
    with pytest.raises(TryFailedError) as failed:
        world.run()
    assert failed.value.exit_status == Outcome.CRASHED.exit_status
    (text,) = world.said
    assert text.startswith("1 report, 1 bug")
    assert text.index("1 report") < text.index("found:") < text.index("compile")
    assert "was not completed" in text


@pytest.mark.parametrize(
    ("result", "guest", "outcome"),
    [
        (GOOD, FakeGuest(heard=False), Outcome.NO_OUTPUT),
        (GOOD, FakeGuest(OOPS), Outcome.CRASHED),
        (
            QuickResult((Finding("oracle", "fd 3", 1.0),), (), 1, 1, frozenset(), True, 1.0),
            FakeGuest(),
            Outcome.FAILED,
        ),
        (QuickResult((), (), 1, 1, frozenset(), False, 1.0), FakeGuest(), Outcome.FAILED),
    ],
    ids=["silent console", "report that the suite missed", "finding", "not at its end"],
)
def test_nothing_passes_that_lacks_evidence(
    world: World, result: QuickResult, guest: FakeGuest, outcome: Outcome
) -> None:
    world.make_guest = lambda: guest
    world.results = [result]
    with pytest.raises(TryFailedError) as failed:
        world.run()
    assert failed.value.exit_status == outcome.exit_status != 0


def test_what_does_not_compile_ends_its_guest(world: World) -> None:
    world.broken = True
    with pytest.raises(BuildError, match="does not build"):
        world.run()
    assert [guest.alive for guest in world.guests] == [False]


def test_a_guest_that_does_not_open_waits_for_the_compiler(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    build = world.build

    def slow(lab: object, source: Path, *, out: Path) -> BuiltModule:
        built = build(lab, source, out=out)
        done.set()
        return built

    def none() -> FakeGuest:
        raise RuntimeError("no guest")

    world.make_guest = none
    monkeypatch.setattr(setup, "build_module", slow)
    with pytest.raises(RuntimeError, match="no guest"):
        world.run()
    assert done.is_set()


def test_watching_goes_on_after_failures_and_the_next_guest_stands_by(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = QuickResult((Finding("oracle", "fd 3", 1.0),), (), 1, 1, frozenset(), True, 1.0)
    world.results = [bad, GOOD]

    def break_it() -> None:
        # the first attempt is over, and the next guest stands by
        assert [guest.alive for guest in world.guests] == [False, True]
        world.broken = True

    def mend_it() -> None:
        assert [guest.alive for guest in world.guests] == [False, False, True]
        world.broken = False
        world.guests[-1].alive = False  # it died while it stood by

    edits(monkeypatch, break_it, mend_it)
    world.run(watch=True)
    text = "\n".join(world.said)
    order = ["failed in", "module error", "build error", "passed in"]
    assert [text.index(word) for word in order] == sorted(text.index(word) for word in order)
    assert text.count("waiting for an edit") == 3
    # the dead guest was replaced, and no guest is left at the end
    assert [guest.alive for guest in world.guests] == [False] * 5
    # each guest was abandoned, the dead one too
    assert all(guest.abandoned for guest in world.guests)


def test_the_table_shows_what_was_seen_as_it_is() -> None:
    parts = (Part("compile", 0.0, 2.5, "1 MB"), Part("restore", 0.0, 1.25, "6.1 [x]"))
    attempt = Attempt(parts, GOOD, (), True, Path("m"), Path("c"), 4.0)
    lines = trying.render(attempt).splitlines()
    assert lines[0].split() == ["part", "from", "took", "seen"]
    assert lines[1].split() == ["compile", "0.0", "s", "2.5", "s", "1", "MB"]
    assert "6.1 [x]" in lines[2]

"""The conclusions of the gate's case ``guard`` from the boots of a server, without one."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from kbuild.gate import guarded, machine
from kbuild.gate.guarded import COMPLAINT, STATUS, WORD
from kbuild.gate.machine import Boot
from kbuild.gate.round import Round, Trial
from kbuild.guest.guest import GuestResult
from kbuild.guest.outcome import End, Outcome
from kbuild.guest.verdict import Verdict
from tests.gate.stories import STORIES
from tests.unit.server import PROJECT

GOOD, BAD = "6.1.0-57-cplayground-lab", "6.1.0-57-cplayground.2-lab"


def status(**changed: str) -> dict[str, str]:
    said = {"state": "bad", "good": GOOD, "trial": "", "bad": BAD, "reason": f"it: {COMPLAINT}"}
    return said | changed


def boot(
    place: Path,
    kernel: str,
    *,
    end: End,
    tried: bool = False,
    said: dict[str, str] | None = None,
) -> Boot:
    """A boot of a kernel, whose console has the kernel's first lines."""
    cmdline = f"BOOT_IMAGE=/boot/x root=UUID=1{f' {WORD}' if tried else ''}"
    console = place / f"console-{len(list(place.glob('console-*')))}"
    console.write_text(
        f"[    0.000000] Linux version {kernel} (gate) #1 SMP\r\n"
        f"[    0.000000] Command line: {cmdline}\r\n"
    )
    text = "".join(f"{key}: {value}\n" for key, value in (said or {}).items())
    asked = GuestResult(STATUS.argv, 0, text.encode(), b"", 1.0)
    return Boot(
        Verdict(Outcome.PASSED),
        console,
        release=kernel,
        cmdline=cmdline,
        results=(asked,) if said is not None else (),
        first_line_s=4.0,
        done_s=20.0,
        off_s=30.0,
        end=end,
    )


class Server:
    """A booted server, which has already ended as its boot says."""

    def __init__(self, seen: Boot) -> None:
        self.seen = seen

    def settle(self) -> None:
        """Nothing is left to wait for."""

    def wait_end(self, timeout_s: float) -> bool:
        return self.seen.end is not End.OFF

    def finish(self) -> Boot:
        return self.seen


def round_of(*boots: Boot) -> Round:
    """A round whose servers boot like this, one after the other."""
    left = list(boots)

    @contextlib.contextmanager
    def running(*_: object, **__: object) -> Iterator[Server]:
        yield Server(left.pop(0))

    def judge(trial: Trial, server: Server, what: str, **_: object) -> Boot:
        return server.finish()

    def booted(trial: Trial, *_: object, **__: object) -> Boot:
        return left.pop(0)

    made = SimpleNamespace(
        running=running,
        judge=judge,
        boot=booted,
        candidate=SimpleNamespace(kernel=BAD),
        view=SimpleNamespace(promoted=(object(),)),
    )
    return cast(Round, made)


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "keep_changes", lambda disk, changes: changes)


def refused(place: Path, boots: Sequence[Boot]) -> Trial:
    trial = Trial("guard")
    guarded.refused(round_of(*boots), trial, place / "disk", GOOD)
    return trial


def left_and_back(place: Path) -> list[Boot]:
    """The boots of a server that left a bad kernel."""
    return [
        boot(place, BAD, end=End.RESET, tried=True),
        boot(place, GOOD, end=End.OFF, said=status()),
        boot(place, GOOD, end=End.CUT),
    ]


def test_a_server_that_goes_back_passes(tmp_path: Path) -> None:
    trial = refused(tmp_path, left_and_back(tmp_path))
    assert trial.reasons == []
    assert trial.notes == [f"{GOOD} ran again after 34 s"]


@pytest.mark.parametrize(
    ("at", "changed", "reason"),
    [
        pytest.param(0, {"end": End.OFF}, "the server stays with", id="it stays"),
        pytest.param(0, {"end": End.LOST}, "not tried once and left by a reboot", id="it dies"),
        pytest.param(1, {"said": status(state="good")}, "state is 'good', not 'bad'", id="not bad"),
        pytest.param(1, {"said": {}}, "state is '', not 'bad'", id="silent"),
        pytest.param(1, {"said": status(reason="hung")}, "reason is 'hung'", id="other reason"),
        pytest.param(
            2, {"kernel": BAD, "tried": True}, f"starts {BAD} on trial, not", id="tried again"
        ),
        pytest.param(2, {"end": End.RESET}, "starts no kernel", id="no next boot"),
    ],
)
def test_a_server_that_is_not_back_fails(
    tmp_path: Path, at: int, changed: dict[str, object], reason: str
) -> None:
    boots = left_and_back(tmp_path)
    kinds = [
        {"kernel": BAD, "end": End.RESET, "tried": True},
        {"kernel": GOOD, "end": End.OFF, "said": status()},
        {"kernel": GOOD, "end": End.CUT},
    ]
    boots[at] = boot(tmp_path, **(kinds[at] | changed))  # type: ignore[arg-type]
    assert reason in "\n".join(refused(tmp_path, boots).reasons)


def test_a_kernel_that_is_tried_again_and_again_is_a_fault(tmp_path: Path) -> None:
    boots = [boot(tmp_path, BAD, end=End.RESET, tried=True) for _ in range(5)]
    reasons = "\n".join(refused(tmp_path, boots).reasons)
    assert f"{GOOD} did not come back" in reasons


def test_the_same_release_on_trial_is_not_the_good_kernel(tmp_path: Path) -> None:
    """Debian may keep a kernel's ABI, and both kernels have one name."""
    seen = guarded.follow(
        round_of(
            boot(tmp_path, GOOD, end=End.RESET, tried=True),
            boot(tmp_path, GOOD, end=End.OFF, said=status()),
        ),
        Trial("guard"),
        tmp_path / "disk",
        tmp_path / "changes",
        "a server",
        stays=GOOD,
        module=None,
    )
    assert len(seen.before) == 1
    assert seen.seconds == 34.0
    assert seen.status == status()


def kept(place: Path, first: Boot, second: Boot) -> Trial:
    trial = Trial("guard")
    guarded.kept(round_of(first, second), trial, place / "disk")
    return trial


def test_a_candidate_that_is_made_good_passes(tmp_path: Path) -> None:
    said = status(state="good", good=BAD, bad="")
    first = boot(tmp_path, BAD, end=End.OFF, tried=True, said=said)
    second = boot(tmp_path, BAD, end=End.CUT)
    assert kept(tmp_path, first, second).reasons == []
    # The guard did not try it.
    untried = replace(first, cmdline="root=UUID=1")
    assert "not on trial" in "\n".join(kept(tmp_path, untried, second).reasons)
    # It is not kept.
    back = boot(tmp_path, GOOD, end=End.CUT)
    assert f"starts {GOOD}, not {BAD}" in "\n".join(kept(tmp_path, first, back).reasons)
    still = boot(tmp_path, BAD, end=End.OFF, tried=True, said=status(state="trying", trial=BAD))
    assert "state is 'trying'" in "\n".join(kept(tmp_path, still, second).reasons)


def test_each_power_cut_of_the_stories_is_at_one_command_of_the_guard() -> None:
    script = PROJECT / "guard/root/usr/sbin" / guarded.PROGRAM
    commands = [one.strip() for one in re.split(r"\|\||&&|;|\n", script.read_text())]
    cuts = [
        tell.keywords["at"]
        for tell in STORIES.values()
        if isinstance(tell, functools.partial) and "at" in tell.keywords
    ]
    assert len(cuts) == 6
    for at in cuts:
        assert fnmatch.filter(commands, at), at

"""``release``: the order of its steps, and nothing in the archive that the gate did not pass."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from kbuild import gating, releasing, testing
from kbuild.answer import Answer
from kbuild.archive import evidence, operations
from kbuild.archive.release import Record, Release, State, View
from kbuild.archive.required import REQUIRED, SIGNATURE
from kbuild.core import fs
from kbuild.core.errors import InfrastructureError, PoolError, SigningError
from kbuild.core.model import Settings
from kbuild.gate import candidate, judging
from kbuild.gate.report import CaseResult, GateError, Report
from kbuild.pipeline import papers, stages
from kbuild.ship import provenance
from kbuild.testing import FailedTestsError
from tests.unit import releases


class Line:
    """The steps of a release, as fakes that note that they ran; the archive and keys are real."""

    def __init__(self, home: Path) -> None:
        self.settings = releases.settings(home)
        self.ran: list[str] = []
        self.packaged = releases.release()
        self.refuses: tuple[str, ...] = ()  # cases that the gate finds failed
        self.tests_fail = False

    def package(self, *_: object, **__: object) -> object:
        self.ran.append("package")
        return SimpleNamespace(target=self.packaged.target, settings=self.settings)

    def run_tests(self, *_: object, **__: object) -> tuple[object, ...]:
        self.ran.append("test")
        if self.tests_fail:
            raise FailedTestsError("1 of 2 vm tests failed")
        path = self.settings.build / "test/vm.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("<testsuites/>\n")
        return (SimpleNamespace(junit=path),)

    def papers(self, *_: object, sign: Callable[[bytes], bytes]) -> tuple[Path, ...]:
        self.ran.append("papers")
        path = self.settings.build / provenance.NAME
        path.write_text(json.dumps(releases.statement(self.packaged)))
        signature = self.settings.build / provenance.SIGNATURE
        signature.write_bytes(sign(path.read_bytes()))
        return path, signature

    def gate(self, settings: Settings, view: View, **_: object) -> object:
        self.ran.append("gate")
        # The packages are there, under their names in the archive, and signed.
        assert all(one.path.is_file() for one in view.candidate.packages)
        assert (view.root / "dists" / view.staging / "InRelease").is_file()
        cases = tuple(
            CaseResult(
                name,
                "failed" if name in self.refuses else evidence.PASSED,
                reasons=("it did not boot",) if name in self.refuses else (),
            )
            for name in REQUIRED
        )
        return Report(
            id=view.candidate.id,
            packages={one.path.name: one.sha256 for one in view.candidate.packages},
            cases=cases,
            older=tuple(one.id for one in view.promoted),
            commit="0" * 40,
            when="2026-11-30T12:00:00+00:00",
            accelerator="tcg",
            seconds=1.0,
        )

    def run(self) -> dict[str, object]:
        """Release; returns the data of the answer."""
        answer = releasing.run(self.settings, self.packaged.target, modules="auto", accel=None)
        return dict(answer.data)

    def states(self) -> dict[str, State]:
        return {one.id: one.state for one in operations.releases(self.settings)}


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    made = Line(tmp_path)
    for owner, name, fake in (
        (stages, "package", made.package),
        (candidate, "of", lambda _: made.packaged),
        (testing, "run_tests", made.run_tests),
        (papers, "write", made.papers),
        (judging, "run", made.gate),
    ):
        monkeypatch.setattr(owner, name, fake)
    return made


def test_a_release_is_packaged_tested_judged_and_staged(line: Line) -> None:
    said = line.run()
    assert line.ran == ["package", "test", "papers", "gate"]
    assert line.states() == {line.packaged.id: State.STAGED}
    assert set(said) == {"release", "archive", "seconds"}
    (record,) = operations.releases(line.settings)
    assert {"gate.json", provenance.SIGNATURE, "vm.xml"} <= set(record.evidence)
    releasing.check(line.settings)


def test_a_staged_release_is_neither_tested_nor_judged_again(line: Line) -> None:
    line.run()
    line.run()
    assert line.ran[4:] == ["package"]


def test_a_staged_release_whose_evidence_is_out_of_date_is_judged_again(line: Line) -> None:
    line.run()
    first, line.packaged = line.packaged, releases.release(2)
    line.run()
    operations.promote(line.settings, first.id, 100)
    line.ran.clear()
    line.run()
    assert line.ran == ["package", "test", "papers", "gate"]
    assert line.states()[line.packaged.id] is State.STAGED
    operations.promote(line.settings, line.packaged.id, 100)
    line.ran.clear()
    line.run()
    assert line.ran == ["package"]


def test_the_gate_of_an_id_records_its_verdict(line: Line) -> None:
    line.run()
    first, line.packaged = line.packaged, releases.release(2)
    line.run()
    operations.promote(line.settings, first.id, 100)
    second = line.packaged.id
    target = line.packaged.target
    assert operations.complaints(line.settings, second)

    def gate(release: str | None) -> Answer:
        return gating.run(line.settings, target, release=release, k=None, accel=None)

    line.refuses = ("upgrade",)
    assert "archive" not in (gate(second).summary or "")
    assert operations.complaints(line.settings, second)
    line.refuses = ()
    answer = gate(second)
    assert (answer.summary or "").endswith("; the archive has the new verdict")
    assert dict(answer.data)["recorded"] is True
    assert operations.complaints(line.settings, second) == ()
    releasing.check(line.settings)
    operations.promote(line.settings, second, 100)


def test_the_gate_of_packages_changes_nothing_in_the_archive(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate, "last", lambda *_: line.packaged)
    answer = gating.run(line.settings, line.packaged.target, release=None, k=None, accel=None)
    assert dict(answer.data)["recorded"] is False
    assert line.states() == {}


def test_another_run_does_not_touch_the_verdict_before_it_is_staged(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = operations.stage

    def later(settings: Settings, release: Release, files: Iterable[Path]) -> Record:
        # A selection of cases that another run judges now would be no evidence.
        with monkeypatch.context() as other:
            other.setattr(fs, "lock", functools.partial(fs.lock, timeout_s=0))
            with (
                pytest.raises(InfrastructureError, match="another run"),
                gating.judged(line.settings, line.packaged, k="install"),
            ):
                pass
        return stage(settings, release, files)

    monkeypatch.setattr(operations, "stage", later)
    line.run()
    assert line.states() == {line.packaged.id: State.STAGED}


def test_two_releases_at_once_judge_it_once(line: Line) -> None:
    with ThreadPoolExecutor(2) as pool:
        ran = [pool.submit(line.run) for _ in range(2)]
        states = {one.result()["release"]["state"] for one in ran}  # type: ignore[index]
    assert states == {State.STAGED}
    assert line.ran.count("gate") == 1


def test_nothing_is_judged_that_failed_its_tests(line: Line) -> None:
    line.tests_fail = True
    with pytest.raises(FailedTestsError):
        line.run()
    assert line.ran == ["package", "test"]
    assert line.states() == {}


def test_servers_see_nothing_of_a_refused_release(line: Line) -> None:
    line.run()
    stable = (line.settings.archive / "dists").resolve()
    before = {path: path.readlink() for path in stable.iterdir()}
    line.packaged, line.refuses = releases.release(2), ("upgrade",)
    with pytest.raises(GateError, match="refuses") as caught:
        line.run()
    assert "upgrade" in str(caught.value)
    assert line.states()[line.packaged.id] is State.REFUSED
    assert {path: path.readlink() for path in stable.iterdir()} == before
    line.refuses = ()
    line.run()
    assert line.states()[line.packaged.id] is State.STAGED


def test_without_a_key_nothing_is_built(line: Line, tmp_path: Path) -> None:
    line.settings = dataclasses.replace(line.settings, keys=tmp_path / "none")
    with pytest.raises(SigningError):
        line.run()
    assert line.ran == []


def test_nothing_is_built_unsigned_after_a_signed_release(line: Line) -> None:
    signature = line.settings.build / SIGNATURE

    def papers_(*made: object, sign: Callable[[bytes], bytes]) -> tuple[Path, ...]:
        signature.write_bytes(b"a signature")
        return (*line.papers(*made, sign=sign), signature)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(papers, "write", papers_)
        line.run()
    operations.promote(line.settings, line.packaged.id, 10)
    line.packaged = releases.release(2)
    with pytest.raises(SigningError, match="Secure Boot") as caught:
        line.run()
    assert "mok_certificate" in (caught.value.hint or "")
    assert line.ran[4:] == []
    operations.rollback(line.settings, releases.release(1).id, "the servers have no Secure Boot")
    line.run()
    assert line.states()[line.packaged.id] is State.STAGED


def test_other_bytes_are_refused_before_the_tests(line: Line) -> None:
    line.run()
    line.packaged = releases.release(salt="other")
    with pytest.raises(PoolError):
        line.run()
    assert line.ran[4:] == ["package"]


def test_a_damaged_archive_gets_no_release(line: Line) -> None:
    line.run()
    (record, *_) = (line.settings.archive / "releases").rglob("release.json")
    record.write_text(json.dumps({"format": 1}))
    with pytest.raises(Exception, match=r"release\.json"):
        line.run()
    assert line.ran[4:] == []

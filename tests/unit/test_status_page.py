"""The status page's files: what they say, and that strangers' text stays text."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kbuild.core.errors import KbuildError
from kbuild.watch import page, state, summary
from kbuild.watch.state import Attempt, Cause, Failure, Outcome, Status, Step
from kbuild.watch.summary import Condition, Tone
from tests.unit import statuses

STATUS = state.HOME


class Reader(HTMLParser):
    """The elements and the text that a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.text += data


def read(text: str) -> Reader:
    """Parse a page; its text has single spaces."""
    reader = Reader()
    reader.feed(text)
    reader.text = re.sub(r"\s+", " ", reader.text)
    return reader


def write(status: Status, root: Path) -> Reader:
    """Write a status, and read its page."""
    page.write(status, root)
    return read((root / STATUS / page.PAGE).read_text(encoding="utf-8"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log with a password, a terminal's colours and HTML."""
    path = tmp_path / "build.log"
    path.write_text(
        f"fetching {statuses.SECRET}\n"
        f"\x1b[1;31mfs/file.c: hunk 2 refused\x1b[0m\r\n{statuses.HOSTILE}\x00\u202eend\n"
    )
    return path


@pytest.mark.parametrize("name", statuses.DAYS)
def test_text_of_strangers_stays_text(name: str, tmp_path: Path, log: Path) -> None:
    found = write(statuses.DAYS[name](log), tmp_path)
    names = {element for element, _ in found.elements}
    assert not names & {"script", "img", "iframe", "object", "form", "input", "base"}
    for _, attributes in found.elements:
        assert not [one for one in attributes if one.startswith("on") or one == "style"]
        for one in ("href", "src"):
            assert not re.match(r"(?!data:)[a-z]+:|//", attributes.get(one) or "")


@pytest.mark.parametrize("name", statuses.DAYS)
def test_no_password_is_written(name: str, tmp_path: Path, log: Path) -> None:
    page.write(statuses.DAYS[name](log), tmp_path)
    for path in (tmp_path / STATUS).rglob("*"):
        if path.is_file():
            assert b"hunter2" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("name", "headline", "tone"),
    [
        ("good", "All 4 kernels are current", Tone.GOOD),
        ("empty", "No kernel is published yet", Tone.BUSY),
        ("working", "4 of 4 kernels have an update on the way", Tone.BUSY),
        ("by_hand", "2 of 3 kernels wait for a person's promotion", Tone.UNSURE),
        ("failed", "2 things need a person", Tone.BAD),
        ("unreachable", "1 of 2 kernels could not be checked", Tone.UNSURE),
        ("withdrawn", "1 of 2 kernels has only a withdrawn update", Tone.UNSURE),
        ("expired", "2 things need a person", Tone.BAD),
        ("many", "3 of 20 kernels have an update on the way", Tone.BUSY),
    ],
)
def test_the_first_line_says_what_the_reader_has_to_do(
    name: str, headline: str, tone: Tone, tmp_path: Path, log: Path
) -> None:
    answers = summary.summarize(statuses.DAYS[name](log))
    assert (answers.headline, answers.tone) == (headline, tone)
    assert headline in write(statuses.DAYS[name](log), tmp_path).text


def test_it_says_who_promotes_and_when(tmp_path: Path, log: Path) -> None:
    working = write(statuses.working(log), tmp_path).text
    assert "goes to 10 % not before 2026-12-01 13:05 UTC" in working
    assert "10 % of the servers get it; goes to 50 % in the next round" in working
    assert "a person does" not in working and "Nothing needs a person." in working
    by_hand = write(statuses.by_hand(log), tmp_path).text
    bookworm, trixie = "bookworm-cloud-amd64-6.1.192-3", "trixie-cloud-amd64-6.12.48-1"
    assert f"waits for a person: ./inv promote {bookworm}+cplayground1" in by_hand
    assert f"50 % of the servers get it; waits for a person: ./inv promote {trixie}+" in by_hand
    assert "gives bookworm cloud-amd64, trixie cloud-amd64 to more servers" in by_hand
    assert "stays there, because servers may have a newer release" in by_hand
    assert "Nothing needs a person" not in by_hand


def test_one_kernel_and_none_have_a_line_of_their_own() -> None:
    one = summary.summarize(statuses.status(statuses.current()))
    assert one.headline == "The kernel is current"
    assert summary.summarize(statuses.status()).headline == "No kernel is watched"


def test_a_failure_is_shown_with_its_advice_and_the_end_of_its_log(
    tmp_path: Path, log: Path
) -> None:
    text = write(statuses.failed(log), tmp_path).text
    assert "the patch export-symbols does not apply" in text
    assert "refresh the patch: docs/howto/add-a-patch.md" in text
    assert "fs/file.c: hunk 2 refused" in text and statuses.HOSTILE in text
    assert "\x1b" not in text and "\u202e" not in text and "\x00" not in text
    (copy,) = (tmp_path / STATUS / page.LOGS).iterdir()
    assert f'href="{page.LOGS}/{copy.name}"' in (tmp_path / STATUS / page.PAGE).read_text()
    assert "hunk 2 refused\n" in copy.read_text()
    # The verdict of the gate in the attempt that failed.
    assert "the upgraded server: hung" in text


def test_a_long_log_is_cut_and_no_password_is_left_in_the_cut_line(tmp_path: Path) -> None:
    log = tmp_path / "long.log"
    # The cut falls into the password's address.
    end = "x" * (page._COPIED - 30) + "\nthe end\n"
    log.write_text("begin\n" * 9 + f"{statuses.SECRET} " + end)
    page.write(statuses.failed(log), tmp_path)
    (copy,) = (tmp_path / STATUS / page.LOGS).iterdir()
    assert copy.stat().st_size < page._COPIED + 200
    assert "the end" in copy.read_text() and "begin" not in copy.read_text()
    assert "mirror.example" not in copy.read_text()


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "link"])
def test_a_log_that_is_no_file_of_ours_is_not_read(kind: str, tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    if kind == "directory":
        log.mkdir()
    elif kind == "fifo":
        os.mkfifo(log)
    elif kind == "link":
        log.symlink_to("/etc/passwd")
    text = write(statuses.failed(log), tmp_path).text
    assert "it cannot be read" in text and "root:" not in text


def test_logs_of_problems_that_are_over_go_and_other_files_stay(tmp_path: Path, log: Path) -> None:
    page.write(statuses.failed(log), tmp_path)
    logs = tmp_path / STATUS / page.LOGS
    assert [*logs.iterdir()]
    (logs / "notes.md").write_text("a person's")
    page.write(statuses.good(log), tmp_path)
    assert [one.name for one in logs.iterdir()] == ["notes.md"]


def test_the_files_agree_and_json_is_read_back(tmp_path: Path, log: Path) -> None:
    status = statuses.failed(log)
    page.write(status, tmp_path)
    assert state.read_status(tmp_path) == status
    names = {one.name for one in (tmp_path / STATUS).iterdir()}
    assert names == {page.PAGE, page.METRICS, state.STATUS, page.LOGS}
    assert all(one.stat().st_mode & 0o444 == 0o444 for one in (tmp_path / STATUS).iterdir())


def test_a_reader_never_sees_half_a_file(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error at any write leaves each file whole: the former or the new one."""
    page.write(statuses.good(log), tmp_path)
    before = {one: one.read_bytes() for one in (tmp_path / STATUS).iterdir() if one.is_file()}
    (tmp_path / "new").mkdir()
    page.write(statuses.failed(log), tmp_path / "new")
    real, calls = os.fsync, 0

    def broken(descriptor: int) -> None:
        nonlocal calls
        calls -= 1
        if calls == 0:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", broken)
    for at in range(1, 20):
        calls = at
        try:
            page.write(statuses.failed(log), tmp_path)
        except (OSError, KbuildError):
            pass
        else:
            break
        for path, content in before.items():
            new = (tmp_path / "new" / STATUS / path.name).read_bytes()
            assert path.read_bytes() in (content, new), (path, at)
        assert not [*(tmp_path / STATUS).glob(".*")], "a scratch file is left"
    else:
        pytest.fail("every write failed")
    assert at > 4


def test_it_says_when_it_is_out_of_date(tmp_path: Path, log: Path) -> None:
    text = write(statuses.good(log), tmp_path).text
    assert "Valid until 2026-12-01 18:05 UTC." in text
    assert "If it is later now, the rounds have stopped" in text
    running = write(statuses.working(log), tmp_path).text
    assert "Written during the round that began at 2026-11-30 17:43 UTC" in running


def attempt(step: Step, outcome: Outcome, status: int, subject: str, **given: float) -> Attempt:
    """Return an attempt that ended with an error."""
    failure = Failure("infrastructure" if status == 69 else "guest", "it failed", status)
    when = statuses.ago(**given or {"hours": 1})
    return Attempt(step, subject, "i", when, when, outcome, status, failure, base=statuses.NEW)


@pytest.mark.parametrize(
    ("outcome", "status", "hours", "person"),
    [
        (Outcome.REFUSED, 21, 1, True),
        (Outcome.UNAVAILABLE, 69, 1, False),
        (Outcome.UNAVAILABLE, 65, 1, False),
        (Outcome.UNAVAILABLE, 69, 25, True),
        (Outcome.UNAVAILABLE, 42, 1, True),  # no key comes back by itself
        (Outcome.INTERRUPTED, 143, 1, None),
        (Outcome.DONE, 0, 1, None),
    ],
)
def test_a_person_is_asked_for_verdicts_and_for_what_does_not_pass(
    outcome: Outcome, status: int, hours: int, person: bool | None
) -> None:
    name = "bookworm-cloud-amd64"
    attempts = (attempt(Step.RELEASE, outcome, status, name, hours=hours),)
    found = summary.summarize(statuses.status(statuses.behind(), attempts=attempts))
    assert [one.person for one in found.problems] == ([] if person is None else [person])
    wanted = Condition.BLOCKED if person else Condition.DUE
    assert found.kernels[0].condition is wanted


def test_a_failure_that_servers_no_longer_wait_for_is_no_problem() -> None:
    name = "bookworm-cloud-amd64"
    release = attempt(Step.RELEASE, Outcome.REFUSED, 21, name)
    promote = attempt(Step.PROMOTE, Outcome.REFUSED, 40, f"{name}-{statuses.OLD}+cplayground1")
    found = summary.summarize(statuses.status(statuses.current(), attempts=(release, promote)))
    assert not found.problems and found.tone is Tone.GOOD


def test_a_cause_lasts_until_it_is_over(log: Path) -> None:
    failed = statuses.failed(log)
    over = tuple(replace(one, over=statuses.ago(minutes=5)) for one in failed.causes)
    assert len(summary.summarize(replace(failed, causes=over, attempts=())).problems) == 0
    new = Cause("health trixie-cloud-amd64-x", "a server reports an oops", statuses.ago(days=2))
    found = summary.summarize(statuses.status(statuses.current(), causes=(new,)))
    assert [one.person for one in found.problems] == [True]


def test_it_says_that_telling_failed(tmp_path: Path, log: Path) -> None:
    failed = statuses.failed(log)
    causes = tuple(
        replace(one, untold={"webhook": f"{statuses.SECRET} answered 500"}) for one in failed.causes
    )
    text = write(replace(failed, causes=causes), tmp_path).text
    assert "Not told" in text and "***@mirror.example/debian answered 500" in text


def test_the_round_itself_may_have_failed(tmp_path: Path) -> None:
    broken = Failure("trust", "the archive is damaged", 65, do="./inv verify-archive")
    found = write(statuses.status(statuses.current(), error=broken), tmp_path).text
    assert "One thing needs a person" in found and "./inv verify-archive" in found


def test_kernels_that_are_not_current_come_first(log: Path) -> None:
    found = summary.summarize(statuses.many(log))
    assert [one.condition for one in found.kernels][:4] == [Condition.DUE] * 3 + [Condition.CURRENT]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 min"),
        (59 * 60, "59 min"),
        (3600, "1 h"),
        (7500, "2 h 05 min"),
        (24 * 3600, "1 day"),
        (76 * 3600, "3 days 4 h"),
    ],
)
def test_lengths_of_time_in_words(seconds: float, words: str) -> None:
    assert summary.span(seconds) == words

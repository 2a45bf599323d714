"""Define what a round of watching knows and remembers, and keep it in the archive's status/.

``status.json`` describes the archive against the distro after one round.  ``journal.json`` is the
memory between rounds: the last attempt of each step, and the causes that were told.  Times are
UTC, ISO 8601, whole seconds; an empty time means never, or not known.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from debian.debian_support import Version

from kbuild.archive import place
from kbuild.archive.evidence import Case
from kbuild.core import fs
from kbuild.core.errors import KbuildError, TrustError, UserError
from kbuild.core.model import Target

# Changes when an earlier version would misread one of the files.
FORMAT = 1
HOME = "status"
STATUS = "status.json"
JOURNAL = "journal.json"
DAMAGED = "journal.json.damaged"  # the last one that could not be read

T = TypeVar("T")


class Told(StrEnum):
    """The answer to a question about a kernel that is not built yet."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"  # not without a download; the reason is given


class Step(StrEnum):
    """The steps of a round; one attempt of each is remembered, for each target or release."""

    CHECK = "check"  # ask the mirror
    RELEASE = "release"  # build, test, judge, stage
    JUDGE = "judge"  # again by the gate, because servers have got another release since
    HEALTH = "health"  # ask about servers that have a release, by watch_health_command
    PROMOTE = "promote"
    SIGN = "sign"  # the indexes, before they expire; belongs to no target


class Outcome(StrEnum):
    """How an attempt ended."""

    RUNNING = "running"  # not ended; if no round runs, it was interrupted
    DONE = "done"
    UNAVAILABLE = "unavailable"  # the machine's, the mirror's fault (65, 69): tried again later
    REFUSED = "refused"  # a verdict on the inputs: not tried again until they change
    INTERRUPTED = "interrupted"  # a signal or a power cut: the next round goes on


@dataclass(frozen=True)
class Failure:
    """The fields of an error, as ``--json`` has them (docs/reference/json.md)."""

    kind: str
    what: str
    status: int  # exit status
    expected: str | None = None
    found: str | None = None
    log: str | None = None  # path
    do: str | None = None

    @classmethod
    def of(cls, error: KbuildError) -> Failure:
        """Return the fields of an error, which has no passwords."""
        return cls(
            kind=error.kind,
            what=error.what,
            status=error.exit_status,
            expected=error.expected,
            found=error.found,
            log=None if error.log is None else str(error.log),
            do=error.hint,
        )


@dataclass(frozen=True)
class Answer:
    """An answer with its reason; the reason of ``yes`` may be empty."""

    told: Told
    why: str = ""


UNKNOWN = Answer(Told.UNKNOWN, "not asked")


@dataclass(frozen=True)
class Ours:
    """A release of ours that servers can get."""

    id: str
    base: str  # the distro's version that it was built from: 6.1.192-2
    kernel: str  # what uname -r prints
    when: str  # of its present state
    percent: int = 0  # of the servers


@dataclass(frozen=True)
class Against:
    """One target against the distro; with ``error``, the mirror's fields are empty."""

    suite: str
    flavour: str
    variant: str
    asked: str  # when
    newest: str = ""  # the distro's newest version, 6.1.192-2
    abi: str = ""  # of that version
    uploaded: str = ""  # the date of its changelog entry
    promoted: Ours | None = None  # the newest that servers get
    staged: Ours | None = None  # the newest in staging only
    # Versions of the distro above the promoted one, newest first; all if none is promoted, but
    # then only the newest is named.
    missed: tuple[str, ...] = ()
    missed_since: str = ""  # the changelog date of the oldest of them
    lag_s: float | None = None  # seconds since then; 0 without one; None if not known
    cves: tuple[str, ...] = ()  # fixed in the versions missed
    changelog: Answer = UNKNOWN  # yes: uploaded, missed, lag_s and cves are known
    applies: Answer = UNKNOWN  # our patch, on the newest version
    fast: Answer = UNKNOWN  # the fast path: only the image is built, the distro's modules stay
    error: Failure | None = None  # the mirror could not be asked

    @property
    def target(self) -> Target:
        """Return the target."""
        return Target(self.suite, self.flavour, self.variant)

    @property
    def due(self) -> bool:
        """Return whether the distro has a version above all that we have staged or promoted."""
        return self._above(self.promoted) and self._above(self.staged)

    @property
    def behind(self) -> bool:
        """Return whether the distro has a version above the one that servers get."""
        return self._above(self.promoted)

    def _above(self, ours: Ours | None) -> bool:
        if not self.newest:
            return False
        return ours is None or Version(self.newest) > Version(ours.base)


@dataclass(frozen=True)
class Attempt:
    """The last attempt of a step, for a target, a release, or the whole archive."""

    step: Step
    subject: str  # <suite>-<target name>, a release's ID, or "archive"
    inputs: str  # digest of all that the outcome depends on
    began: str
    ended: str = ""
    outcome: Outcome = Outcome.RUNNING
    status: int = 0  # exit status
    error: Failure | None = None
    base: str = ""  # the distro's version that it was about
    release: str = ""  # the ID that it made or changed
    commit: str = ""  # of the checkout
    seconds: float = 0.0
    cases: tuple[Case, ...] = ()  # of the gate, if it came that far
    tries: int = 1  # in a row with the same inputs and a failure
    good_since: str = ""  # of HEALTH: no report was bad since then; empty: the last one was
    not_before: str = ""  # the next one, if it is unavailable
    # Other inputs that were refused since the last success, the newest last.
    refused: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Return what its successor replaces it by."""
        return f"{self.step} {self.subject}"

    @property
    def failed(self) -> bool:
        """Return whether it ended, and not well."""
        return self.outcome in (Outcome.UNAVAILABLE, Outcome.REFUSED)


@dataclass(frozen=True)
class Cause:
    """A reason to tell somebody: told once, and once more when it is over."""

    subject: str  # what it is about: "release bookworm-lab", as an attempt's key
    what: str  # one sentence
    since: str
    mark: str = ""  # differs if it is another cause for the same subject
    error: Failure | None = None
    over: str = ""  # when it ended; then it stays only until that is told
    told: tuple[str, ...] = ()  # the channels that know the present state: command, webhook
    untold: Mapping[str, str] = field(default_factory=dict)  # channel -> why telling failed
    # The channels that were told of a beginning for this subject, and of no end since.
    alarmed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Journal:
    """The memory between rounds."""

    attempts: tuple[Attempt, ...] = ()  # one for each key
    causes: tuple[Cause, ...] = ()  # those that last, or whose end is not told
    clock: str = ""  # when this machine's clock was last known to be right

    def attempt(self, step: Step, subject: str) -> Attempt | None:
        """Return the last attempt of a step; None if there was none."""
        found = (one for one in self.attempts if (one.step, one.subject) == (step, subject))
        return next(found, None)

    def with_attempt(self, attempt: Attempt) -> Journal:
        """Return the journal with an attempt in place of its predecessor."""
        others = (one for one in self.attempts if one.key != attempt.key)
        return dataclasses.replace(self, attempts=(*others, attempt))


@dataclass(frozen=True)
class Listed:
    """A release of the archive, with its verdict."""

    id: str
    suite: str
    flavour: str
    variant: str
    kernel: str  # what uname -r prints
    version: str  # of our packages
    base: str  # the distro's version
    state: str  # a value of kbuild.archive.release.State
    percent: int
    since: str  # of the state
    reason: str = ""  # of the state
    gate: str = ""  # when the gate judged it; empty without a readable verdict
    passed: bool = False  # by the gate
    cases: tuple[Case, ...] = ()


@dataclass(frozen=True)
class Next:
    """The next promotion of a release that not every server gets yet."""

    id: str  # of the release
    percent: int  # of the servers, afterwards; 0 if a person decides it
    at: str = ""  # not before; empty if watch_promote has no step for it, so a person does it


@dataclass(frozen=True)
class Status:
    """The archive against the distro, after one round."""

    began: str
    ended: str
    commit: str  # of the checkout; empty if it is not known
    version: str  # of this project
    archive: str  # path
    url: str = ""  # of the archive, for servers
    valid_until: Mapping[str, str] = field(default_factory=dict)  # name in dists/ -> time
    targets: tuple[Against, ...] = ()
    attempts: tuple[Attempt, ...] = ()  # as in the journal
    causes: tuple[Cause, ...] = ()  # as in the journal
    releases: tuple[Listed, ...] = ()  # by suite and target, the newest version first
    done: tuple[str, ...] = ()  # what this round did, one sentence each
    error: Failure | None = None  # the round itself could not go on
    key_expires: str = ""  # the key that signs; empty too if it never does
    mok_expires: str = ""  # the certificate for Secure Boot; empty without one
    promotions: tuple[Next, ...] = ()  # of the releases that can go to more servers


def read_status(root: Path) -> Status | None:
    """Read the last round's status below the archive ``root``; None if there is none.

    Raises UserError for a file of a newer version of this project, TrustError for a damaged one.
    """
    return _read(root / HOME / STATUS, Status)


def read_journal(root: Path) -> Journal:
    """Read the journal below the archive ``root``, empty if there is none; raises likewise."""
    return _read(root / HOME / JOURNAL, Journal) or Journal()


def write_status(root: Path, status: Status) -> None:
    """Write the status of a round by rename."""
    _write(root / HOME / STATUS, status)


def write_journal(root: Path, journal: Journal) -> None:
    """Write the journal by rename."""
    _write(root / HOME / JOURNAL, journal)


def _write(path: Path, value: Status | Journal) -> None:
    path.parent.mkdir(exist_ok=True)
    fs.write_json(path, {"format": FORMAT, **dataclasses.asdict(value)})


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        raw = json.loads(path.read_bytes())
        found = int(raw.pop("format"))
        if found > FORMAT:
            raise UserError(
                f"{path} was written by a newer version of this project",
                expected=f"format {FORMAT} or below",
                found=f"format {found}",
                hint=place.NEWER,
            )
        made = typing.cast(T, _decoded(raw, kind))
        if isinstance(made, Journal):
            _check_times(made)
        return made
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TrustError(
            f"{path} is damaged",
            expected=f"a {kind.__name__.lower()} as ./inv watch writes it",
            found=str(error) or type(error).__name__,
            hint="the next round makes it again",
        ) from error


def _check_times(journal: Journal) -> None:
    """Raise ValueError if a time cannot be compared with others."""
    times = [journal.clock]
    for one in journal.attempts:
        times += [one.began, one.ended, one.not_before, one.good_since]
    for cause in journal.causes:
        times += [cause.since, cause.over]
    for text in filter(None, times):
        if datetime.fromisoformat(text).tzinfo is None:
            raise ValueError(f"{text!r} has no time zone")


def _decoded(raw: Any, kind: Any) -> Any:  # noqa: ANN401
    """Return what JSON has as the dataclass, enum, tuple, mapping or plain value ``kind``."""
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        return None if raw is None else _decoded(raw, arguments[0])
    if origin is tuple:
        return tuple(_decoded(one, arguments[0]) for one in raw)
    if origin is not None and issubclass(origin, Mapping):
        return {str(name): _decoded(one, arguments[1]) for name, one in raw.items()}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        # A later version of this format may have more fields.
        known = {one.name for one in dataclasses.fields(kind)} & raw.keys()
        return typing.cast(Any, kind)(**{name: _decoded(raw[name], hints[name]) for name in known})
    if issubclass(kind, StrEnum):
        return kind(raw)
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if not isinstance(raw, kind):
        raise TypeError(f"{raw!r} is not {kind.__name__}")
    return raw

"""Do one unattended round: sign, ask, release, promote, notify, and write the status.

The journal is written before and after each attempt.  So a round that is killed at any moment
loses at most the attempt that it was in, and the next round knows that it was interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kbuild.archive import evidence, operations, place, records, snapshots
from kbuild.archive.release import Record
from kbuild.core import fs, progress, stamp
from kbuild.core.errors import (
    ClockError,
    DefectError,
    EvidenceError,
    FullDiskError,
    InfrastructureError,
    KbuildError,
    TrustError,
)
from kbuild.core.model import Settings, Target
from kbuild.ship import manifest, mok, versions
from kbuild.watch import asking, clock, deciding, inputs, state, telling
from kbuild.watch.deciding import Promotion
from kbuild.watch.state import Against, Cause, Failure, Journal, Listed, Status, Step
from kbuild.watch.telling import Tell

logger = logging.getLogger(__name__)

_LOCK = ".watch.lock"
_ARCHIVE = "archive"
_GB = 1_000_000_000


class HealthError(KbuildError):
    """The health command has a bad report about a release."""

    kind = "health"


class BusyError(InfrastructureError):
    """Another round is running."""


@dataclass(frozen=True)
class Work:
    """The actions of a round.  Tests give stand-ins for those that take minutes or a network."""

    now: Callable[[], datetime]  # UTC
    clocks: Callable[[], Iterable[tuple[str, datetime]]]  # of mirrors: the name, and its time
    ask: Callable[[Target, Sequence[Record], bool], Against]  # the last: fetch the source
    release: Callable[[Target], str]  # build, test, judge and stage; returns the ID
    judge: Callable[[str], None]  # a release of the archive again, and record its verdict
    promote: Callable[[str, int], object]
    key_expires: Callable[[], datetime | None]  # None: never; raises SigningError without a key
    refresh: Callable[[], object]  # finish what a killed task began; sign again if it is time
    healthy: Callable[[str], None] | None  # raises HealthError for a bad report; None: not asked
    free: Callable[[], int]  # bytes, where a build writes
    clean: Callable[[], object]  # remove what no run has used for long
    channels: Mapping[str, Tell]
    write: Callable[[Status, Path], None]  # the files of status/, below the archive


def run(settings: Settings, targets: Sequence[Target], work: Work, *, modules: str) -> Status:
    """Do one round for the targets, and return the status that was written.

    A failed step stops only what needs it; the status has its error.  Raises BusyError at once if
    another round runs, and what opening the archive raises.
    """
    with place.writing(settings) as root:
        # The first round makes the archive, as the first release does.
        (root / state.HOME).mkdir(exist_ok=True)
    with _alone(root / state.HOME / _LOCK):
        round_ = _Round(settings, tuple(targets), work, modules)
        round_.run()
        return round_.status


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(fs.lock(path, timeout_s=0))
        except InfrastructureError:
            raise BusyError(
                "another round of watch is running, so this one did nothing",
                found=f"{path} is locked",
                hint="wait for it: the status page shows what it does",
            ) from None
        yield


def foresee(
    settings: Settings, targets: Sequence[Target], work: Work, *, modules: str
) -> tuple[str, ...]:
    """Say what a round would do now, in sentences; changes nothing in the archive."""
    return tuple(_foreseen(settings, targets, work, modules))


def _foreseen(
    settings: Settings, targets: Sequence[Target], work: Work, modules: str
) -> Iterator[str]:
    journal, until, now = Journal(), None, work.now()
    with place.reading(settings) as root:
        if root is not None:
            journal = deciding.interrupted(state.read_journal(root), now)
            until = snapshots.expiry(root)
    try:
        _check_clock(settings, work, journal, now)
    except InfrastructureError as error:
        yield error.what
        return
    if until is not None and until - now < operations.RENEWAL:
        yield f"would sign the indexes again, which are valid until {until.isoformat()}"
    known = operations.releases(settings)
    code = inputs.code(settings.project)
    for target in targets:
        name = _name(target)
        mine = [one for one in known if _name(one.target) == name]
        found = work.ask(target, known, False)
        if found.error is not None:
            yield f"{name}: {found.error.what}"
        else:
            version = versions.package_version(found.newest, settings.revision)
            wanted = deciding.wanted(mine, version)
            digest = inputs.of_release(
                target,
                code=code,
                configured=inputs.configured(settings),
                version=version,
                modules=modules,
                records=mine,
            )
            last = journal.attempt(Step.RELEASE, name)
            why = wanted.blocked or deciding.obstacle(last, digest, now)
            if not wanted.due:
                yield f"{name}: {wanted.blocked or f'{version} is released'}"
            elif why:
                yield f"{name}: would not release {version}: {why}"
            else:
                yield f"{name}: would release {version}"
        for one in deciding.promotions(mine, settings.policy.promote, journal):
            when = "now" if one.at <= now else f"at {one.at.isoformat()}"
            yield f"{name}: would promote {one.record.id} to {one.percent} % {when}"


class _Round:
    """One round, while its lock is held: what is known so far, and the journal."""

    def __init__(
        self, settings: Settings, targets: tuple[Target, ...], work: Work, modules: str
    ) -> None:
        self.settings = settings
        self.targets = targets
        self.work = work
        self.modules = modules
        self.root = settings.archive
        before = _last_status(self.root)
        self.blind = False  # without the journal, which stays as it is: only sign and tell
        self.error: Failure | None = None  # the first one that belongs to no attempt
        self.journal = deciding.interrupted(self._remembered(before), work.now())
        self.found = {_name(one.target): one for one in before.targets} if before else {}
        self.due: dict[str, bool] = {}  # of the targets whose mirror answered
        self.keys: dict[str, tuple[Cause, ...]] = {}  # of those that were looked at: its causes
        self.status = Status(
            began=work.now().isoformat(),
            ended="",
            commit=manifest.project_commit(settings.project) or "",
            version=_version(settings.project),
            archive=str(self.root),
            url=settings.archive_url,
            error=self.error,
        )

    def _remembered(self, before: Status | None) -> Journal:
        """Return the journal; a damaged one gets another name, and an empty one takes its place."""
        path = self.root / state.HOME / state.JOURNAL
        try:
            try:
                return state.read_journal(self.root)
            except TrustError as error:
                logger.error("%s: %s", error.what, error.found)
                fs.rename(path, path.with_name(state.DAMAGED))
                return Journal()
        except Exception as error:
            # Such as a newer format.  The last status knows who was told.
            self.blind, self.error = True, self._failure(error)
            return Journal(causes=before.causes if before else ())

    @functools.cached_property
    def code(self) -> str:
        """The digest of the code that makes and judges a release."""
        return inputs.code(self.settings.project)

    def run(self) -> None:
        """Do the round."""
        try:
            self._save()
            # Nothing can be published without signatures, so each release would fail likewise.
            signed = self._may(Step.SIGN, _ARCHIVE, "") and self._attempt(
                Step.SIGN, _ARCHIVE, "", self._sign
            )
            if signed and not self.blind:
                for target in self.targets:
                    self._check(target)
                # Before the releases, which take hours.
                for target in self.targets:
                    self._promote(target)
                for target in self.targets:
                    self._release(target)
        except Exception as error:
            self._fail(self._failure(error))
        except (KeyboardInterrupt, SystemExit):
            # The page must not go on to say that something is being built.  Nobody is told.
            now = self.work.now()
            self.journal = deciding.interrupted(self.journal, now)
            self.status = dataclasses.replace(self.status, ended=now.isoformat())
            self._publish()
            raise
        self._finish()

    def _fail(self, failure: Failure) -> None:
        """Record an error that belongs to no attempt; the first one stays."""
        self.status = dataclasses.replace(self.status, error=self.status.error or failure)

    def _failure(self, error: Exception) -> Failure:
        """Log an error, and return its fields."""
        known = error
        if not isinstance(known, KbuildError):
            known = DefectError.of(error, (self.settings.build, self.settings.cache, self.root))
        if isinstance(known, DefectError):
            logger.error("the round: %s", known.what, exc_info=error)
        else:
            logger.error("%s error: %s", known.kind, known.what)
        return Failure.of(known)

    def _sign(self) -> None:
        """Sign what must be signed now, by a clock that is right; the later steps rely on it."""
        now = self.work.now()
        try:
            _check_clock(self.settings, self.work, self.journal, now)
        except ClockError:
            # From now on, only a mirror can say that it is right.
            self.journal = dataclasses.replace(self.journal, clock="")
            raise
        self.journal = dataclasses.replace(self.journal, clock=now.isoformat())
        self._look_at_the_key(now)
        self._look_at_the_mok(now)
        self.work.refresh()

    def _look_at_the_key(self, now: datetime) -> None:
        """Learn when the key expires; without it, what is known of it stays."""
        try:
            expires = self.work.key_expires()
        except KbuildError as error:
            logger.warning("it is not known when the key expires: %s", error.what)
            return
        self.keys[deciding.KEY] = deciding.of_key(expires, now)
        text = expires.isoformat() if expires else ""
        self.status = dataclasses.replace(self.status, key_expires=text)

    def _look_at_the_mok(self, now: datetime) -> None:
        """Learn whether the key for Secure Boot signs, and for how long, if there is to be one."""
        expires, failure = None, None
        try:
            for one in mok.check(self.settings)[:1]:
                expires = one.expires
                mok.check_valid(one, now=now)
        except KbuildError as error:
            failure = Failure.of(error)
        self.keys[deciding.MOK] = deciding.of_mok(expires, failure, now)
        text = expires.isoformat() if expires else ""
        self.status = dataclasses.replace(self.status, mok_expires=text)

    # The mirror.

    def _check(self, target: Target) -> None:
        name = _name(target)
        if not self._may(Step.CHECK, name, ""):
            return

        def ask() -> None:
            found = self.work.ask(target, self._records(), False)
            if found.error is None or name not in self.found or self.found[name].error:
                self.found[name] = found
            else:
                # The distro's last answer is worth more than none.
                self.found[name] = dataclasses.replace(self.found[name], error=found.error)
            if found.error is not None:
                raise _ToldError(found.error)
            version = versions.package_version(found.newest, self.settings.revision)
            self.due[name] = deciding.wanted(self._of(target), version).due

        self._attempt(Step.CHECK, name, "", ask)

    # Releases.

    def _release(self, target: Target) -> None:
        name, found = _name(target), self.found.get(_name(target))
        if name not in self.due or found is None:
            return
        version = versions.package_version(found.newest, self.settings.revision)
        wanted = deciding.wanted(self._of(target), version)
        if wanted.blocked:
            self._say(f"{name}: {wanted.blocked}")
        if not wanted.due:
            return
        digest = inputs.of_release(
            target,
            code=self.code,
            configured=inputs.configured(self.settings),
            version=version,
            modules=self.modules,
            records=self._of(target),
        )
        if not self._may(Step.RELEASE, name, digest):
            return
        self._attempt(
            Step.RELEASE,
            name,
            digest,
            lambda: self._build(target),
            base=found.newest,
            release=f"{name}-{version}",
        )

    def _build(self, target: Target) -> None:
        self._make_room()
        # The source is needed now, and tells about the patch before anything is compiled.
        found = self.work.ask(target, self._records(), True)
        if found.error is None:
            self.found[_name(target)] = found
        id = self.work.release(target)
        self._say(f"staged {id}")

    def _make_room(self) -> None:
        needed = self.settings.policy.free_gb * _GB
        if self.work.free() >= needed:
            return
        self.work.clean()
        self._say(f"removed what no run used for {self.settings.policy.unused_days} days")
        if (free := self.work.free()) < needed:
            raise FullDiskError(
                "there is too little room for a build",
                expected=f"{progress.size(needed)} free in build_dir, cache_dir and archive_dir:"
                " watch_free_gb",
                found=progress.size(free),
                hint="free some space; './inv doctor' shows what is used",
            )

    # Promotions.

    def _promote(self, target: Target) -> None:
        """Do the next step of one release of a target."""
        records_, steps = self._of(target), self.settings.policy.promote
        healthy = {
            one.record.id: self._is_healthy(one)
            for one in deciding.promotions(records_, steps, self.journal)
        }
        # The reports of now may have moved the times.
        for one in deciding.promotions(records_, steps, self.journal):
            if self.work.now() < one.at:
                logger.info("%s goes to %d %% at %s", one.record.id, one.percent, one.at)
            elif healthy[one.record.id] and self._step(one):
                # Servers take the newest; an older one may follow in the next round.
                break

    def _is_healthy(self, one: Promotion) -> bool:
        ask, id = self.work.healthy, one.record.id
        if ask is None:
            return True
        last = self.journal.attempt(Step.HEALTH, id)
        done = self._attempt(Step.HEALTH, id, "", lambda: ask(id), release=id)
        made = self.journal.attempt(Step.HEALTH, id)
        assert made is not None
        since = deciding.good_since(last, made.outcome, one.since, self.work.now())
        self.journal = self.journal.with_attempt(dataclasses.replace(made, good_since=since))
        self._save()
        return done

    def _step(self, one: Promotion) -> bool:
        id, percent = one.record.id, one.percent
        wrong = operations.complaints(self.settings, id)
        if wrong:
            digest = stamp.digest(
                {
                    **one.inputs,
                    "code": self.code,
                    "configured": inputs.configured(self.settings),
                    "wrong": "\n".join(wrong),
                }
            )
            if not self._may(Step.JUDGE, id, digest):
                return False
            if not self._attempt(Step.JUDGE, id, digest, lambda: self._judge(id), release=id):
                return False
        digest = stamp.digest(one.inputs)
        if not self._may(Step.PROMOTE, id, digest):
            return False
        done = self._attempt(
            Step.PROMOTE, id, digest, lambda: self.work.promote(id, percent), release=id
        )
        if done:
            self._say(f"promoted {id} to {percent} %")
        return done

    def _judge(self, id: str) -> None:
        self._make_room()
        self.work.judge(id)
        self._say(f"judged {id} again")

    # The journal.

    def _may(self, step: Step, subject: str, digest: str) -> bool:
        last = self.journal.attempt(step, subject)
        why = deciding.obstacle(last, digest, self.work.now())
        if why:
            logger.info("%s %s: %s", step.value, subject, why)
        return why is None

    def _attempt(
        self,
        step: Step,
        subject: str,
        digest: str,
        act: Callable[[], object],
        *,
        base: str = "",
        release: str = "",
    ) -> bool:
        """Do a step, and record how it ended; return whether it succeeded.

        A signal leaves it running in the journal, as a kill does; the next round understands that.
        """
        now = self.work.now
        attempt = deciding.begin(
            *(self.journal, step, subject, digest, now()),
            base=base,
            release=release,
            commit=self.status.commit,
        )
        self.journal = self.journal.with_attempt(attempt)
        self._save()
        if step in (Step.RELEASE, Step.JUDGE):
            self._publish()
        failure: Failure | None = None
        try:
            act()
        except _ToldError as told:
            failure = told.failure
        except Exception as error:
            failure = self._failure(error)
        ended = deciding.end(attempt, now(), failure)
        if failure is not None:
            logger.error("%s %s has failed: %s", step.value, subject, failure.what)
            gate = self._gate(attempt.release) if step is Step.RELEASE else None
            # An earlier attempt may have left one.
            if gate is not None and _moment(gate.when) >= _moment(attempt.began):
                ended = dataclasses.replace(ended, cases=gate.cases)
        self.journal = self.journal.with_attempt(ended)
        self._save()
        return failure is None

    def _save(self) -> None:
        if not self.blind:
            self._kept(lambda: state.write_journal(self.root, self.journal))

    def _kept(self, write: Callable[[], None]) -> bool:
        """Write to status/, and go on if that fails: the archive's disk may be full.

        The memory is then kept until the end of the round, so that somebody is still told.
        """
        try:
            write()
        except Exception as error:
            self._fail(self._failure(error))
        else:
            return True
        return False

    # The status.

    def _finish(self) -> None:
        names = {_name(one) for one in self.targets}
        now = self.work.now()
        known: tuple[Record, ...] | None = None
        try:
            known = self._records()
        except Exception as error:
            self._fail(self._failure(error))
        self.journal = deciding.relevant(self.journal, names, self.due, known, now)
        before = self.journal.causes
        found = deciding.causes(self.journal.attempts, now, before)
        for subject in (deciding.KEY, deciding.MOK):
            same = tuple(one for one in before if one.subject == subject and not one.over)
            found += self.keys.get(subject, same)
        found += deciding.of_round(self.status.error, now)
        damaged = self.root / state.HOME / state.DAMAGED
        found += deciding.of_journal(damaged, now) if damaged.exists() else ()
        if self.blind:
            # The attempts that would say whether these are over are not known.
            seen = {one.subject for one in found}
            found += tuple(one for one in before if not one.over and one.subject not in seen)
        causes = deciding.compare(before, found, now)
        # Known before they are told: a kill in between tells twice, and never not at all.
        self.journal = dataclasses.replace(self.journal, causes=causes)
        self._save()
        told = telling.tell(causes, self.work.channels, self.root, self.settings.archive_url)
        self.journal = dataclasses.replace(self.journal, causes=told)
        self._save()
        self.status = dataclasses.replace(self.status, ended=self.work.now().isoformat())
        self._publish()

    def _publish(self) -> None:
        """Write the status as it is now; a round that is still running has no end."""
        known: tuple[Record, ...] = ()
        listed: tuple[Listed, ...] = ()
        until: Mapping[str, datetime] = {}
        try:
            with place.reading(self.settings) as root:
                until = snapshots.valid_until(root or self.root)
            known = self._records()
            listed = tuple(map(self._listed, known))
        except Exception as error:
            self._fail(self._failure(error))
        self.status = dataclasses.replace(
            self.status,
            valid_until={name: when.isoformat() for name, when in until.items()},
            targets=tuple(
                _with_ours(self.found[_name(one)], known)
                for one in self.targets
                if _name(one) in self.found
            ),
            attempts=self.journal.attempts,
            causes=self.journal.causes,
            releases=listed,
            promotions=tuple(
                one
                for target in self.targets
                for one in deciding.next_steps(
                    [record for record in known if _name(record.target) == _name(target)],
                    self.settings.policy.promote,
                    self.journal,
                )
            ),
        )
        if not self._kept(lambda: self.work.write(self.status, self.root)):
            # A page that cannot be made must not hide what the round did.
            self._kept(lambda: state.write_status(self.root, self.status))

    def _listed(self, one: Record) -> Listed:
        gate = self._gate(one.id)
        last = one.history[-1] if one.history else None
        return Listed(
            id=one.id,
            suite=one.suite,
            flavour=one.flavour,
            variant=one.variant,
            kernel=one.kernel,
            version=one.version,
            base=versions.base_version(one.version),
            state=one.state.value,
            percent=one.percent,
            since=last.when if last else "",
            reason=last.reason if last else "",
            gate=gate.when if gate else "",
            passed=gate is not None and gate.passed,
            cases=gate.cases if gate else (),
        )

    def _gate(self, id: str) -> evidence.Gate | None:
        """Return the gate's verdict on a release, if there is a readable one."""
        try:
            return evidence.read(records.home(self.root, id) / evidence.GATE)
        except EvidenceError:
            return None

    def _records(self) -> tuple[Record, ...]:
        return operations.releases(self.settings)

    def _of(self, target: Target) -> list[Record]:
        return [one for one in self._records() if _name(one.target) == _name(target)]

    def _say(self, text: str) -> None:
        logger.info("%s", text)
        self.status = dataclasses.replace(self.status, done=(*self.status.done, text))


def _check_clock(settings: Settings, work: Work, journal: Journal, now: datetime) -> None:
    with place.reading(settings) as root:
        until = snapshots.expiry(root) if root else None
    clock.check(now, work.clocks(), journal.clock, until)


class _ToldError(Exception):
    """A failure that is recorded as its fields only."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.what)
        self.failure = failure


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _name(target: Target) -> str:
    """Return the name of a target, as releases' IDs begin."""
    return f"{target.suite}-{target.name}"


def _with_ours(found: Against, known: Sequence[Record]) -> Against:
    """Return a comparison with our releases as they are now."""
    promoted, staged = asking.ours(found.target, known)
    return dataclasses.replace(found, promoted=promoted, staged=staged)


def _last_status(root: Path) -> Status | None:
    """Return the last round's status; None if there is none, or none that can be read."""
    try:
        return state.read_status(root)
    except (KbuildError, OSError) as error:
        logger.warning("the last status cannot be read: %s", error)
        return None


def _version(project: Path) -> str:
    """Return the version of this project."""
    raw = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    return str(raw["project"]["version"])

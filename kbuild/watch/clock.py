"""Check this machine's clock before a round signs anything.

An index that is signed in the future is refused by every server until then.  The clocks of the
mirrors are independent of ours, and each of their answers has the time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from kbuild.core import suites
from kbuild.core.errors import ClockError, InfrastructureError, UserError
from kbuild.core.model import Settings, Target
from kbuild.core.secrets import redact
from kbuild.fetch import download, mirror
from kbuild.fetch.download import Network, PassingError, UnavailableError

logger = logging.getLogger(__name__)

# Our clock and a mirror's may differ by so much.
_MOST = timedelta(hours=1)
# Without a mirror, our clock is believed if it was right so short a time ago.
_RECENT = timedelta(days=10)
# With less than this left, indexes are signed although nothing confirms the clock.  Only a jump of
# 27 to 30 days would look the same.
_SHORT = timedelta(days=3)


def check(
    now: datetime, mirrors: Iterable[tuple[str, datetime]], right: str, until: datetime | None
) -> None:
    """Raise an error if nothing may be signed at ``now``, the time by our clock.

    ``mirrors`` yields the names of mirrors and their times.  One that agrees with ours is enough.
    ``right`` is when this check last passed, ``until`` the end of the indexes' validity; both may
    be empty.  Raises ClockError for a wrong clock, and InfrastructureError for a doubtful one that
    no mirror confirms.
    """
    other: tuple[str, datetime] | None = None
    for name, told in mirrors:
        if abs(told - now) <= _MOST:
            return
        other = other or (name, told)
    if other is not None:
        raise ClockError(
            "this machine's clock is wrong, so nothing is signed",
            expected=f"{_text(other[1])}, as the mirror {other[0]} says, or one hour around it",
            found=_text(now),
            hint="set the clock (timedatectl), and let it be kept right by NTP",
        )
    if until is None:
        return
    recent = bool(right) and timedelta() <= now - datetime.fromisoformat(right) < _RECENT
    if not recent and not timedelta() < until - now < _SHORT:
        raise InfrastructureError(
            "nothing is signed, because no mirror confirms this machine's clock",
            expected=f"a mirror's answer, or a round within the last {_RECENT.days} days",
            found=f"{_text(now)}; the clock was last known to be right on "
            f"{_text(datetime.fromisoformat(right)) if right else 'no day'}",
            hint="check the clock (timedatectl) and the network; the next round asks again",
        )


def of_mirrors(
    settings: Settings, targets: Iterable[Target], network: Network | None = None
) -> Iterator[tuple[str, datetime]]:
    """Yield each mirror that answers, with the time of its answer; each is asked when it is due."""
    if settings.offline:
        return
    try:
        found = mirror.find(settings)
    except UserError as error:
        logger.info("no mirror tells the time: %s", error.what)
        return
    network = network or download.machine()
    answered = set()
    for suite in dict.fromkeys(one.suite for one in targets):
        for dist, bases in mirror.kernel_dists(suites.suite(suite), found):
            for base in bases:
                url = f"{base}/dists/{dist}/InRelease"
                told = None if base in answered else _time(network, url)
                if told is not None:
                    answered.add(base)
                    yield redact(base), told


def _time(network: Network, url: str) -> datetime | None:
    try:
        # A cache on the way must ask its mirror.
        with network.open(url, {"Cache-Control": "no-cache"}) as answer:
            told = parsedate_to_datetime(answer.headers["Date"])
            age = timedelta(seconds=int(answer.headers.get("Age", 0)))
        return told.replace(tzinfo=told.tzinfo or UTC) + age
    except (PassingError, UnavailableError, LookupError, ValueError, OverflowError) as error:
        logger.info("%s tells no time: %s", redact(url), error)
        return None


def _text(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"

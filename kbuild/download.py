"""Files over HTTP: resumed, retried, taken from several mirrors, and checked before they count.

The cache is content-addressed: ``files/<sha256>/<name>`` appears by rename, after size
and digest were found to be the expected ones.  What is still on its way lies in
``partial/<sha256>.part``, so that a later run goes on where a broken one stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import requests
import tenacity
import urllib3

logger = logging.getLogger(__name__)

_CHUNK = 1 << 18
# Answers after which the same request may well succeed a little later.
_PASSING = {408, 425, 429, 500, 502, 503, 504}
# What a document without a known digest may weigh; Debian's largest InRelease has 0.2 MB.
_DOCUMENT_LIMIT = 16 << 20


def _session() -> requests.Session:
    session = requests.Session()
    # A transfer encoding would make lengths and ranges speak of other bytes than the index.
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "cplayground-kernel"})
    return session


@dataclass(frozen=True)
class Network:
    """How the network is used: one connection pool, and the patience shown to it.

    The proxy variables of the environment hold, as they do for apt.
    """

    session: requests.Session = field(default_factory=_session)
    attempts: int = 5  # in a row without a byte gained
    connect_timeout_s: float = 15.0
    read_timeout_s: float = 60.0
    sleep: Callable[[float], None] = time.sleep

    def open(self, url: str, headers: dict[str, str] | None = None) -> requests.Response:
        """Begin one GET; the body is not read yet.  Raises PassingError or UnavailableError."""
        try:
            response = self.session.get(
                url,
                headers=headers,
                stream=True,
                timeout=(self.connect_timeout_s, self.read_timeout_s),
            )
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.MissingSchema,
            requests.exceptions.TooManyRedirects,
        ) as error:
            raise UnavailableError(str(error)) from error
        except requests.RequestException as error:
            raise PassingError(_cause(error)) from error
        if response.ok or response.status_code == 304:
            return response
        response.close()
        answer = f"{response.status_code} {response.reason}"
        if response.status_code in _PASSING:
            raise PassingError(answer)
        # 416 says that the range asked for does not exist: the caller starts anew.
        raise UnavailableError(answer, status=response.status_code)

    def retry(self, url: str, *, stop: tenacity.stop.stop_base | None = None) -> tenacity.Retrying:
        """Return the loop over passing failures: waits of 1, 2, 4, ... 30 s, each with jitter."""

        def say(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            wait_s = state.next_action.sleep if state.next_action else 0.0
            logger.warning("%s: %s; again in %.1f s", url, error, wait_s)

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(PassingError),
            stop=stop or tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_exponential_jitter(initial=1, max=30, jitter=1),
            sleep=self.sleep,
            before_sleep=say,
            reraise=True,
        )

    def has(self, url: str) -> str | None:
        """Ask whether a document is there; return None, or the reason why it cannot be had."""
        try:
            for attempt in self.retry(url):
                with attempt:
                    self.open(url).close()
        except (PassingError, UnavailableError) as error:
            return str(error)
        return None


class PassingError(Exception):
    """A failure of the network or a server that may be gone at the next attempt."""


class UnavailableError(Exception):
    """This server does not have it; asking again does not help, another mirror may."""

    def __init__(self, what: str, *, status: int | None = None) -> None:
        self.status = status
        super().__init__(what)


def _cause(error: BaseException) -> str:
    """Say what failed without the layers of wrapping that the libraries put around it."""
    text = str(error)
    for inner in (error.__cause__, error.__context__):
        if inner is not None and isinstance(inner, urllib3.exceptions.MaxRetryError):
            text = str(inner.reason)
    return text.rpartition(": ")[2] or type(error).__name__

"""Download files over HTTP: resumed, retried, from several mirrors, and verified before use.

The cache is content-addressed: ``files/<sha256>/<name>`` appears by rename once size and digest
are verified.  An incomplete file stays in ``partial/<sha256>.part``, so that a later run resumes
it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
import tenacity
import urllib3

from kbuild.core import fs, progress
from kbuild.core.errors import InfrastructureError, TrustError, naming
from kbuild.core.model import Settings
from kbuild.core.secrets import redact
from kbuild.fetch import access
from kbuild.fetch.access import Access, bare

logger = logging.getLogger(__name__)

_CHUNK = 1 << 16
# After these answers, the same request may succeed a little later.
_PASSING = {408, 425, 429, 500, 502, 503, 504}
# These answers mean that the file does not exist.
_GONE = {404, 410}
_REDIRECTS = 5


def _session() -> requests.Session:
    session = requests.Session()
    # Access provides proxies, certificates and logins.
    session.trust_env = False
    # With a transfer encoding, lengths and ranges would not count the index's bytes.
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "cplayground-kernel"})
    return session


@dataclass(frozen=True)
class Network:
    """Settings for the use of the network: one connection pool, and limits of time and rate."""

    access: Access = field(default_factory=Access)
    session: requests.Session = field(default_factory=_session)
    attempts: int = 5  # in a row that gain no byte
    connect_timeout_s: float = 15.0
    read_timeout_s: float = 60.0  # of silence, and for all headers of an answer
    floor: float = 1000.0  # bytes per second; a slower mirror is left
    window_s: float = 30.0  # over which that rate is measured
    index_timeout_s: float = 300.0  # for all indexes of a dist together
    pace: float = 20_000.0  # bytes per second over a whole file, pauses included
    sleep: Callable[[float], None] = time.sleep

    def deadline_s(self, size: int) -> float:
        """Return how long one mirror may take for a file of ``size`` bytes."""
        return 10 * self.window_s + size / self.pace

    def open(self, url: str, headers: dict[str, str] | None = None) -> requests.Response:
        """Begin one GET without its body.  Raises PassingError or UnavailableError."""
        first = url
        for _ in range(_REDIRECTS):
            proxy = through = ""
            try:
                proxy = self.access.proxy(url)
                through = f" (through the proxy {redact(proxy)})" if proxy else ""
                response = self._get(url, headers, proxy)
                target = self.session.get_redirect_target(response)
                if target is not None:
                    response.close()
                    url = _redirected(url, target)
                    continue
            except requests.exceptions.ProxyError as error:
                raise PassingError(f"the proxy {redact(proxy)} failed: {_cause(error)}") from error
            except ValueError as error:
                # requests, urllib3, urlsplit and the idna codec raise these for a malformed URL.
                raise UnavailableError(f"not a URL: {redact(str(error))}{through}") from error
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                raise PassingError(_cause(error) + through) from error
            return self._checked(response, through)
        raise UnavailableError(f"more than {_REDIRECTS} redirects from {redact(first)}")

    def _get(self, url: str, headers: dict[str, str] | None, proxy: str) -> requests.Response:
        request = requests.Request("GET", bare(url), headers=headers, auth=self.access.login(url))
        prepared = self.session.prepare_request(request)

        # The session's own send() would read a redirect's body, however long it is.
        def get() -> requests.Response:
            return self.session.get_adapter(bare(url)).send(
                prepared,
                stream=True,
                timeout=(self.connect_timeout_s, self.read_timeout_s),
                verify=self.access.certificates,
                proxies={"http": proxy, "https": proxy},
            )

        return _within(self.connect_timeout_s + self.read_timeout_s, get)

    def _checked(self, response: requests.Response, through: str) -> requests.Response:
        status = response.status_code
        if status in (200, 206):
            return response
        response.close()
        answer = f"{status} {response.reason}{through}"
        if status in _PASSING:
            raise PassingError(answer)
        if status == 407:
            raise UnavailableError(f"the proxy refused: {answer}")
        # 416 means that the range does not exist; the caller starts again from the beginning.
        raise UnavailableError(answer, status=status)

    def retry(
        self, url: str, *, stop: Callable[[tenacity.RetryCallState], bool] | None = None
    ) -> tenacity.Retrying:
        """Return a loop that retries passing failures: waits of 1, 2, 4, ... 30 s, with jitter."""

        def say(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            wait_s = state.next_action.sleep if state.next_action else 0.0
            logger.warning("%s: %s; again in %.1f s", redact(url), error, wait_s)

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(PassingError),
            stop=stop or tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_exponential_jitter(initial=1, max=30, jitter=1),
            sleep=self.sleep,
            before_sleep=say,
            reraise=True,
        )


@dataclass(frozen=True)
class Wanted:
    """A file as a signed index describes it; any other content under its name is refused."""

    what: str  # its name in messages: the path in the archive
    name: str  # the file's name in the cache
    size: int  # bytes
    sha256: str


def machine(apt: Path = access.APT) -> Network:
    """Return the network settings that this machine's apt uses."""
    return Network(access.of(apt))


class GoneError(InfrastructureError):
    """Every mirror answered that the file does not exist: it has left the pool."""


class PassingError(Exception):
    """A failure of the network or a server that the next attempt may not meet."""


class UnavailableError(Exception):
    """This server cannot deliver the file; another mirror may, but another attempt will not."""

    def __init__(self, what: str, *, status: int | None = None) -> None:
        self.status = status
        super().__init__(what)


def _cause(error: BaseException) -> str:
    """Describe what failed, without the layers of exceptions that the libraries add."""
    text = str(error)
    for inner in (error.__cause__, error.__context__):
        if inner is not None and isinstance(inner, urllib3.exceptions.MaxRetryError):
            reason = inner.reason
            if isinstance(reason, urllib3.exceptions.ProxyError):
                reason = reason.original_error
            text = str(reason)
    return redact(text.rpartition(": ")[2]) or type(error).__name__


def _redirected(url: str, target: str) -> str:
    """Return a redirect's target; raise ValueError for one that apt would not follow either."""
    there = urljoin(url, target)
    allowed = ("https",) if urlsplit(url).scheme == "https" else ("http", "https")
    if urlsplit(there).scheme not in allowed:
        raise ValueError(f"{url} redirects to {there}, which is not followed")
    return there


def _within(seconds: float, get: Callable[[], requests.Response]) -> requests.Response:
    """Return the result of ``get``; raise PassingError if it takes longer than ``seconds``.

    The library's own timeouts apply to each read from the socket, so they never end headers that
    arrive byte by byte.
    """
    results: list[requests.Response | Exception] = []

    def work() -> None:
        try:
            results.append(get())
        except Exception as error:
            results.append(error)

    # A daemon thread, so that a run does not wait at its end for a server it has given up.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not results:
        raise PassingError(f"no whole answer in {seconds:g} s")
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def place(settings: Settings, wanted: Wanted) -> Path:
    """Return the path of a file in the cache, whether it exists or not."""
    return settings.cache / "files" / wanted.sha256 / wanted.name


def _discard_damaged(path: Path, wanted: Wanted) -> None:
    if not path.exists():
        return
    size = path.stat().st_size
    found = fs.sha256_file(path) if size == wanted.size else "not computed"
    logger.warning(
        "%s is damaged and was removed: expected %d bytes, sha256 %s; found %d bytes, sha256 %s",
        path,
        wanted.size,
        wanted.sha256,
        size,
        found,
    )
    path.unlink(missing_ok=True)


def fetch(settings: Settings, wanted: Wanted, urls: Sequence[str], network: Network) -> Path:
    """Return a file from the cache, or from the first URL that has the right content.

    A URL with wrong content is left with a warning, and its content is deleted.  Raises
    TrustError if that happened and no other URL had the file, and GoneError if no mirror has it.
    Raises InfrastructureError if no mirror could deliver it, or if the run is offline and the
    cache does not have it.
    """
    path = place(settings, wanted)
    if _matches(wanted, path):
        fs.mark_used(path.parent)
        return path
    with fs.lock(settings.cache / "locks" / f"{wanted.sha256}.lock"):
        # Another run may have fetched it while this one waited.
        if _matches(wanted, path):
            return path
        _discard_damaged(path, wanted)
        if settings.offline:
            raise InfrastructureError(
                f"{wanted.what} is not in the cache, and this run is offline",
                expected=str(path),
                hint="run './inv fetch' with the same options, without --offline",
            )
        part = settings.cache / "partial" / f"{wanted.sha256}.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        refused: TrustError | None = None
        reasons = []
        gone = bool(urls)
        for url in urls:
            try:
                _from(network, url, wanted, part)
            except TrustError as error:
                logger.warning("%s", error)
                refused = refused or error
            except (PassingError, UnavailableError) as error:
                logger.info("%s: %s", redact(url), error)
                reasons.append(f"{redact(url)}: {error}")
                gone = gone and isinstance(error, UnavailableError) and error.status in _GONE
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                fs.rename(part, path)
                return path
    if refused is not None:
        raise refused
    if gone:
        raise GoneError(
            f"the archive lists {wanted.what}, but no mirror has it any more",
            expected=f"{wanted.size} bytes, sha256 {wanted.sha256}",
            found="\n".join(reasons),
            hint="add another mirror, which may still have it, with --mirror",
        )
    raise InfrastructureError(
        f"{wanted.what} could not be fetched from any mirror",
        expected=f"{wanted.size} bytes, sha256 {wanted.sha256}",
        found="\n".join(reasons) or "no mirror to ask",
        hint="check the network and run this again later, which resumes the download; "
        "or add another mirror with --mirror",
    )


def _from(network: Network, url: str, wanted: Wanted, part: Path) -> None:
    """Complete ``part`` from one URL, over as many connections as needed.

    Raises TrustError, and removes ``part``, if this URL's content is wrong.
    """
    last_gain = 0
    most = _size(part)
    deadline = time.monotonic() + network.deadline_s(wanted.size)

    def stop(state: tenacity.RetryCallState) -> bool:
        return state.attempt_number - last_gain >= network.attempts

    logger.info("fetching %s (%s)", redact(url), progress.size(wanted.size))
    for attempt in network.retry(url, stop=stop):
        with attempt:
            try:
                resumed = _transfer(network, url, wanted, part, deadline)
                if _matches(wanted, part):
                    return
                # The beginning came from an earlier run or another mirror, and may be the fault.
                if resumed:
                    logger.warning("%s: the resumed file is wrong; starting again", redact(url))
                    part.unlink()
                    _transfer(network, url, wanted, part, deadline)
                    if _matches(wanted, part):
                        return
            finally:
                # Bytes that replace discarded ones are not a gain.
                if _size(part) > most:
                    most = _size(part)
                    last_gain = attempt.retry_state.attempt_number
            found = fs.sha256_file(part)
            part.unlink()
            raise _refusal(url, wanted, f"{wanted.size} bytes, sha256 {found}")


def _transfer(network: Network, url: str, wanted: Wanted, part: Path, deadline: float) -> bool:
    """Bring ``part`` to its full size over one connection; return whether it was resumed."""
    have = _size(part)
    if have > wanted.size:
        part.unlink()
        have = 0
    if have == wanted.size and have:
        return True
    try:
        response = network.open(url, {"Range": f"bytes={have}-"} if have else None)
    except UnavailableError as error:
        if error.status == 416:
            part.unlink(missing_ok=True)
            raise PassingError("the server does not have the requested range") from error
        raise
    with response:
        resumed = response.status_code == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            raise PassingError("the server sent another range than the requested one")
        if have and not resumed:
            logger.info("%s: the server cannot resume; starting again", redact(url))
        have = have if resumed else 0
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal() and have + int(announced) != wanted.size:
            part.unlink(missing_ok=True)
            raise _refusal(url, wanted, f"{have + int(announced)} bytes")
        with (
            naming(part),
            fs.open_own(part, "ab" if have else "wb") as stream,
            progress.bar(wanted.name, wanted.size, unit="bytes", initial=have) as advance,
        ):
            for chunk in _chunks(network, response):
                if time.monotonic() > deadline:
                    raise UnavailableError(f"not complete in {network.deadline_s(wanted.size):g} s")
                have += len(chunk)
                if have > wanted.size:
                    part.unlink()
                    raise _refusal(url, wanted, f"more than {wanted.size} bytes")
                stream.write(chunk)
                advance(have)
            stream.flush()
            os.fsync(stream.fileno())
    if have < wanted.size:
        raise PassingError(f"the connection ended after {have} of {wanted.size} bytes")
    return resumed


def _chunks(network: Network, response: requests.Response) -> Iterator[bytes]:
    """Read a body; a dropped connection raises PassingError, but a full disk does not.

    Raises UnavailableError if the rate falls below the network's floor.
    """
    began, gained = time.monotonic(), 0
    while True:
        try:
            # One read from the socket, because a whole chunk of a slow server may take hours.
            chunk = response.raw.read1(_CHUNK)
        except urllib3.exceptions.HTTPError as error:
            raise PassingError(f"the connection dropped: {_cause(error)}") from error
        if not chunk:
            return
        gained += len(chunk)
        passed_s = time.monotonic() - began
        if passed_s >= network.window_s:
            if gained < network.floor * passed_s:
                raise UnavailableError(
                    f"too slow: {gained / passed_s:.0f} bytes a second, "
                    f"but {network.floor:.0f} are needed"
                )
            began, gained = time.monotonic(), 0
        yield chunk


def _matches(wanted: Wanted, path: Path) -> bool:
    try:
        # A file that another user can change may change after the check.
        with fs.open_own(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return size == wanted.size and fs.sha256_stream(stream) == wanted.sha256
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _refusal(url: str, wanted: Wanted, found: str) -> TrustError:
    return TrustError(
        f"{redact(url)} is not the file that the signed index lists; it was removed",
        expected=f"{wanted.size} bytes, sha256 {wanted.sha256}",
        found=found,
        hint="the mirror is damaged, lying, or just being updated: "
        "run this again later, or add another mirror with --mirror",
    )

"""Options of the tasks and keys of the configuration, as data that checks values."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from kbuild.core import suites, variants
from kbuild.core.errors import UserError
from kbuild.guest.spec import ACCELERATORS
from kbuild.kernel import planning

_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
# The types that a value in a file may have, in words and in Python.
_FILE_TYPES: dict[type, tuple[str, tuple[type, ...]]] = {
    str: ("a text", (str,)),
    int: ("a whole number", (int, str)),
    bool: ("true or false", (bool, int, str)),
    list: ("a list of texts, or one with spaces", (list, str)),
}
CORRECT = "correct it in invoke.yaml or the environment: docs/reference/configuration.md"
Value = str | int | tuple[str, ...] | None


@dataclass(frozen=True)
class Option:
    """An option of a task, or a key of the configuration that has no option.

    An option with a ``key`` that is not given takes its value from the configuration.
    """

    name: str  # as typed, without dashes
    help: str  # subject first, without a full stop
    kind: type = str  # str, int, bool, or list for an option that may be repeated
    default: str | int | None = None
    choices: tuple[str, ...] = ()
    least: int = 0  # of a number
    usual: str = ""  # the default in words, where it is no fixed value
    key: str = ""  # in the configuration
    first: bool = False  # its value may follow the task directly: promote ID

    @property
    def typed(self) -> str:
        """The option as a user types it."""
        return f"--{self.name}" if len(self.name) > 1 else f"-{self.name}"

    @property
    def argument(self) -> str:
        """The name of the value in Python."""
        return self.name.replace("-", "_")

    @property
    def choice(self) -> str:
        """The choices as help texts show them."""
        comma = "," if len(self.choices) < 8 else ", "  # a place to break the line
        return f"{{{comma.join(self.choices)}}}" if self.choices else ""

    @property
    def shown_default(self) -> str:
        """The default as help texts show it, empty for a flag and for no value."""
        return self.usual or str(self.default or "")

    def describe(self) -> str:
        """Return the help text with choices and default."""
        text = f"{self.help}: {self.choice}" if self.choices else self.help
        text += "; may be repeated" if self.kind is list else ""
        return f"{text}; default: {self.shown_default}" if self.shown_default else text

    def value(self, given: object, configured: object = None) -> Value:
        """Return the value that a task takes; ``given`` is from the command line.

        Raises UserError for a value of the wrong kind.
        """
        if self.kind is list:
            return (*_texts(given), *_texts(configured))
        raw, name = (given, self.typed) if given else (configured, self.key)
        if raw is None or (raw == "" and (self.choices or not self.default)):
            return False if self.kind is bool else self.default
        if self.kind is bool:
            return flag(name, raw)
        return _number(name, raw, self.least) if self.kind is int else str(raw)

    def check(self, value: Value, name: str = "") -> None:
        """Raise UserError for a value that is not one of the choices.

        ``name`` is the key of a value from the configuration.
        """
        for one in value if isinstance(value, tuple) else (value,):
            if self.choices and one and one not in self.choices:
                raise UserError(
                    f"{name or self.typed} must be one of {', '.join(self.choices)}",
                    found=str(one),
                    hint=CORRECT if name else None,
                )

    def check_type(self, value: object) -> None:
        """Raise UserError for a value that a file of the configuration may not have."""
        words, types = _FILE_TYPES[self.kind]
        texts = not isinstance(value, list) or all(isinstance(one, str) for one in value)
        if not isinstance(value, types) or not texts:
            # A list or a text may hold a password.
            shown = f"{value}, " if isinstance(value, int | float) else ""
            raise UserError(
                f"{self.key} has the wrong type in the configuration",
                expected=words,
                found=f"{shown}of type {type(value).__name__}",
                hint=f"put a text that looks like another type in quotes; {CORRECT}",
            )


def _number(name: str, raw: object, least: int) -> int:
    try:
        number = int(str(raw))
    except ValueError:
        number = least - 1
    if number < least:
        raise UserError(
            f"{name} must be a whole number, {least} or more", found=str(raw) or "nothing"
        )
    return number


def flag(name: str, raw: object) -> bool:
    """Return the truth of a word; raises UserError for a word without one."""
    text = str(raw).lower()
    if text not in _YES + _NO:
        raise UserError(f"{name} must be true or false", found=text)
    return text in _YES


def _texts(raw: object) -> tuple[str, ...]:
    if isinstance(raw, Iterable) and not isinstance(raw, str):
        return tuple(str(one) for one in raw)
    return tuple(str(raw or "").split())


# Limits of Linux's file systems, less room for the names of temporary files next to a result.
_NAME_LENGTH, _PATH_LENGTH = 200, 3000


def place(key: str, text: str, base: Path) -> Path:
    """Return the absolute path for a path that the user wrote, relative to ``base``.

    Raises UserError for an impossible path: ``~nouser``, a loop of links, a NUL.
    """
    try:
        path = (base / Path(text).expanduser()).resolve()
        str(path).encode()
        if len(str(path)) > _PATH_LENGTH or any(
            len(os.fsencode(x)) > _NAME_LENGTH for x in path.parts
        ):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    except UnicodeEncodeError:
        found = "a name that is not UTF-8"
    except (RuntimeError, ValueError, OSError) as error:
        found = error.strerror or "" if isinstance(error, OSError) else str(error)
    else:
        return path
    raise UserError(
        f"{key} is not a usable path: {os.fsencode(text).decode(errors='backslashreplace')}",
        found=found,
        hint="set another path: with the option, in an INVOKE_* variable, in invoke.yaml, or in"
        " XDG_CACHE_HOME for caches",
    )


SUITE = Option(
    "suite",
    "Debian suite",
    choices=tuple(suites.SUITES),
    usual="that of this machine, or bookworm",
    key="suite",
)
SUITE_OR_ALL = replace(SUITE, choices=(*SUITE.choices, suites.ALL))
FLAVOUR = Option(
    "flavour",
    "Debian's kernel flavour, or lab, our small kernel for guests",
    choices=(*suites.DEBIAN_FLAVOURS, *suites.OWN_FLAVOURS),
    usual="that of this machine, or cloud-amd64",
    key="flavour",
)
VARIANT = Option(
    "variant",
    "kernel variant, with debug options on top of the flavour",
    default="release",
    choices=tuple(variants.VARIANTS),
    key="variant",
)
VERSION = Option(
    "version",
    "Debian version of the kernel source, such as 6.1.192-2",
    usual="the newest",
    key="kernel_version",
)
MODULES = Option(
    "modules",
    "distro's modules are kept (fast path), rebuilt, or kept if possible (auto)",
    default="auto",
    choices=planning.MODULES,
    key="modules",
)
FRAGMENT = Option("fragment", "file with additional kernel options", kind=list, key="fragments")
CACHE = Option(
    "cache",
    "remote compiler cache: redis://HOST, redis+unix:///SOCKET or http://HOST/PATH",
    key="remote_cache",
)
SCHEDULER = Option(
    "scheduler", "icecream scheduler, HOST[:PORT], for distributed compilation", key="scheduler"
)
MIRROR = Option("mirror", "base URL of a Debian mirror to try first", kind=list, key="mirrors")
OFFLINE = Option("offline", "only the cache is read", kind=bool, key="offline")
ACCEPT_EXPIRED = Option(
    "accept-expired",
    "InRelease files past their Valid-Until are accepted with a warning",
    kind=bool,
    key="accept_expired",
)
JOBS = Option(
    "jobs", "processes of compilers and tests", kind=int, usual="the number of CPUs", key="jobs"
)
ACCEL = Option(
    "accel",
    "QEMU accelerator",
    choices=tuple(ACCELERATORS),
    usual="kvm if a guest has booted with it on this machine, else tcg",
)
JSON = Option("json", "one JSON document on standard output, instead of text", kind=bool)

TARGET = (SUITE, FLAVOUR, VARIANT, VERSION)
# Options that matter only if a kernel of ours is compiled.
BUILD = (MODULES, FRAGMENT, CACHE, SCHEDULER)
ARCHIVE = (MIRROR, OFFLINE, ACCEPT_EXPIRED)
RUN = (*ARCHIVE, JOBS)
CONFIGURATION = {
    one.key: one
    for one in (
        *TARGET,
        *BUILD,
        *RUN,
        Option("revision", "N of +cplaygroundN", kind=int, default=1, least=1, key="revision"),
        Option("build_dir", "directory of the results", default="build", key="build_dir"),
        Option("cache_dir", "directory of the caches", key="cache_dir"),
        Option("archive_dir", "directory of the published archive", key="archive_dir"),
        Option("archive_url", "URL at which servers find the archive", key="archive_url"),
        Option("keys_dir", "GnuPG's home with the archive's secret keys", key="keys_dir"),
        Option("signing_key", "fingerprint of the key that signs", key="signing_key"),
        Option("sign_command", "command that signs a Release file", key="sign_command"),
        Option("mok_key", "key that signs kernels and modules for Secure Boot", key="mok_key"),
        Option("mok_certificate", "certificate of that key", key="mok_certificate"),
        Option("mok_sign_command", "command that signs in its place", key="mok_sign_command"),
        Option("watch_targets", "kernels to keep current", kind=list, key="watch_targets"),
        Option("watch_promote", "steps of promotion", kind=list, key="watch_promote"),
        Option("watch_health_command", "command that judges servers", key="watch_health_command"),
        Option("watch_notify_command", "command that notifies", key="watch_notify_command"),
        Option("watch_webhook", "URL that is notified", key="watch_webhook"),
        Option("watch_free_gb", "GB that a build needs", kind=int, default=20, key="watch_free_gb"),
        Option(
            *("watch_unused_days", "age of results that make room"),
            kind=int,
            default=30,
            least=1,
            key="watch_unused_days",
        ),
    )
}
# All are text, because Invoke casts an environment variable to the type of the default: a bad
# number becomes a traceback, and "false" becomes true.
DEFAULTS = {key: str(one.default or "") for key, one in CONFIGURATION.items()}

"""What can be held against a request before anything is done for it.

The stages refuse senseless values too, but some of them come after hours of building.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from invoke.config import Config

from kbuild import every_suite, testing
from kbuild.core import suites, variants
from kbuild.core.errors import UserError
from kbuild.core.model import BACKENDS, Target
from kbuild.guest.spec import ACCELERATORS
from kbuild.kernel import kconfig, planning
from kbuild.measure import procfile as bench_procfile

# What an option may say, where there are few things to choose from.
CHOICES: Mapping[str, Sequence[str]] = {
    "modules": planning.MODULES,
    "tier": testing.TIERS,
    "accel": tuple(ACCELERATORS),
    "backend": BACKENDS,
    "kernel": bench_procfile.KERNELS,
}
# What a file may hold for a key, in words and types; a text for every other one.
_TYPES: Mapping[str, tuple[str, tuple[type, ...]]] = {
    **dict.fromkeys(("jobs", "revision"), ("a whole number", (int, str))),
    **dict.fromkeys(("offline", "accept_expired"), ("true or false", (bool, int, str))),
    **dict.fromkeys(("fragments", "mirrors"), ("a list of texts, or one with spaces", (list, str))),
}
_PREFIX = "INVOKE_"
# What Invoke itself looks for in the environment, beside the keys of its own configuration.
_OF_INVOKE = (f"{_PREFIX}DEBUG", f"{_PREFIX}RUNTIME_CONFIG")
_CORRECT = "correct it in invoke.yaml, ~/.invoke.yaml, /etc/invoke.yaml or the INVOKE_* variables"


def configured(
    config: Config, defaults: Mapping[str, str], environ: Mapping[str, str]
) -> dict[str, object]:
    """Return the value of each key of ``defaults``, from the environment, the files, or there.

    A null means the default.  Raises UserError for a value of the wrong type, and for a key or
    an INVOKE_* variable that matches nothing.
    """
    known: dict[str, object] = {**Config.global_defaults(), **defaults}
    for name in _unknown(config._config, known):
        raise UserError(
            f"the configuration has no key {name}",
            found=name,
            hint=_guess(name, defaults) or _CORRECT,
        )
    variables = [*map(_variable, _leaves(known)), *_OF_INVOKE]
    for name in sorted(environ):
        if name.startswith(_PREFIX) and name not in variables:
            raise UserError(
                f"the variable {name} sets nothing",
                # Its value may hold a password.
                found=name,
                hint=_guess(name, variables) or "see docs/reference/configuration.md",
            )
    # Invoke casts a variable to the type that a file's value has, and "false" to true.
    cast = {key for key in defaults if _variable(key) in environ and key not in config._runtime}
    return {
        key: environ[_variable(key)] if key in cast else _checked(key, config[key], default)
        for key, default in defaults.items()
    }


def _checked(key: str, value: object, default: str) -> object:
    """Return a value of a file; raises UserError for one of the wrong type."""
    kind, types = _TYPES.get(key, ("a text", (str,)))
    if value is None:
        return default
    texts = not isinstance(value, list) or all(isinstance(one, str) for one in value)
    if not isinstance(value, types) or not texts:
        raise UserError(
            f"{key} has the wrong type in the configuration",
            expected=kind,
            # A list or a text may hold a password.
            found=(f"{value}, " if isinstance(value, int | float) else "")
            + f"of type {type(value).__name__}",
            hint=f"{_CORRECT}; a text that looks like something else stands in quotes",
        )
    return value


def _unknown(given: Mapping[str, Any], known: Mapping[str, object], at: str = "") -> Iterator[str]:
    """Yield the keys of a configuration that are not known, with the ones that they lie in."""
    for key in given:
        name, inner = f"{at}{key}", known.get(key)
        if key not in known:
            yield name
        # An empty one, as the environment of commands, may hold anything.
        elif isinstance(inner, Mapping) and inner:
            yield from _unknown(given[key], inner, f"{name}.")


def _leaves(known: Mapping[str, object], at: str = "") -> Iterator[str]:
    for key, value in known.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{at}{key}_")
        else:
            yield f"{at}{key}"


def _variable(key: str) -> str:
    return f"{_PREFIX}{key.upper()}"


def _guess(name: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"it may be {close[0]} that was meant" if close else None


# Of Linux's file systems; a temporary file beside a result has a longer name than it.
_NAME_LENGTH, _PATH_LENGTH = 200, 3000


def check_choice(option: str, value: object) -> None:
    """Raise UserError when an option of CHOICES has a value that is none of its own."""
    choices = CHOICES.get(option, ())
    if choices and value and value not in choices:
        raise UserError(
            f"--{option} {value} is not known", expected=", ".join(choices), found=str(value)
        )


def check_ignored(given: Mapping[str, object], ignores: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError when an option was given that another one makes meaningless.

    ``ignores`` has those by the option that does, or by the option and its value: "tier=unit".
    """
    for cause, names in ignores.items():
        option, _, value = cause.partition("=")
        if not _was_given(given[option]) or (value and given[option] != value):
            continue
        wrong = [_typed(name) for name in names if _was_given(given[name])]
        if wrong:
            # A positional argument is typed without its name.
            said = value if option == "what" else f"{_typed(option)} {value}".strip()
            raise UserError(
                f"{' and '.join(wrong)} would be ignored with {said}",
                found=f"{' '.join(wrong)} beside {said}",
                hint=f"leave out {' and '.join(wrong)}",
            )


def _was_given(value: object) -> bool:
    return value is not None and value is not False and value != []


def _typed(name: str) -> str:
    return f"--{name.replace('_', '-')}" if len(name) > 1 else f"-{name}"


def check_target(target: Target, *, every: bool = False) -> None:
    """Raise UserError when a target names what does not exist.

    ``every`` says that the task can do with every suite at once.
    """
    if target.suite != every_suite.ALL:
        suites.suite(target.suite)
    elif not every:
        raise UserError(
            "--suite all is not for this task",
            expected=", ".join(suites.SUITES),
            found=target.suite,
            hint="build-kernel, test and report take all; of others, run one for each suite",
        )
    else:
        every_suite.check(target)
    suites.base_flavour(target.flavour)
    variants.variant(target.variant)
    for path in target.fragments:
        kconfig.read(path)


def place(key: str, text: str, base: Path) -> Path:
    """Return a path that the user wrote, made absolute; a relative one starts at ``base``.

    Raises UserError for one that no file can have: ``~nouser``, a loop of links, a NUL.
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
        f"{key} is {os.fsencode(text).decode(errors='backslashreplace')}, which is no usable path",
        found=found,
        hint="give another: as an option, in an INVOKE_ variable, in invoke.yaml, or for caches"
        " in XDG_CACHE_HOME",
    )

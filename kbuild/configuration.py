"""The configuration: Invoke's files and variables, whose faults are errors of the user.

Invoke answers a damaged file, and a variable that it cannot cast, with a traceback.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from invoke import config as invokes
from invoke.config import AmbiguousMergeError
from invoke.env import Environment
from invoke.exceptions import AmbiguousEnvVar, Exit, UncastableEnvVar, UnknownFileType
from invoke.util import yaml  # type: ignore[attr-defined]  # the one that it reads with

from kbuild.core.errors import UserError
from kbuild.options import CONFIGURATION, CORRECT, DEFAULTS

_PREFIX = "INVOKE_"
# Variables of Invoke itself that are no keys of its configuration.
_OF_INVOKE = (f"{_PREFIX}DEBUG", f"{_PREFIX}RUNTIME_CONFIG")


def _refused(what: str, found: object) -> Exit:
    error = UserError(what, found=str(found)[:400], hint=CORRECT)
    return Exit(f"{error.kind} error: {error}", error.exit_status)


class Config(invokes.Config):
    """Invoke's configuration, whose faults are the user's errors instead of tracebacks."""

    def set_runtime_path(self, path: os.PathLike[str] | None) -> None:
        if path and not Path(path).expanduser().is_file():
            raise _refused(f"the configuration {path} is not a file", "given with --config")
        super().set_runtime_path(path)

    def load_runtime(self, merge: bool = True) -> None:
        try:
            super().load_runtime(merge)
        except UnknownFileType as error:
            raise _refused("the configuration given with --config cannot be read", error) from error

    def _load_yaml(self, path: os.PathLike[str]) -> object:
        return _load(path, super()._load_yaml)

    _load_yml = _load_yaml

    def _load_json(self, path: os.PathLike[str]) -> object:
        return _load(path, super()._load_json)

    def merge(self) -> None:
        try:
            super().merge()
        except AmbiguousMergeError as error:
            raise _refused("the configuration has a value of the wrong type", error) from error

    def load_shell_env(self) -> None:
        self.merge()
        # The tasks read their own variables, as text.
        known = {key: self._config[key] for key in invokes.Config.global_defaults()}
        try:
            environment = Environment(known, self._env_prefix)  # type: ignore[arg-type]
            self._set(_env=environment.load())
        except (AmbiguousEnvVar, UncastableEnvVar, ValueError) as error:
            raise _refused("an INVOKE_* variable has the wrong type", error) from error
        self.merge()


def _load(path: os.PathLike[str], load: Callable[[os.PathLike[str]], object]) -> object:
    """Return the content of a file without its nulls; a null means the default."""
    what = f"the configuration {os.fspath(path)} cannot be read"
    try:
        data = load(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _refused(what, error.strerror) from error
    except (yaml.YAMLError, ValueError) as error:
        raise _refused(what, error) from error
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise _refused(what, f"of type {type(data).__name__}, not keys with their values")
    return _without_nulls(data)


def _without_nulls(data: dict[str, object]) -> dict[str, object]:
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in data.items()
        if value is not None
    }


def read(config: invokes.Config, environ: Mapping[str, str]) -> dict[str, object]:
    """Return the value of each key, from the environment, the files, or the defaults.

    A null means the default.  Raises UserError for a value of the wrong type, and for a key or
    an INVOKE_* variable that matches nothing.
    """
    known = set(_leaves({**invokes.Config.global_defaults(), **DEFAULTS}))
    for name in _leaves(config._config):
        # The empty ones, such as the environment of commands, may hold anything.
        if name not in known and not any(name.startswith(f"{one}.") for one in known):
            raise UserError(
                f"the configuration has no key {name}",
                found=name,
                hint=_guess(name, DEFAULTS) or CORRECT,
            )
    variables = [*map(_variable, known), *_OF_INVOKE]
    for name in sorted(environ):
        if name.startswith(_PREFIX) and name not in variables:
            raise UserError(
                f"the variable {name} sets nothing",
                # Its value may hold a password.
                found=name,
                hint=_guess(name, variables) or "unset it; see docs/reference/configuration.md",
            )
    found: dict[str, object] = {}
    for key, default in DEFAULTS.items():
        # Invoke casts a variable to the type that a file's value has, and "false" to true.
        if _variable(key) in environ and key not in config._runtime:
            found[key] = environ[_variable(key)]
        elif config[key] is None:
            found[key] = default
        else:
            CONFIGURATION[key].check_type(config[key])
            found[key] = config[key]
    return found


def _leaves(data: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Yield the names of all keys, with dots: run.echo."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}"


def _variable(key: str) -> str:
    return f"{_PREFIX}{key.replace('.', '_').upper()}"


def _guess(name: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else None

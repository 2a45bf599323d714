"""The command line: Invoke's own, with the faults of a configuration told as the user's errors.

Invoke answers a damaged file, and a variable that it cannot cast, with a traceback, before any
task begins.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from invoke import __version__
from invoke.collection import Collection
from invoke.config import AmbiguousMergeError, Config
from invoke.env import Environment
from invoke.exceptions import AmbiguousEnvVar, Exit, UncastableEnvVar, UnknownFileType
from invoke.program import Program
from invoke.util import yaml  # type: ignore[attr-defined]  # the one that it reads with

from kbuild.core.errors import UserError

_HINT = "see docs/reference/configuration.md; remove what you did not write"


def _refused(what: str, found: object) -> Exit:
    error = UserError(what, found=str(found)[:400], hint=_HINT)
    return Exit(f"{error.kind} error: {error}", error.exit_status)


class _Config(Config):
    """Invoke's configuration, read with care."""

    def set_runtime_path(self, path: os.PathLike[str] | None) -> None:
        if path and not Path(path).expanduser().is_file():
            raise _refused(f"the configuration {path} is no file", "given with --config")
        super().set_runtime_path(path)

    def load_runtime(self, merge: bool = True) -> None:
        try:
            super().load_runtime(merge)
        except UnknownFileType as error:
            raise _refused("the configuration given with --config cannot be read", error) from error

    def _load_yaml(self, path: os.PathLike[str]) -> object:
        return _read(path, super()._load_yaml)

    _load_yml = _load_yaml

    def _load_json(self, path: os.PathLike[str]) -> object:
        return _read(path, super()._load_json)

    def merge(self) -> None:
        try:
            super().merge()
        except AmbiguousMergeError as error:
            raise _refused("the configuration has a value of the wrong type", error) from error

    def load_shell_env(self) -> None:
        self.merge()
        # The tasks read their own variables, as text.
        known = {key: self._config[key] for key in Config.global_defaults()}
        try:
            environment = Environment(known, self._env_prefix)  # type: ignore[arg-type]
            self._set(_env=environment.load())
        except (AmbiguousEnvVar, UncastableEnvVar, ValueError) as error:
            raise _refused("an INVOKE_* variable has the wrong type", error) from error
        self.merge()


def _read(path: os.PathLike[str], load: Callable[[os.PathLike[str]], object]) -> object:
    """Return what a file holds, without its nulls, each of which means the default."""
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


def program(namespace: Collection | None = None) -> Program:
    """Return the program; without a namespace it looks for tasks.py, as Invoke does."""
    return Program(
        name="Invoke",
        binary="inv[oke]",
        binary_names=["invoke", "inv"],
        version=__version__,
        config_class=_Config,
        namespace=namespace,
    )


if __name__ == "__main__":
    program().run()

"""What can be held against a request before anything is done for it.

The stages refuse senseless values too, but some of them come after hours of building.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kbuild import bench_procfile, generations, kconfig, kernel, stress, suites, testing, variants
from kbuild.errors import UserError
from kbuild.model import Settings, Target
from kbuild.vm.spec import ACCELERATORS

# What an option may say, where there are few things to choose from.
CHOICES: Mapping[str, Sequence[str]] = {
    "modules": kernel.MODULES,
    "tier": testing.TIERS,
    "accel": tuple(ACCELERATORS),
    "backend": stress.BACKENDS,
    "kernel": bench_procfile.KERNELS,
}

# Of Linux's file systems; a temporary file beside a result has a longer name than it.
_NAME_LENGTH, _PATH_LENGTH = 200, 3000


def check_choice(option: str, value: object) -> None:
    """Raise UserError when an option of CHOICES has a value that is none of its own."""
    choices = CHOICES.get(option, ())
    if choices and value and value not in choices:
        raise UserError(
            f"--{option} {value} is not known", expected=", ".join(choices), found=str(value)
        )


def check_target(target: Target, *, every: bool = False) -> None:
    """Raise UserError when a target names what does not exist.

    ``every`` says that the task can do with every suite at once.
    """
    if target.suite != generations.ALL:
        suites.suite(target.suite)
    elif not every:
        raise UserError(
            "--suite all is not for this task",
            expected=", ".join(suites.SUITES),
            found=target.suite,
            hint="build-kernel, test and report take all; of others, run one for each suite",
        )
    else:
        generations.check(target)
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


def check_places(settings: Settings) -> None:
    """Raise when results or caches cannot lie where they are to, or would take something along.

    ``clean`` removes both directories whole, so neither may hold the checkout or a home.
    """
    for key, path in (("build_dir", settings.build), ("cache_dir", settings.cache)):
        for precious in _precious(settings):
            if precious.resolve().is_relative_to(path):
                raise UserError(
                    f"{key} is {path}, which 'clean' would remove",
                    expected="a directory of its own",
                    found=f"{precious} lies in it" if precious != path else None,
                    hint=f"correct {key}: in INVOKE_{key.upper()}, or in invoke.yaml",
                )
        there = next(one for one in (path, *path.parents) if os.path.lexists(one))
        if not there.is_dir():
            raise UserError(
                f"{key} is {path}, which cannot be a directory",
                found=f"{there} is there, and is none",
                hint=f"correct {key}: in INVOKE_{key.upper()}, or in invoke.yaml",
            )


def _precious(settings: Settings) -> tuple[Path, ...]:
    # A user without a name, as in a container, has no home.
    with contextlib.suppress(RuntimeError):
        return settings.project, Path.home()
    return (settings.project,)

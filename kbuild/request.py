"""What can be held against a request before anything is done for it.

The stages refuse senseless values too, but some of them come after hours of building.
"""

from __future__ import annotations

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


def check_places(settings: Settings) -> None:
    """Raise when results or caches cannot lie where they are to, or would take something along.

    ``clean`` removes both directories whole, so neither may hold the checkout or a home.
    """
    for key, path in (("build_dir", settings.build), ("cache_dir", settings.cache)):
        for precious in (settings.project, Path.home()):
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

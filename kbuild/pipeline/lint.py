"""Checks of the module's source and of the packages, repeated only after a change."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from kbuild.core import fs, results, stamp
from kbuild.core.model import Settings, Target
from kbuild.fetch import roots, source, unpack
from kbuild.kernel import module
from kbuild.kernel.module import Headers
from kbuild.pipeline import stages
from kbuild.pipeline.stage import Made
from kbuild.ship import deb

logger = logging.getLogger(__name__)


def check_module(made: Made) -> None:
    """Compile the module with all warnings and sparse, and read it with checkpatch --strict."""
    headers = module.whole(stages.kernel_headers(made))
    _check_module(made, "lint", made.kernel.digest, headers, made.kernel.source)


def check_stock_module(settings: Settings, target: Target) -> None:
    """Do the same as :func:`check_module` against the headers of Debian's own kernel."""
    base = source.fetch(settings, target)
    headers = stages.debian_headers(settings, base)
    digest = stamp.digest({file.name: file.sha256 for file in (base.headers, *base.support)})
    made = Made(settings, target, base=base, root=roots.compile_root(settings, target.suite))
    _check_module(made, "lint-stock", digest, headers, unpack.unpack(settings, base))


def _check_module(made: Made, name: str, kernel: str, headers: Headers, tree: Path) -> None:
    settings, scratch, log = made.settings, made.where.version / name, made.where.log(name)
    _check(
        scratch.with_name(f"{name}.json"),
        {
            "module": fs.sha256_tree(settings.project / "kmod"),
            "kernel": kernel,
            "recipe": stages.recipe_of("kernel/module.py"),
        },
        lambda: module.lint(
            settings, made.root, headers=headers, tree=tree, scratch=scratch, log=log
        ),
        "checking the module with W=1, sparse and checkpatch",
    )


def check_packages(made: Made) -> None:
    """Read each set of packages with lintian, if it has changed since it was last read."""
    for out in sorted({one.path.parent for one in made.packages}):
        inputs = {one.path.name: one.sha256 for one in made.packages if one.path.parent == out}
        log = made.where.log(f"lintian-{out.name}")
        _check(
            out.with_name(f"{out.name}.lintian.json"),
            inputs | {"recipe": stages.recipe_of("ship/deb.py")},
            functools.partial(deb.lint, made.root, sorted(out.glob("*.changes")), log=log),
            f"reading {out.name} with lintian",
        )


def _check(mark: Path, inputs: Mapping[str, str], check: Callable[[], object], doing: str) -> None:
    def make(_: Path) -> list[Path]:
        check()
        logger.info("nothing was found")
        return []

    lock = mark.with_name(f".{mark.stem}.lock")
    results.kept(mark, inputs, make, lambda: mark, lock=lock, doing=doing).ensure()

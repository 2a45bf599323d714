"""Configure and compile: turn a patched tree and a configuration into a kernel.

Everything is compiled out of tree, in a root of the suite, without network.  The paths are the
same on every machine, so the compiler cache also serves the next checkout.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs, interrupted, progress, results, sandbox, stamp
from kbuild.core.errors import GuardError
from kbuild.core.model import BuiltKernel, Root, Settings, Tree
from kbuild.core.results import Result
from kbuild.core.run import failure
from kbuild.core.sandbox import Bind
from kbuild.core.suites import DEBIAN_FLAVOURS, suite, usual_objects
from kbuild.kernel import ccache, debian_image, guard, helpers, kconfig, symbol_versions, symvers
from kbuild.kernel.help import Help
from kbuild.kernel.kconfig import Fragment
from kbuild.kernel.makelog import _MAKE_ENDS, compiling, first_error
from kbuild.kernel.planning import Plan, plan_inputs

logger = logging.getLogger(__name__)


# Assumed number of objects of a build that was never counted.
_MANY_OBJECTS = 20000

# Files of make's output that are used later: for packages, the next stage, or decoding a crash.
_USED = (
    ".config",
    "System.map",
    "arch/x86/boot/bzImage",
    "arch/x86/include/generated",
    "include",
    "modules.builtin",
    "modules.builtin.modinfo",
    "modules.order",
    "scripts",
    "tools/bpf/resolve_btfids/resolve_btfids",
    "tools/objtool/objtool",
    "vmlinux",
)

_COMPILE_TIMEOUT_S = 12 * 3600
_CONFIGURE_TIMEOUT_S = 600


def kernel(
    settings: Settings,
    root: Root,
    plan: Plan,
    tree: Tree,
    *,
    distro_image: Path,
    distro_headers: Path,
    home: Path,
    before: Callable[[], object] = lambda: None,
) -> Result[BuiltKernel]:
    """Return the kernel of ``plan`` as a result below ``home``.

    ``distro_image`` and ``distro_headers`` are the unpacked packages of the base.  ``before`` is
    called if there is something to compile.  A failed build resumes where it stopped.  An
    interrupted build makes everything again that changed since its start.  A damaged build
    starts from nothing but the compiler cache.
    ``ensure`` raises BuildError with the first error of the log, or GuardError if the fast
    path's checks fail.
    """
    mark, inputs = home / "kernel.json", plan_inputs(plan, tree.digest, root.digest)
    fast, output = plan.method == "fast", home / "out"

    def prepare(_: str) -> None:
        before()
        # make compares times, so it takes an empty object for a finished one.
        if stamp.damage(mark):
            fs.remove_tree(output)

    def make(_: Path) -> tuple[Path, ...]:
        began = time.monotonic()
        with helpers.ready(settings, root, home) as help:
            shop = _workshop(settings, root, plan, tree, home, help)
            outputs = _compile(shop, tree, distro_image, distro_headers)
        logger.info("built %s in %s", plan.release, progress.duration(time.monotonic() - began))
        return outputs

    def read() -> BuiltKernel | None:
        last = stamp.read(mark)
        if last is None:
            return None
        return BuiltKernel(
            target=plan.target,
            base=plan.base,
            series=tree.series,
            release=plan.release,
            method=plan.method,
            source=tree.path,
            output=output,
            modules=(
                distro_image / "lib/modules" / plan.base.release
                if fast
                else home / "modules" / "lib/modules" / plan.release
            ),
            symvers=home / "Module.symvers",
            config=output / ".config",
            compiler=(home / "compiler").read_text().strip(),
            digest=stamp.digest(inputs),
            seconds=last.seconds,
        )

    return results.kept(
        mark,
        inputs,
        make,
        read,
        lock=home / ".lock",
        doing=f"building {plan.release} ({plan.method} path: {plan.reason})",
        before=prepare,
    )


def make_arguments(settings: Settings, plan: Plan, *, plain: bool = False) -> list[str]:
    """Return make's command line without goals; it is the same for every call on one output.

    ``plain`` omits the compiler cache and everything else that makes our builds faster than the
    kernel's own.
    """
    compiler = host_compiler = cc = suite(plan.target.suite).compiler
    if not plain:
        host_compiler, cc = ccache.HOST_COMPILER, f"ccache {compiler}"
    fast: list[str] = []
    if plan.method == "fast":
        # The distro's BTF replaces DWARF, so no debug info is generated or linked.
        # The indentation warning makes gcc read the sources a second time, which takes one or two
        # hundredths of its time.  All text but the patch's is the distro's own.
        flags = "-g0 -Wno-misleading-indentation"
        fast = ["PAHOLE=/mnt/input/pahole", f"KCFLAGS={flags}", "KAFLAGS=-g0"]
        # The origin of each token in a macro's argument only serves the notes of errors, and
        # debug info.
        cc += " -ftrack-macro-expansion=1"
    return [
        "make",
        "-C",
        "/mnt/source",
        "O=/mnt/out",
        f"-j{settings.jobs}",
        "--output-sync=target",
        "ARCH=x86_64",
        f"CC={cc}",
        # For symbol versions, which do not depend on a token's origin.  A compiler must at least
        # know the token's macro, for __LINE__ and for warnings that are switched off.
        *([] if plain else [f"CPP={compiler} -E -ftrack-macro-expansion=0"]),
        f"HOSTCC={host_compiler}",
        f"KERNELRELEASE={plan.release}",
        *fast,
    ]


def _environment(plan: Plan) -> dict[str, str]:
    day = time.strftime("%Y-%m-%d", time.gmtime(int(plan.timestamp)))
    return {
        **ccache.environment(distro_options=plan.distro_options),
        "KBUILD_BUILD_HOST": "localhost",
        "KBUILD_BUILD_USER": "cplayground",
        "KBUILD_BUILD_VERSION": "1",
        "KBUILD_BUILD_TIMESTAMP": f"@{plan.timestamp}",
        # Debian's own variable for the output of uname -v.
        "KBUILD_BUILD_VERSION_TIMESTAMP": f"{plan.package_version} ({day})",
        "SOURCE_DATE_EPOCH": plan.timestamp,
    }


@dataclass(frozen=True)
class _Workshop:
    """The place where one kernel is compiled, and the arguments of make there."""

    plan: Plan
    root: Root
    home: Path
    source: Path  # the tree
    output: Path  # make's O=
    given: Path  # inputs besides the source, shown as /mnt/input
    expected: int  # number of objects that this build will have
    counts: Path  # file with the number of objects of the last build
    log: Path
    binds: tuple[Bind, ...]
    env: Mapping[str, str]
    make: tuple[str, ...]
    help: Help  # for the compilers, but for nothing else in the root


def _workshop(
    settings: Settings, root: Root, plan: Plan, tree: Tree, home: Path, help: Help
) -> _Workshop:
    output, given = home / "out", home / "input"
    log = settings.build / "logs" / f"kernel-{plan.release}.log"
    log.unlink(missing_ok=True)
    for directory in (output, given):
        directory.mkdir(parents=True, exist_ok=True)
    symbol_versions.write_programs(given)
    ccache.write_host_compiler(given, suite(plan.target.suite).compiler)
    return _Workshop(
        plan=plan,
        root=root,
        home=home,
        source=tree.path,
        output=output,
        given=given,
        expected=expected_objects(settings, plan),
        counts=_counts(settings, plan),
        log=log,
        binds=(
            Bind(tree.path, "/mnt/source"),
            Bind(output, "/mnt/out", writable=True),
            Bind(given, "/mnt/input"),
            ccache.bind(settings),
        ),
        env=_environment(plan),
        make=tuple(make_arguments(settings, plan)),
        help=help,
    )


def _compile(
    shop: _Workshop, tree: Tree, distro_image: Path, distro_headers: Path
) -> tuple[Path, ...]:
    """Compile and check a kernel; return the files that prove that it was done."""
    plan, output = shop.plan, shop.output
    compiler = compiler_version(shop.root)
    distro = distro_headers / "usr/src" / f"linux-headers-{plan.base.release}"
    if plan.method == "fast":
        config = kconfig.read(distro / ".config", strict=False)
        guard.check_compiler(config, compiler)
        given = debian_image.extract(
            shop.root,
            distro_image / "boot" / f"vmlinuz-{plan.base.release}",
            distro_image / "lib/modules" / plan.base.release,
            shop.given,
        )
        pahole = int(config.options.get("PAHOLE_VERSION", "0"))
        guard.write_pahole(shop.given / "pahole", pahole)
    interrupted.recover(output)
    _configure(shop)
    exported = shop.home / "Module.symvers"
    if plan.method == "fast":
        _make(shop, ["bzImage", "modules_prepare"])
        yardstick = distro / "Module.symvers"
        ours = symvers.read(output / "vmlinux.symvers")
        added = guard.guard(symvers.read(yardstick), ours, tree.series)
        guard.check_image(
            output / "vmlinux",
            release=plan.release,
            flags=debian_image.vermagic_flags(
                shop.root, distro_image / "lib/modules" / plan.base.release
            ),
            btf=given.btf,
        )
        guard.write_symvers(yardstick, added, exported)
    else:
        _make(shop, ["bzImage", "modules"])
        _install_modules(shop)
        _check_exports(output / "Module.symvers", tree)
        fs.write_atomic(exported, (output / "Module.symvers").read_bytes())
    fs.write_atomic(shop.home / "compiler", compiler + "\n")
    used = [output / name for name in _USED if (output / name).exists()]
    modules = [] if plan.method == "fast" else [shop.home / "modules"]
    return (exported, shop.home / "compiler", *used, *modules)


def compiler_version(root: Root) -> str:
    """Return the first --version line of the suite's kernel compiler in a root."""
    completed = sandbox.enter(root, [suite(root.suite).compiler, "--version"], timeout_s=60)
    return completed.stdout.splitlines()[0]


def _configure(shop: _Workshop) -> None:
    # make treats a newer .config as a changed one, and syncconfig then touches include/config.
    # So compare the result with the last one instead of overwriting it.
    plan, config = shop.plan, shop.output / ".config"
    wanted, done = shop.given / "config", shop.given / "configured"
    same = wanted.exists() and wanted.read_bytes() == plan.config.encode()
    # make does not sync the result, so it may be empty after a power cut.
    there = config.exists() and done.exists()
    if same and there and done.read_bytes() == fs.sha256_file(config).encode():
        return
    done.unlink(missing_ok=True)
    fs.write_atomic(wanted, plan.config)
    if plan.target.flavour in DEBIAN_FLAVOURS:
        fs.write_atomic(config, plan.config)
        goal, extra = "olddefconfig", {}
    else:
        goal, extra = "allnoconfig", {"KCONFIG_ALLCONFIG": "/mnt/input/config"}
    with interrupted.noted(shop.output):
        sandbox.enter(
            shop.root,
            [*shop.make, goal],
            timeout_s=_CONFIGURE_TIMEOUT_S,
            binds=shop.binds,
            env={**shop.env, **extra},
            log=shop.log,
        )
    final = kconfig.read(config, strict=False)
    kconfig.verify(
        final,
        plan.fragments,
        root=shop.root,
        compiler=suite(plan.target.suite).compiler,
        binds=shop.binds,
        log=shop.log,
    )
    _check_strayed(plan, final, shop.log)
    fs.write_atomic(done, fs.sha256_file(config))


def _check_strayed(plan: Plan, final: Fragment, log: Path) -> None:
    """Check where a kernel on Debian's configuration differs from it and from our fragments.

    The fast path allows no difference, because even struct module depends on the configuration.
    In a full build, fragments change other options too, but so may a missing compiler.
    """
    if plan.target.flavour not in DEBIAN_FLAVOURS:
        return
    strayed = kconfig.strayed(plan.distro, final, plan.fragments)
    lines = [f"CONFIG_{option}: {change}" for option, change in strayed.items()]
    if lines and plan.method == "fast":
        raise GuardError(
            f"{len(lines)} option(s) differ from the distro's kernel",
            expected="the distro's configuration, except for the module signing key and the salt "
            "of build IDs",
            found="\n".join(lines),
            log=log,
            hint="does the suite's root have every compiler and tool of the distro's build? "
            "if not, build in full with --modules rebuild",
        )
    if lines:
        logger.warning(
            "%d option(s) differ from the distro's, in addition to the requested ones: %s",
            len(lines),
            "; ".join(lines),
        )


def _make(shop: _Workshop, goals: Sequence[str]) -> None:
    release = shop.plan.release
    there = _count_objects(shop.output)
    final = kconfig.read(shop.output / ".config", strict=False)
    ccache.write_options(shop.given, final)
    versions = symbol_versions.arguments(shop.source, final.options)
    with (
        interrupted.noted(shop.output),
        compiling(f"compiling {release}", shop.expected, there=there) as on_line,
    ):
        completed = sandbox.enter(
            shop.root,
            [*shop.make, *versions, *goals],
            timeout_s=_COMPILE_TIMEOUT_S,
            binds=[*shop.binds, *shop.help.binds],
            env={**shop.env, **shop.help.env},
            log=shop.log,
            check=False,
            on_line=on_line,
            network=shop.help.network,
        )
        failed = failure(
            completed,
            f"the kernel {release} does not build",
            found=first_error(completed.stdout),
            log=shop.log,
            hint="correct the error and run the same command again; finished objects are kept",
        )
        if completed.returncode not in _MAKE_ENDS:
            raise failed
    if completed.returncode != 0:
        raise failed
    fs.write_atomic(shop.counts, f"{_count_objects(shop.output)}\n")


def expected_objects(settings: Settings, plan: Plan) -> int:
    """Return how many objects a build has: as many as the last one here, or the usual number."""
    try:
        return int(_counts(settings, plan).read_text())
    except (OSError, ValueError):
        target = plan.target
        return usual_objects(target.suite, plan.method, target.flavour) or _MANY_OBJECTS


def _counts(settings: Settings, plan: Plan) -> Path:
    return settings.cache / "objects" / f"{plan.target.suite}-{plan.target.name}-{plan.method}"


def _count_objects(output: Path) -> int:
    return sum(name.endswith(".o") for _, _, names in os.walk(output) for name in names)


def _install_modules(shop: _Workshop) -> None:
    modules = shop.home / "modules"
    fs.remove_tree(modules)
    modules.mkdir()
    sandbox.enter(
        shop.root,
        [*shop.make, "INSTALL_MOD_PATH=/mnt/modules", "INSTALL_MOD_STRIP=1", "modules_install"],
        timeout_s=_COMPILE_TIMEOUT_S,
        binds=[*shop.binds, Bind(modules, "/mnt/modules", writable=True)],
        env=shop.env,
        log=shop.log,
    )


def _check_exports(path: Path, tree: Tree) -> None:
    exported = symvers.read(path)
    missing = [name for name in tree.series.exports if name not in exported]
    if missing:
        raise GuardError(
            "the kernel does not export the symbols that the series declares",
            expected=", ".join(tree.series.exports),
            found=f"{', '.join(missing)} missing in {path}",
            hint="is the function compiled in? its #ifdef may be off in this configuration",
        )

"""List every stage from a target to an apt repository, with its inputs and its outputs.

The order is fetch → patch → compile → package → repository.  For each stage there is one
function, which says what decides the result, where it lies, and how it is made.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kbuild.core import fs, recipe, results, stamp, suites
from kbuild.core.errors import InfrastructureError
from kbuild.core.model import Base, BuiltKernel, Package, Root, Settings, Target, Tree
from kbuild.core.results import Result
from kbuild.fetch import roots, source, unpack
from kbuild.kernel import compilation, guard, module, patches, planning, quilt
from kbuild.kernel.module import BuiltModule, Headers
from kbuild.pipeline import stage
from kbuild.pipeline.stage import Made, Prepared, Stage, Step
from kbuild.ship import (
    deb,
    dkms,
    guard_package,
    manifest,
    mok,
    publishing,
    shared,
    tool_package,
    versions,
)
from kbuild.ship.shared import SharedPackage

logger = logging.getLogger(__name__)

_KBUILD = Path(__file__).parents[1]


# Before the kernel: fetch, unpack and patch, root.


def fetched(made: Made) -> Result[Base]:
    """Return the distro's kernel, as the archive has it."""
    settings, target = made.settings, made.target
    quiet = dataclasses.replace(settings, offline=True)

    @functools.cache
    def read() -> Base:
        return source.base(quiet, source.resolve(quiet, target))

    def reason() -> str | None:
        try:
            missing = [file.path.name for file in read().files if not file.path.exists()]
        except InfrastructureError as error:
            return error.what
        return f"not in the cache: {', '.join(missing)}" if missing else None

    return Result(reason, read, lambda: source.fetch(settings, target))


def prepared(made: Made) -> Result[Prepared]:
    """Return the unpacked and patched source, and the plan of the kernel."""
    settings, target, base = made.settings, made.target, made.base
    quiet = dataclasses.replace(settings, offline=True)

    def reason() -> str | None:
        packed = [file.path.name for file in unpack.not_unpacked(settings, base)]
        return f"not unpacked: {', '.join(packed)}" if packed else None

    return Result(
        reason,
        lambda: _prepare(quiet, target, base, made.modules, patches.foresee),
        lambda: prepare(settings, target, base, modules=made.modules),
    )


def prepare(settings: Settings, target: Target, base: Base, *, modules: str = "auto") -> Prepared:
    """Unpack and patch, and put together what decides the kernel; compiles nothing.

    Raises GuardError if the distro's modules are to be kept and the series changes types.
    """
    ready = _prepare(settings, target, base, modules, patches.apply)
    for used in (ready.tree.path, Made(settings, target, base=base).where.version):
        fs.mark_used(used)
    if ready.plan.method == "fast":
        known = [name for name in ready.tree.changed if (ready.pristine / name).is_file()]
        guard.check_types(ready.pristine, ready.tree.path, known)
    return ready


def _prepare(
    settings: Settings, target: Target, base: Base, modules: str, patch: Callable[..., Tree]
) -> Prepared:
    pristine = unpack.unpack(settings, base)
    series = quilt.choose(settings.project / "patches", base.upstream)
    # Flavours of one suite share a tree: only the version decides which series it has.
    tree = patch(
        pristine,
        series,
        settings.build / target.suite / f"source-{base.version}",
        base_version=base.version,
    )
    distro_image = unpack.unpack_image(settings, base)
    distro_headers = unpack.unpack_deb(settings, base.headers)
    epoch = deb.changelog_epoch(distro_image, base.image.name)
    plan = planning.make_plan(
        settings,
        target,
        base,
        release=versions.release(
            base.abi, target.flavour, target.variant, revision=settings.revision
        ),
        package_version=versions.package_version(base.version, settings.revision),
        distro_config=distro_headers / "usr/src" / f"linux-headers-{base.release}" / ".config",
        timestamp=epoch,
        pristine=pristine,
        modules=modules,
    )
    return Prepared(base, pristine, distro_image, distro_headers, tree, plan, epoch)


def compile_root(made: Made) -> Result[Root]:
    """Return the suite's root, made again if the distro has a newer compiler than it holds.

    A point release may bring a compiler with it, and the next kernel is built with that.
    """
    settings, suite = made.settings, made.target.suite
    wanted = planning.distro_compiler(made.prepared.plan)

    def read() -> Root:
        return roots.compile_root(dataclasses.replace(settings, offline=True), suite)

    def outdated(root: Root) -> str | None:
        if wanted is None or settings.offline or compilation.compiler_version(root) == wanted:
            return None
        return f"its compiler is not the distro's ({wanted})"

    def reason() -> str | None:
        needed = roots.compile_packages(suite)
        return roots.why_make(settings, suite, "compile", needed) or outdated(read())

    def ensure() -> Root:
        root = roots.compile_root(settings, suite)
        why = outdated(root)
        return roots.compile_root(settings, suite, refresh=why) if why else root

    return Result(reason, read, ensure)


# The kernel.


def kernel(made: Made) -> Result[BuiltKernel]:
    """Return the compiled kernel."""
    ready = made.prepared
    return compilation.kernel(
        made.settings,
        made.root,
        ready.plan,
        ready.tree,
        distro_image=ready.distro_image,
        distro_headers=ready.distro_headers,
        home=made.where.version,
        before=lambda: patches.mend(ready.pristine, ready.tree),
    )


def kernel_packages(made: Made) -> Result[tuple[Package, ...]]:
    """Return the packages of the kernel."""
    settings, ready, built = made.settings, made.prepared, made.kernel

    def make(out: Path) -> tuple[Package, ...]:
        # The headers are copied from the source.
        patches.mend(ready.pristine, ready.tree)
        log = made.where.log("packages-kernel")
        return deb.build_kernel_packages(
            settings,
            made.root,
            built,
            epoch=ready.epoch,
            log=log,
            out=out,
            signed=_sign_kernel(made) if mok.configured(settings) else None,
        )

    inputs = {
        **_signing(settings),
        "kernel": built.digest,
        "templates": fs.sha256_tree(settings.project / "debian" / "kernel"),
        "recipe": recipe_of("ship/deb.py", "ship/headers.py", "ship/versions.py"),
        "root": made.root.digest,
        "revision": str(settings.revision),
        "epoch": str(ready.epoch),
    }
    out = made.where.version / "packages-kernel"
    kept = (mok.KERNEL, mok.CERTIFICATE)
    return _packages(out, f"the kernel {built.release}", inputs, make, kept=_kept(made, *kept))


# The module.


def built_module(made: Made) -> Result[BuiltModule]:
    """Return our module, built only against the headers package, which proves that package."""
    settings, release, where = made.settings, made.kernel.release, made.where
    out, state = where.version / "module", where.version / "module.built"

    def make(_: Path) -> list[Path]:
        built = module.build(
            settings,
            made.root,
            headers=kernel_headers(made),
            release=release,
            out=out,
            log=where.log("module"),
        )
        fs.write_json(state, dataclasses.asdict(built) | {"path": str(built.path)})
        return [state, built.path]

    def parse(raw: dict[str, Any]) -> BuiltModule:
        path = out / Path(raw["path"]).name
        return BuiltModule(**{**raw, "path": path, "backends": tuple(raw["backends"])})

    return results.kept(
        _mark(out),
        {
            "headers": _headers_package(made).sha256,
            "module": fs.sha256_tree(settings.project / "kmod"),
            "recipe": recipe_of("kernel/module.py"),
            "root": made.root.digest,
        },
        make,
        lambda: fs.read_json(state, parse),
        lock=where.version / ".module.lock",
        doing=f"building the module for {release}",
    )


def module_packages(made: Made) -> Result[tuple[Package, ...]]:
    """Return the packages of the module that was built for the kernel."""
    settings, built, epoch = made.settings, made.kernel, made.prepared.epoch
    inputs = {
        **_signing(settings),
        "module": fs.sha256_file(made.module.path),
        "templates": fs.sha256_tree(settings.project / "debian" / "modules"),
        "example": fs.sha256_file(settings.project / deb.EXAMPLE),
        "recipe": recipe_of("ship/deb.py", "ship/versions.py"),
        "root": made.root.digest,
        "revision": str(settings.revision),
        "epoch": str(epoch),
    }
    log = made.where.log("packages-module")
    return _packages(
        made.where.version / "packages-module",
        f"the module for {built.release}",
        inputs,
        lambda out: deb.build_prebuilt(
            settings, made.root, built, _module(made), epoch=epoch, log=log, out=out
        ),
        kept=_kept(made, made.module.path.name + mok.SUFFIX),
    )


# Packages that the targets of a suite share.


def dkms_packages(made: Made) -> Result[tuple[Package, ...]]:
    """Return the package with the module's source."""
    project = made.settings.project
    inputs = {
        "module": fs.sha256_tree(project / "kmod"),
        "dkms": fs.sha256_tree(project / "dkms"),
        # Not the base's time: kernels of several bases share the package, and its bytes.
        "epoch": str(versions.module_epoch(project)),
    }
    return _shared(made, shared.DKMS, dkms.build_package, "ship/dkms.py", inputs)


def guard_packages(made: Made) -> Result[tuple[Package, ...]]:
    """Return the package that leads a server back from a bad kernel."""
    inputs = {"guard": fs.sha256_tree(made.settings.project / "guard")}
    build = guard_package.build_package
    return _shared(made, shared.GUARD, build, "ship/guard_package.py", inputs)


def tool_packages(made: Made) -> Result[tuple[Package, ...]]:
    """Return the package of the tool that shows the module's file."""
    inputs = {"tool": tool_package.digest(made.settings.project)}
    return _shared(made, shared.TOOL, tool_package.build_package, "ship/tool_package.py", inputs)


def _shared(
    made: Made,
    package: SharedPackage,
    build: Callable[..., tuple[Package, ...]],
    recipe: str,
    inputs: Mapping[str, str],
) -> Result[tuple[Package, ...]]:
    settings, root = made.settings, made.root
    inputs = {
        **inputs,
        "templates": fs.sha256_tree(settings.project / "debian" / package.role),
        "recipe": recipe_of(recipe, "ship/deb.py", "ship/shared.py", "ship/versions.py"),
        "root": root.digest,
    }
    log = made.where.log(package.results)
    return _packages(
        settings.build / root.suite / package.results,
        package.name,
        inputs,
        lambda out: build(settings, root, log=log, out=out),
    )


# Signatures for Secure Boot, if a key is configured.


def _signing(settings: Settings) -> dict[str, str]:
    """Return what decides whether packages are signed, and by which key."""
    found = mok.certificates(settings)
    return {"certificate": found[0].digest} if found else {}


def _kept(made: Made, *names: str) -> tuple[Path, ...]:
    """Return the files in the directory of signatures that packages are made with."""
    there = mok.configured(made.settings)
    return tuple(made.where.signatures / name for name in names) if there else ()


def _signatures(made: Made) -> list[Path]:
    """Return the directories of signatures that may fit: of the last build, and of releases."""
    # After a clean, a release's packages are only equal with the signatures that it has.
    return [made.where.signatures, *sorted(made.settings.archive.glob("releases/*"))]


def _sign_kernel(made: Made) -> Path:
    """Sign the image, and modules that nothing has signed; return their directory."""
    settings, built, home = made.settings, made.kernel, made.where.signatures
    home.mkdir(parents=True, exist_ok=True)
    fs.write_if_changed(home / mok.CERTIFICATE, mok.certificates(settings)[0].pem)
    mok.sign_kernel(settings, deb.image(built), _signatures(made), home)
    fs.remove_tree(home / "modules")
    top = built.modules
    # Modules of Debian's flavours have a signature: Debian's, or of the key of a full build.
    if top is not None and made.target.flavour not in suites.DEBIAN_FLAVOURS:
        for path in sorted(top.rglob("*.ko")):
            _sign_module(made, path, f"modules/{path.relative_to(top)}")
    return home


def _module(made: Made) -> Path:
    """Return our module for its package, signed if a key is configured."""
    path = made.module.path
    return _sign_module(made, path, path.name) if mok.configured(made.settings) else path


def _sign_module(made: Made, path: Path, name: str) -> Path:
    return mok.sign_module(
        made.settings,
        made.root,
        path,
        _signatures(made),
        made.where.signatures,
        scripts=made.kernel.output / "scripts",
        name=name,
    )


# The list.


def repository(made: Made) -> Result[Path]:
    """Return the repository with this target's packages and those of every other target."""
    settings, built = made.settings, made.kernel
    build = manifest.build_record(settings, built, made.root, made.prepared.epoch)
    mine = manifest.describe(settings, [built], made.packages, made.seconds, build=build)
    return publishing.repository(settings, made.where.home, mine)


STAGES = (
    Stage("fetch", "base", fetched),
    Stage("unpack", "prepared", prepared),
    Stage("root", "root", compile_root),
    Stage("kernel", "kernel", kernel),
    Stage("kernel packages", "kernel_packages", kernel_packages),
    Stage("module", "module", built_module),
    Stage("module packages", "module_packages", module_packages),
    Stage("DKMS packages", "dkms_packages", dkms_packages),
    Stage("guard package", "guard_packages", guard_packages),
    Stage("tool package", "tool_packages", tool_packages),
    Stage("repository", "repo", repository),
)


def package(settings: Settings, target: Target, *, modules: str = "auto") -> Made:
    """Do the main job: from the archive to an apt repository with every package in it.

    Raises SigningError before anything is made if a key for Secure Boot is configured and cannot
    sign, and what the stages raise.
    """
    mok.check(settings)
    made = stage.run(STAGES, Made(settings, target, modules))
    logger.info("packaged %s in %s", made.kernel.release, stage.times(made))
    return made


def build_kernel(settings: Settings, target: Target, *, modules: str = "auto") -> BuiltKernel:
    """Fetch, patch, configure and compile; returns at once when nothing changed."""
    return stage.run(_until("kernel"), Made(settings, target, modules)).kernel


def package_kernel(settings: Settings, target: Target, *, modules: str = "auto") -> Made:
    """Build a kernel and make its packages, whatever state the module is in.

    Raises what :func:`package` raises.
    """
    mok.check(settings)
    return stage.run(_until("kernel packages"), Made(settings, target, modules))


def build_module(settings: Settings, target: Target, *, modules: str = "auto") -> BuiltModule:
    """Build our module against the headers package of the target's kernel."""
    return stage.run(_until("module"), Made(settings, target, modules)).module


def explain(settings: Settings, target: Target, *, modules: str = "auto") -> tuple[Step, ...]:
    """Say for each stage of :func:`package` whether it would run, and why; changes nothing.

    Reads only the cache, so it does not know of changes in the archive since the last run.
    """
    return tuple(stage.explain(STAGES, Made(settings, target, modules)))


def _until(last: str) -> tuple[Stage, ...]:
    names = [one.name for one in STAGES]
    return STAGES[: names.index(last) + 1]


# Parts of several stages.


def recipe_of(*names: str) -> str:
    """Return the digest of modules of kbuild that decide a result."""
    return recipe.digest(*(_KBUILD / name for name in names))


def _mark(out: Path) -> Path:
    return out.with_name(f"{out.name}.json")


def _packages(
    out: Path,
    what: str,
    inputs: Mapping[str, str],
    build: Callable[[Path], tuple[Package, ...]],
    *,
    kept: Sequence[Path] = (),
) -> Result[tuple[Package, ...]]:
    """Return the packages in ``out`` as a result; a list of them lies next to it.

    ``kept`` are further files next to it that are made with them.
    """
    listing = out.with_name(f"{out.name}.list")

    def make(_: Path) -> list[Path]:
        made = build(out)
        fs.write_json(listing, [dataclasses.asdict(p) | {"path": str(p.path)} for p in made])
        return [listing, *sorted(out.iterdir()), *kept]

    def parse(raw: list[dict[str, Any]]) -> tuple[Package, ...]:
        # The checkout may have moved since.
        return tuple(Package(**{**one, "path": out / Path(one["path"]).name}) for one in raw)

    def read() -> tuple[Package, ...] | None:
        packages, last = fs.read_json(listing, parse), stamp.read(_mark(out))
        if not packages or last is None:
            return None
        for package in packages:
            recorded = last.outputs.get(f"{out.name}/{package.path.name}")
            # A stamp that was written anew knows the files as they were then.
            if recorded and recorded.entry and recorded.entry.sha256 != package.sha256:
                return None
        return packages

    lock = out.with_name(f".{out.name}.lock")
    return results.kept(_mark(out), inputs, make, read, lock=lock, doing=f"packaging {what}")


def _headers_package(made: Made) -> Package:
    name = versions.headers_package(made.kernel.release)
    return next(one for one in made.kernel_packages if one.name == name)


def kernel_headers(made: Made) -> Path:
    """Return the kernel's headers package, unpacked, which modules for it are built against."""
    package = _headers_package(made)
    out = made.where.version / "headers"
    _extracted(out, {"headers": package.sha256}, [package.path])
    return out / "usr/src" / package.name


def debian_headers(settings: Settings, base: Base) -> Headers:
    """Return the headers of Debian's own kernel, its packages unpacked into one tree."""
    out = settings.build / base.suite / f"headers-{base.release}_{base.version}"
    files = {file.path: file.sha256 for file in (base.headers, *base.support)}
    _extracted(out, {path.name: sha256 for path, sha256 in files.items()}, [*files])
    return module.debian(out, base.release)


def _extracted(out: Path, inputs: Mapping[str, str], debs: Sequence[Path]) -> None:
    def make(_: Path) -> list[Path]:
        with fs.fresh_directory(out) as unpacked:
            for path in debs:
                unpack.extract(path, unpacked)
        return [out]

    lock = out.with_name(f".{out.name}.lock")
    doing = f"unpacking {debs[0].name}"
    results.kept(_mark(out), inputs, make, lambda: out, lock=lock, doing=doing).ensure()

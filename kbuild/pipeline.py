"""From a target to an apt repository: the stages in their order, each run only if it must.

Arrows go one way: fetch → patch → compile → package → repository → guest image.  Each
stage has a manifest of its inputs beside its result (:mod:`kbuild.core.stamp`); this module
knows where the results lie and what goes into each.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kbuild.core import fs, progress, recipe, stamp
from kbuild.core.errors import BuildError, InfrastructureError
from kbuild.core.model import Base, BuiltKernel, Package, Root, Settings, Target, Tree
from kbuild.fetch import roots, source, unpack
from kbuild.guest import image
from kbuild.guest.image import GuestImage
from kbuild.kernel import compilation, guard, module, patches, planning, quilt
from kbuild.kernel.module import BuiltModule, Headers
from kbuild.ship import deb, dkms, manifest, publishing, repo, versions
from kbuild.ship.manifest import Manifest, Output

logger = logging.getLogger(__name__)

_EARLIER = "an earlier stage runs first"
_UNKNOWN = "what is known of it is damaged"
# Every stage of ``package``, in the order in which they run.
STAGES = (
    "fetch",
    "unpack",
    "root",
    "kernel",
    "kernel packages",
    "module",
    "module packages",
    "DKMS packages",
    "repository",
)


@dataclass(frozen=True)
class Packaged:
    """What ``package`` leaves: packages, the repository that holds them, and its manifest."""

    kernel: BuiltKernel
    module: BuiltModule
    packages: tuple[Package, ...]
    repo: Path
    manifest: Path


@dataclass(frozen=True)
class PackagedKernel:
    """A compiled kernel and its packages, before any module is built for it."""

    prepared: Prepared
    root: Root  # that it was compiled in, and modules for it are
    kernel: BuiltKernel
    packages: tuple[Package, ...]


@dataclass(frozen=True)
class Step:
    """One stage as ``explain`` sees it; ``reason`` None means that its result is current."""

    name: str
    reason: str | None


@dataclass(frozen=True)
class Prepared:
    """Everything that a kernel is compiled from."""

    base: Base
    pristine: Path  # the distro's source
    distro_image: Path  # unpacked
    distro_headers: Path  # unpacked
    tree: Tree
    plan: planning.Plan
    epoch: int  # seconds since 1970, of the distro's own build


@dataclass(frozen=True)
class Places:
    """Where the results of a target lie."""

    home: Path  # of the target, whatever the version
    version: Path  # of one version of its base
    logs: Path
    name: str

    def log(self, stage: str) -> Path:
        """Return the log file of a stage."""
        return self.logs / f"{stage}-{self.name}.log"


def places(settings: Settings, target: Target, base: Base) -> Places:
    """Return where the results of a target lie."""
    home = settings.build / target.suite / target.name
    return Places(
        home, home / base.version, settings.build / "logs", f"{target.suite}-{target.name}"
    )


def _tree_path(settings: Settings, target: Target, base: Base) -> Path:
    # Flavours of one suite share a tree: the series is chosen by version alone.
    return settings.build / target.suite / f"source-{base.version}"


def prepare(settings: Settings, target: Target, base: Base, *, modules: str = "auto") -> Prepared:
    """Unpack and patch, and put together what decides the kernel; compiles nothing.

    Raises GuardError where the distro's modules would be kept and the series changes types.
    """
    pristine = unpack.unpack(settings, base)
    series = quilt.choose(settings.project / "patches", base.upstream)
    tree = patches.apply(
        pristine, series, _tree_path(settings, target, base), base_version=base.version
    )
    for used in (tree.path, places(settings, target, base).version):
        fs.mark_used(used)
    prepared = _plan(settings, target, base, pristine, tree, modules)
    if prepared.plan.method == "fast":
        known = [name for name in tree.changed if (pristine / name).is_file()]
        guard.check_types(pristine, tree.path, known)
    return prepared


def _plan(
    settings: Settings, target: Target, base: Base, pristine: Path, tree: Tree, modules: str
) -> Prepared:
    distro_image = unpack.unpack_image(settings, base)
    distro_headers = unpack.unpack_deb(settings, base.headers)
    epoch = deb.changelog_epoch(distro_image, base.image.name)
    plan = planning.make_plan(
        settings,
        target,
        base,
        release=versions.release(base.abi, target.flavour, target.variant),
        package_version=versions.package_version(base.version, settings.revision),
        distro_config=distro_headers / "usr/src" / f"linux-headers-{base.release}" / ".config",
        timestamp=epoch,
        pristine=pristine,
        modules=modules,
    )
    return Prepared(base, pristine, distro_image, distro_headers, tree, plan, epoch)


def build_kernel(settings: Settings, target: Target, *, modules: str = "auto") -> BuiltKernel:
    """Fetch, patch, configure and compile; returns at once when nothing changed."""
    base = source.fetch(settings, target)
    prepared = prepare(settings, target, base, modules=modules)
    return compile_kernel(settings, _compile_root(settings, prepared.plan), prepared)


def _compile_root(settings: Settings, plan: planning.Plan) -> Root:
    """Return the suite's root, made again if the distro has a newer compiler than it holds.

    A point release may bring a compiler with it, and the next kernel is built with that.
    """
    root = roots.compile_root(settings, plan.target.suite)
    why = _why_refresh(settings, root, plan)
    if why is None:
        return root
    return roots.compile_root(settings, plan.target.suite, refresh=why)


def _why_refresh(settings: Settings, root: Root, plan: planning.Plan) -> str | None:
    wanted = planning.distro_compiler(plan)
    if wanted is None or compilation.compiler_version(root) == wanted or settings.offline:
        return None
    return f"its compiler is not the distro's ({wanted})"


def compile_kernel(settings: Settings, root: Root, prepared: Prepared) -> BuiltKernel:
    """Configure and compile what was prepared; raises what :func:`compilation.kernel` raises."""
    return compilation.kernel(
        settings,
        root,
        prepared.plan,
        prepared.tree,
        distro_image=prepared.distro_image,
        distro_headers=prepared.distro_headers,
        home=places(settings, prepared.plan.target, prepared.base).version,
        before=lambda: patches.mend(prepared.pristine, prepared.tree),
    ).ensure()


def package_kernel(settings: Settings, target: Target, *, modules: str = "auto") -> PackagedKernel:
    """Build a kernel and make its packages; nothing of the module is looked at."""
    base = source.fetch(settings, target)
    prepared = prepare(settings, target, base, modules=modules)
    root = _compile_root(settings, prepared.plan)
    built = compile_kernel(settings, root, prepared)
    return PackagedKernel(prepared, root, built, pack_kernel(settings, root, prepared, built))


def pack_kernel(
    settings: Settings, root: Root, prepared: Prepared, built: BuiltKernel
) -> tuple[Package, ...]:
    """Make the packages of a compiled kernel, or return those that are current."""
    where = places(settings, built.target, built.base)

    def make(out: Path) -> tuple[Package, ...]:
        # The headers are copied from the source.
        patches.mend(prepared.pristine, prepared.tree)
        log = where.log("packages-kernel")
        return deb.build_kernel_packages(
            settings, root, built, epoch=prepared.epoch, log=log, out=out
        )

    return _packages(
        where.version / "packages-kernel",
        f"the kernel {built.release}",
        _kernel_package_inputs(settings, built.digest, root, prepared.epoch),
        make,
    )


def package(settings: Settings, target: Target, *, modules: str = "auto") -> Packaged:
    """Do the main job: from the archive to an apt repository with every package in it."""
    began = time.monotonic()
    done = package_kernel(settings, target, modules=modules)
    root, built, kernel_packages = done.root, done.kernel, done.packages
    epoch = done.prepared.epoch
    where = places(settings, target, built.base)
    made = _build_module(settings, where, done)
    module_packages = _packages(
        where.version / "packages-module",
        f"the module for {built.release}",
        _module_package_inputs(settings, made, root, epoch),
        lambda out: deb.build_prebuilt(
            settings, root, built, made.path, epoch=epoch, log=where.log("packages-module"), out=out
        ),
    )
    dkms_packages = _dkms_packages(settings, where, root, epoch)
    packages = (*kernel_packages, *module_packages, *dkms_packages)
    seconds = {"kernel": built.seconds, "module": made.seconds} | {
        mark.stem: last.seconds
        for mark in sorted(where.version.glob("packages-*.json"))
        if (last := stamp.read(mark)) is not None
    }
    _publish(settings, where, manifest.describe(settings, [built], packages, seconds))
    logger.info("packaged %s in %s", built.release, progress.duration(time.monotonic() - began))
    return Packaged(
        built, made, packages, settings.build / "repo", settings.build / "manifest.json"
    )


def build_module(settings: Settings, target: Target, *, modules: str = "auto") -> BuiltModule:
    """Build our module against the headers package of the target's kernel."""
    return package(settings, target, modules=modules).module


def _kernel_package_inputs(
    settings: Settings, kernel_digest: str, root: Root, epoch: int
) -> dict[str, str]:
    return {
        "kernel": kernel_digest,
        "templates": fs.sha256_tree(settings.project / "debian" / "kernel"),
        "recipe": _recipe("ship/deb.py", "ship/headers.py", "ship/versions.py"),
        "root": root.digest,
        "revision": str(settings.revision),
        "epoch": str(epoch),
    }


def _module_inputs(settings: Settings, headers_sha256: str, root: Root) -> dict[str, str]:
    return {
        "headers": headers_sha256,
        "module": fs.sha256_tree(settings.project / "kmod"),
        "recipe": _recipe("kernel/module.py"),
        "root": root.digest,
    }


def _module_package_inputs(
    settings: Settings, made: BuiltModule, root: Root, epoch: int
) -> dict[str, str]:
    return {
        "module": fs.sha256_file(made.path),
        "templates": fs.sha256_tree(settings.project / "debian" / "modules"),
        "example": fs.sha256_file(settings.project / deb.EXAMPLE),
        "recipe": _recipe("ship/deb.py", "ship/versions.py"),
        "root": root.digest,
        "revision": str(settings.revision),
        "epoch": str(epoch),
    }


def _dkms_inputs(settings: Settings, root: Root, epoch: int) -> dict[str, str]:
    return {
        "module": fs.sha256_tree(settings.project / "kmod"),
        "dkms": fs.sha256_tree(settings.project / "dkms"),
        "templates": fs.sha256_tree(settings.project / "debian" / "dkms"),
        "recipe": _recipe("ship/dkms.py", "ship/deb.py", "ship/versions.py"),
        "root": root.digest,
        "epoch": str(epoch),
    }


def _dkms_place(settings: Settings, suite: str) -> Path:
    return settings.build / suite / "packages-dkms"


def _dkms_packages(
    settings: Settings, where: Places, root: Root, epoch: int
) -> tuple[Package, ...]:
    return _packages(
        _dkms_place(settings, root.suite),
        dkms.PACKAGE,
        _dkms_inputs(settings, root, epoch),
        lambda out: dkms.build_package(
            settings, root, epoch=epoch, log=where.log("packages-dkms"), out=out
        ),
    )


def _recipe(*names: str) -> str:
    here = Path(__file__).parent
    return recipe.digest(*(here / name for name in names))


def _packages(
    out: Path,
    what: str,
    inputs: Mapping[str, str],
    make: Callable[[Path], tuple[Package, ...]],
) -> tuple[Package, ...]:
    """Return the packages in ``out``, made by ``make`` if inputs changed or one is damaged."""
    mark, listing = _mark(out), _listing(out)
    with fs.lock(out.with_name(f".{out.name}.lock")):
        why = stamp.due(mark, inputs)
        known = None if why else _listed(out)
        if known is not None:
            return known
        logger.info("packaging %s: %s", what, why or _UNKNOWN)
        began = time.monotonic()
        mark.unlink(missing_ok=True)
        made = make(out)
        fs.write_json(listing, [dataclasses.asdict(p) | {"path": str(p.path)} for p in made])
        stamp.write(mark, inputs, [listing, *sorted(out.iterdir())], time.monotonic() - began)
    return made


def _listed(out: Path) -> tuple[Package, ...] | None:
    """Return the packages that the list next to ``out`` names; None unless they are these."""

    def parse(raw: list[dict[str, Any]]) -> tuple[Package, ...]:
        # A checkout may have been moved since.
        return tuple(Package(**{**one, "path": out / Path(one["path"]).name}) for one in raw)

    packages, last = fs.read_json(_listing(out), parse), stamp.read(_mark(out))
    if packages is None or last is None:
        return None
    for package in packages:
        recorded = last.outputs.get(f"{out.name}/{package.path.name}")
        # A stamp that was written anew knows the files as they were then.
        if recorded and recorded.entry and recorded.entry.sha256 != package.sha256:
            return None
    return packages


def _listing(out: Path) -> Path:
    return out.with_name(f"{out.name}.list")


def _mark(out: Path) -> Path:
    return out.with_name(f"{out.name}.json")


def _headers_package(packages: Sequence[Package], release: str) -> Package:
    return next(one for one in packages if one.name == versions.headers_package(release))


def _headers_tree(where: Places, release: str) -> Path:
    return where.version / "headers" / "usr/src" / versions.headers_package(release)


def kernel_headers(settings: Settings, done: PackagedKernel) -> Path:
    """Return the kernel's headers package, unpacked: what a module for it is built against."""
    built = done.kernel
    where = places(settings, built.target, built.base)
    headers = _headers_package(done.packages, built.release)
    out = where.version / "headers"
    mark, inputs = _mark(out), {"headers": headers.sha256}
    with fs.lock(where.version / ".headers.lock"):
        if stamp.due(mark, inputs) is not None:
            mark.unlink(missing_ok=True)
            with fs.fresh_directory(out) as unpacked:
                unpack.extract(headers.path, unpacked)
            stamp.write(mark, inputs, [out], 0.0)
    return _headers_tree(where, built.release)


def debian_headers(settings: Settings, base: Base) -> Headers:
    """Return the headers of Debian's own kernel, its packages unpacked into one tree."""
    out = settings.build / base.suite / f"headers-{base.release}_{base.version}"
    files = (base.headers, *base.support)
    mark, inputs = _mark(out), {file.path.name: file.sha256 for file in files}
    with fs.lock(out.with_name(f".{out.name}.lock")):
        if stamp.due(mark, inputs) is not None:
            mark.unlink(missing_ok=True)
            with fs.fresh_directory(out) as unpacked:
                for file in files:
                    unpack.extract(file.path, unpacked)
            stamp.write(mark, inputs, [out], 0.0)
    return module.debian(out, base.release)


def _build_module(settings: Settings, where: Places, done: PackagedKernel) -> BuiltModule:
    """Build our module against nothing but the headers package, which proves that package."""
    built, root = done.kernel, done.root
    headers = _headers_package(done.packages, built.release)
    inputs = _module_inputs(settings, headers.sha256, root)
    out = where.version / "module"
    mark, state = _mark(out), where.version / "module.built"
    with fs.lock(where.version / ".module.lock"):
        why = stamp.due(mark, inputs)
        known = None if why else _built(where)
        if known is not None:
            return known
        logger.info("building the module for %s: %s", built.release, why or _UNKNOWN)
        mark.unlink(missing_ok=True)
        made = module.build(
            settings,
            root,
            headers=kernel_headers(settings, done),
            release=built.release,
            out=out,
            log=where.log("module"),
        )
        fs.write_json(state, dataclasses.asdict(made) | {"path": str(made.path)})
        stamp.write(mark, inputs, [state, made.path], made.seconds)
    return made


def _built(where: Places) -> BuiltModule | None:
    """Return what is known of the module that was built last; None if that is damaged."""

    def parse(raw: dict[str, Any]) -> BuiltModule:
        path = where.version / "module" / Path(raw["path"]).name
        return BuiltModule(**{**raw, "path": path, "backends": tuple(raw["backends"])})

    return fs.read_json(where.version / "module.built", parse)


def _publish(settings: Settings, where: Places, mine: Manifest) -> None:
    """Bring the repository and the manifest to hold a target's packages, beside the others'.

    Each target keeps a record of its own, in the manifest's format; the manifest is their
    sum.  Raises BuildError, and leaves the repository as it was, where the packages of
    another target would be missing from it.
    """
    with fs.lock(settings.build / ".publish.lock"):
        manifest.write(where.home / manifest.RECORD, mine)
        parts = publishing.whole(settings, where.home, mine)
        everything = dataclasses.replace(
            mine,
            kernels=tuple(one for part in parts for one in part.record.kernels),
            outputs=tuple(one for part in parts for one in part.record.outputs),
        )
        inputs = _repository_inputs(everything.outputs)
        mark = _mark(settings.build / "repo")
        if stamp.due(mark, inputs) is not None:
            began = time.monotonic()
            by_suite: dict[str, list[Package]] = {}
            for part in parts:
                by_suite.setdefault(part.suite, []).extend(
                    Package(
                        one.name,
                        one.version,
                        one.architecture,
                        settings.build / one.path,
                        one.sha256,
                    )
                    for one in part.record.outputs
                )
            stamp.write(mark, inputs, [repo.publish(settings, by_suite)], time.monotonic() - began)
        manifest.write(settings.build / "manifest.json", everything)


def _repository_inputs(outputs: Iterable[Output]) -> dict[str, str]:
    return {one.path: one.sha256 for one in outputs} | {"recipe": _recipe("ship/repo.py")}


def prebuilt_module(done: Packaged) -> Path:
    """Return the package with our module built for the kernel, among what ``package`` made."""
    name = versions.modules_package(done.kernel.release)
    return next(one.path for one in done.packages if one.name == name)


def guest_image(settings: Settings, target: Target, done: Packaged) -> GuestImage:
    """Return a bootable disk with the packages of the target installed, and Debian's kernel."""
    base = done.kernel.base
    where = places(settings, target, base)
    names = deb.kernel_names(done.kernel)
    return image.make(
        roots.guest_root(settings, target.suite),
        repo=done.repo,
        packages=[names.image_meta, names.headers_meta, dkms.PACKAGE],
        debs=[file.path for file in base.packages],
        tested=settings.project / "kmod" / "format.h",
        home=where.home / "guest",
        inputs={f"package {one.name}": one.sha256 for one in done.packages},
        log=where.log("guest"),
    )


def stock_image(settings: Settings, target: Target) -> GuestImage:
    """Return a bootable disk with Debian's own kernel alone, and our module built by DKMS for it.

    No kernel is compiled for it, so that a suite can be judged minutes after it was asked for.
    """
    base = source.fetch(settings, target)
    where = places(settings, target, base)
    epoch = deb.changelog_epoch(unpack.unpack_image(settings, base), base.image.name)
    packages = _dkms_packages(settings, where, roots.compile_root(settings, target.suite), epoch)
    return image.make(
        roots.guest_root(settings, target.suite),
        repo=None,
        packages=[],
        debs=[*(file.path for file in base.packages), *(one.path for one in packages)],
        tested=settings.project / "kmod" / "format.h",
        home=where.home / "stock",
        inputs={},
        log=where.log("stock"),
    )


def lab_image(settings: Settings, done: PackagedKernel, *, tools: Sequence[str] = ()) -> GuestImage:
    """Return a bootable disk with a kernel and Debian's own, and without our module.

    An edit of the module changes neither the disk nor a snapshot of its guest.  With
    ``tools``, which are further Debian packages, it is a disk of its own.
    """
    built, base = done.kernel, done.kernel.base
    where = places(settings, built.target, base)
    names = deb.kernel_names(built)
    ours = [one.path for one in done.packages if one.name in (names.image, names.headers)]
    if tools:
        packages = (*roots.guest_packages(built.target.suite), *tools)
        root = roots.make_root(settings, built.target.suite, "guest-tools", packages)
    else:
        root = roots.guest_root(settings, built.target.suite)
    name = "lab-tools" if tools else "lab"
    return image.make(
        root,
        repo=None,
        packages=[],
        debs=[*ours, *(file.path for file in base.packages)],
        tested=settings.project / "kmod" / "format.h",
        home=where.home / name,
        inputs={},
        log=where.log(name),
    )


def check_module(settings: Settings, target: Target, done: Packaged) -> None:
    """Compile the module with all warnings and sparse, and read it with checkpatch --strict."""
    where = places(settings, target, done.kernel.base)
    headers = module.whole(_headers_tree(where, done.kernel.release))
    root = roots.compile_root(settings, target.suite)
    _check_module(settings, where, root, done.kernel.digest, headers, done.kernel.source)


def check_stock_module(settings: Settings, target: Target) -> None:
    """Do the same as :func:`check_module` against the headers of Debian's own kernel."""
    base = source.fetch(settings, target)
    where = places(settings, target, base)
    headers = debian_headers(settings, base)
    digest = stamp.digest({file.name: file.sha256 for file in (base.headers, *base.support)})
    root = roots.compile_root(settings, target.suite)
    tree = unpack.unpack(settings, base)
    _check_module(settings, where, root, digest, headers, tree, name="lint-stock")


def _check_module(
    settings: Settings,
    where: Places,
    root: Root,
    digest: str,
    headers: Headers,
    tree: Path,
    *,
    name: str = "lint",
) -> None:
    inputs = {
        "module": fs.sha256_tree(settings.project / "kmod"),
        "kernel": digest,
        "recipe": _recipe("kernel/module.py"),
    }
    mark = where.version / f"{name}.json"
    why = stamp.reason(mark, inputs)
    if why is None:
        return
    logger.info("checking the module with W=1, sparse and checkpatch: %s", why)
    began = time.monotonic()
    module.lint(
        settings,
        root,
        headers=headers,
        tree=tree,
        scratch=where.version / name,
        log=where.log(name),
    )
    stamp.write(mark, inputs, [], time.monotonic() - began)


def check_packages(settings: Settings, target: Target, done: Packaged) -> None:
    """Read every package set with lintian, those alone that changed since it last did."""
    where = places(settings, target, done.kernel.base)
    for out in sorted({one.path.parent for one in done.packages}):
        inputs = {one.path.name: one.sha256 for one in done.packages if one.path.parent == out}
        mark = out.with_name(f"{out.name}.lintian.json")
        why = stamp.reason(mark, inputs | {"recipe": _recipe("ship/deb.py")})
        if why is None:
            continue
        logger.info("reading %s with lintian: %s", out.name, why)
        began = time.monotonic()
        deb.lint(
            roots.compile_root(settings, target.suite),
            sorted(out.glob("*.changes")),
            log=where.log(f"lintian-{out.name}"),
        )
        seconds = time.monotonic() - began
        stamp.write(mark, inputs | {"recipe": _recipe("ship/deb.py")}, [], seconds)
        logger.info("lintian has nothing to say (%s)", progress.duration(seconds))


def explain(settings: Settings, target: Target, *, modules: str = "auto") -> tuple[Step, ...]:
    """Say for each stage of ``package`` whether it would run, and why; changes nothing.

    Reads the cache alone: what the archive has that the last run did not see is not known.
    """
    steps: list[Step] = []
    for name, reason in _reasons(settings, target, modules):
        steps.append(Step(name, reason))
        if reason is not None:
            break
    return (*steps, *(Step(name, _EARLIER) for name in STAGES[len(steps) :]))


def _reasons(settings: Settings, target: Target, modules: str) -> Iterator[tuple[str, str | None]]:
    """Yield each stage with its reason; a stage after one with a reason cannot be asked."""
    stage = iter(STAGES)
    quiet = dataclasses.replace(settings, offline=True)
    try:
        base = source.base(quiet, source.resolve(quiet, target))
    except InfrastructureError as error:
        yield next(stage), error.what
        return
    missing = [file.path.name for file in base.files if not file.path.exists()]
    yield next(stage), f"not in the cache: {', '.join(missing)}" if missing else None

    packed = [file.path.name for file in unpack.not_unpacked(settings, base)]
    yield next(stage), f"not unpacked: {', '.join(packed)}" if packed else None
    series = quilt.choose(settings.project / "patches", base.upstream)
    pristine = unpack.unpack(quiet, base)
    tree = patches.foresee(
        pristine,
        series,
        _tree_path(settings, target, base),
        base_version=base.version,
    )
    prepared = _plan(quiet, target, base, pristine, tree, modules)

    needed = roots.compile_packages(target.suite)
    why = roots.why_make(settings, target.suite, "compile", needed)
    if why is None:
        root = roots.compile_root(quiet, target.suite)
        why = _why_refresh(settings, root, prepared.plan)
    yield next(stage), why

    where = places(settings, target, base)
    inputs = planning.plan_inputs(prepared.plan, tree.digest, root.digest)
    yield next(stage), stamp.reason(where.version / "kernel.json", inputs)

    out = where.version / "packages-kernel"
    inputs = _kernel_package_inputs(settings, stamp.digest(inputs), root, prepared.epoch)
    packages = _listed(out)
    why = stamp.reason(_mark(out), inputs)
    yield next(stage), why or (None if packages else _UNKNOWN)
    assert packages is not None
    made = list(packages)

    headers = _headers_package(made, prepared.plan.release)
    inputs = _module_inputs(settings, headers.sha256, root)
    built = _built(where)
    why = stamp.reason(where.version / "module.json", inputs)
    yield next(stage), why or (None if built else _UNKNOWN)
    assert built is not None

    for out, inputs in (
        (
            where.version / "packages-module",
            _module_package_inputs(settings, built, root, prepared.epoch),
        ),
        (_dkms_place(settings, target.suite), _dkms_inputs(settings, root, prepared.epoch)),
    ):
        packages = _listed(out)
        why = stamp.reason(_mark(out), inputs)
        yield next(stage), why or (None if packages else _UNKNOWN)
        assert packages is not None
        made += packages

    mine = Manifest(manifest.FORMAT, None, "", (), manifest.outputs(settings, made), {})
    try:
        parts = publishing.whole(dataclasses.replace(settings, dry=True), where.home, mine)
    except BuildError as error:
        yield next(stage), error.what
        return
    inputs = _repository_inputs(one for part in parts for one in part.record.outputs)
    yield next(stage), stamp.reason(_mark(settings.build / "repo"), inputs)

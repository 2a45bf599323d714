"""Build Debian packages of a kernel, and of a module built for it, with debhelper.

Python collects the content of each binary package below ``stage/`` and renders a debian/
directory from this project's templates.  dpkg-buildpackage does the rest in a root of the suite.
The kernel's own ``bindeb-pkg`` is no alternative: it cannot use modules from another package,
and it ships linux-libc-dev.
"""

from __future__ import annotations

import gzip
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from lzma import LZMAError
from pathlib import Path
from tarfile import TarError

import jinja2
from debian.arfile import ArError
from debian.changelog import Changelog
from debian.deb822 import Changes
from debian.debfile import DebError, DebFile

from kbuild.core import fs, sandbox, suites
from kbuild.core.errors import BuildError, KbuildError
from kbuild.core.model import MODULE, BuiltKernel, Package, Root, Settings
from kbuild.core.sandbox import Bind
from kbuild.ship import headers, versions

logger = logging.getLogger(__name__)

MAINTAINER = "cplayground-kernel maintainers <maintainers@cplayground-kernel.invalid>"

# xz's preset, measured on the cloud-amd64 image (docs/results/packages.md).
COMPRESSION = 1

_BUILD_TIMEOUT_S = 1800
_LINT_TIMEOUT_S = 900
_WORK = "/mnt/work"
# Names with a release and a version are as long as those of Debian's own kernels.  The tag also
# applies to the .changes file, which overrides do not reach.
_SUPPRESSED = ("package-has-long-file-name",)
# lintian prints "E: <package>: <tag> ...".
_TAG = re.compile(r"^[EW]: .*$", re.MULTILINE)


@dataclass(frozen=True)
class KernelNames:
    """The names of the binary packages of one kernel."""

    image: str
    headers: str
    image_meta: str
    headers_meta: str
    modules: str
    modules_meta: str


# The module's parameters for C Playground's server, relative to the project.
EXAMPLE = Path("kmod/cplayground.conf")


@dataclass(frozen=True)
class SourcePackage:
    """A source package to build: its templates and their values."""

    name: str
    version: str
    templates: Path  # becomes debian/; <role>.<file> gets the name of the role's package
    packages: Mapping[str, str]  # role -> binary package
    context: Mapping[str, object]  # more values for the templates


def kernel_names(kernel: BuiltKernel) -> KernelNames:
    """Return the names of the packages of a kernel and of a module for it."""
    flavour, variant = kernel.target.flavour, kernel.target.variant
    return KernelNames(
        image=versions.image_package(kernel.release),
        headers=versions.headers_package(kernel.release),
        image_meta=versions.image_meta(flavour, variant),
        headers_meta=versions.headers_meta(flavour, variant),
        modules=versions.modules_package(kernel.release),
        modules_meta=versions.modules_meta(flavour, variant),
    )


def changelog_epoch(content: Path, package: str) -> int:
    """Return the time of a package's newest changelog entry, in seconds since 1970.

    ``content`` contains the package's files.  Debian built the package with this time
    (SOURCE_DATE_EPOCH).  Raises BuildError if there is no changelog.
    """
    # Policy 12.7: a native package has only Debian's changelog.
    for name in ("changelog.Debian.gz", "changelog.gz"):
        path = content / "usr/share/doc" / package / name
        if path.is_file():
            with gzip.open(path) as stream:
                newest = Changelog(stream, max_blocks=1)
            if newest.date is not None:
                return int(parsedate_to_datetime(newest.date).timestamp())
    raise BuildError(f"{package} has no changelog to take its date from", expected=str(path))


def build_kernel_packages(
    settings: Settings,
    root: Root,
    kernel: BuiltKernel,
    *,
    epoch: int,
    log: Path,
    out: Path,
    signed: Path | None = None,
) -> tuple[Package, ...]:
    """Build the image, the headers and their meta packages; replaces ``out``.

    ``epoch`` (seconds since 1970) is the time of the changelog and of every file, so the same
    kernel gives the same packages.  ``signed`` is as :func:`stage_image` takes it.
    Raises BuildError if the kernel lacks a file that the packages need, or if debhelper fails.
    """
    names = kernel_names(kernel)
    base = kernel.base
    row = suites.suite(base.suite)
    source = SourcePackage(
        name=versions.source_package(kernel.target.flavour, kernel.target.variant),
        version=versions.package_version(base.version, settings.revision),
        templates=settings.project / "debian" / "kernel",
        packages={
            "image": names.image,
            "headers": names.headers,
            "image-meta": names.image_meta,
            "headers-meta": names.headers_meta,
        },
        context={
            "names": asdict(names),
            "base_version": base.version,
            "base_release": base.release,
            "suite": row.codename,
            "upstream": base.upstream,
            "series": ".".join(base.upstream.split(".")[:2]),
            "series_name": kernel.series.name,
            "patches": [patch.description for patch in kernel.series.patches],
            "exports": kernel.series.exports,
            "flavour": versions.flavour_name(kernel.target.flavour, kernel.target.variant),
            "release": kernel.release,
            "method": kernel.method,
            "compiler": row.compiler_package,
        },
    )

    def collect(stage: Path) -> None:
        stage_image(kernel, stage / "image", signed=signed)
        headers.stage(kernel, stage / "headers", compiler=row.compiler)

    return build(root, source, collect, epoch=epoch, log=log, out=out)


def build_prebuilt(
    settings: Settings,
    root: Root,
    kernel: BuiltKernel,
    module_ko: Path,
    *,
    epoch: int,
    log: Path,
    out: Path,
) -> tuple[Package, ...]:
    """Build the package of our module for one kernel, and its meta package.

    It has its own source package, so an edit of the module does not rebuild the kernel's packages.
    """
    names = kernel_names(kernel)
    kernel_version = versions.package_version(kernel.base.version, settings.revision)
    module_version = versions.module_version(settings.project)
    source = SourcePackage(
        name=versions.modules_meta(kernel.target.flavour, kernel.target.variant),
        version=versions.prebuilt_version(module_version, kernel_version),
        templates=settings.project / "debian" / "modules",
        packages={"modules": names.modules, "modules-meta": names.modules_meta},
        context={
            "names": asdict(names),
            "kernel_version": kernel_version,
            "module_version": module_version,
            "suite": suites.suite(kernel.base.suite).codename,
            "flavour": versions.flavour_name(kernel.target.flavour, kernel.target.variant),
            "release": kernel.release,
        },
    )

    def collect(stage: Path) -> None:
        _copy(module_ko, stage / f"modules/lib/modules/{kernel.release}/extra/{module_ko.name}")
        _copy(settings.project / EXAMPLE, stage / EXAMPLE.name)
        load_at_boot(stage / "modules", kernel.release)

    return build(root, source, collect, epoch=epoch, log=log, out=out)


def load_at_boot(stage: Path, suffix: str) -> None:
    """Collect the file by which a machine loads our module at each boot.

    systemd reads it, and kmod's init script.  A kernel without the module boots as ever: systemd
    has ignored a module that is missing since version 244, and so does kmod.  Two packages cannot
    have the same file, so ``suffix`` is part of its name; the second one changes nothing.
    """
    path = stage / f"usr/lib/modules-load.d/{MODULE}-{suffix}.conf"
    fs.write_atomic(path, f"{MODULE}\n")


def stage_image(kernel: BuiltKernel, stage: Path, *, signed: Path | None = None) -> None:
    """Collect the content of linux-image: boot/ and lib/modules/<release>, nothing stripped.

    ``signed`` is a directory with ``vmlinuz`` in place of the kernel's own image, and with signed
    ones of its modules in ``modules/``.
    """
    release = kernel.release
    built = headers.built_release(kernel.output)
    if built != release:
        raise BuildError("the kernel has another release", expected=release, found=built)
    for origin, name in (
        (signed / "vmlinuz" if signed else image(kernel), "vmlinuz"),
        (kernel.output / "System.map", "System.map"),
        (kernel.config, "config"),
    ):
        _copy(origin, stage / f"boot/{name}-{release}")
    modules = stage / "lib/modules" / release
    if kernel.modules is None:
        # A kernel without modules of its own still takes ours, and depmod needs these files.
        for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            if (kernel.output / name).exists():
                _copy(kernel.output / name, modules / name)
        if not (modules / "modules.order").exists():
            fs.write_atomic(modules / "modules.order", "")
        return
    for origin in _files(kernel.modules):
        relative = origin.relative_to(kernel.modules)
        if relative.parts[0] in ("build", "source") or _is_depmod_output(relative):
            continue
        own = signed / "modules" / relative if signed else origin
        _copy(own if own.exists() else origin, modules / relative)
    if not (modules / "modules.builtin").exists():
        raise BuildError(
            "the modules have no list of what is built in",
            expected=str(kernel.modules / "modules.builtin"),
        )


def image(kernel: BuiltKernel) -> Path:
    """Return the image that the kernel's build made, which is unsigned."""
    return kernel.output / "arch/x86/boot/bzImage"


def _is_depmod_output(relative: Path) -> bool:
    """Return whether depmod made a file; the kernel's build itself writes two kinds of lists."""
    if len(relative.parts) > 1 or not relative.name.startswith("modules."):
        return False
    kernels = relative.name == "modules.order" or relative.name.startswith("modules.builtin")
    return relative.suffix == ".bin" or not kernels


def _files(top: Path) -> Iterator[Path]:
    for path in sorted(top.rglob("*")):
        if path.is_symlink() or path.is_file():
            yield path


def _copy(origin: Path, target: Path) -> None:
    """Copy a file without its time, so that dpkg-deb uses SOURCE_DATE_EPOCH."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(origin, target, follow_symlinks=False)
    except FileNotFoundError:
        raise BuildError(
            f"the package with {target.name} cannot be built: {origin.name} is missing",
            expected=str(origin),
            hint="run ./inv build-kernel again",
        ) from None


def render(source: SourcePackage, target: Path, *, epoch: int) -> None:
    """Make a debian/ directory at ``target`` from the templates of a source package.

    A file ``<role>.<rest>`` becomes ``<package of the role>.<rest>``; one that ends in .j2
    is rendered.  Raises BuildError if a template uses an unknown name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(source.templates),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    context = {
        "source": source.name,
        "version": source.version,
        "maintainer": MAINTAINER,
        "date": format_datetime(datetime.fromtimestamp(epoch, UTC)),
        "compression": COMPRESSION,
        **source.context,
    }
    for origin in _files(source.templates):
        relative = origin.relative_to(source.templates)
        role, dot, rest = relative.name.partition(".")
        name = source.packages.get(role, role) + dot + rest
        result = target / relative.parent / name.removesuffix(".j2")
        if origin.suffix == ".j2":
            try:
                text = environment.get_template(relative.as_posix()).render(context)
            except jinja2.TemplateError as error:
                raise BuildError(f"cannot render {origin}: {error}") from error
            fs.write_atomic(result, text)
        else:
            fs.write_atomic(result, origin.read_bytes())
        if result.name == "rules":
            result.chmod(0o755)


def build(
    root: Root,
    source: SourcePackage,
    collect: Callable[[Path], None],
    *,
    epoch: int,
    log: Path,
    out: Path,
) -> tuple[Package, ...]:
    """Build the binary packages of a source package in a root; replaces ``out``.

    ``collect`` fills the directory in its argument with one tree for each role.  ``out`` receives
    the .debs with their .changes and .buildinfo.  The caller holds the lock on ``out``.
    Raises BuildError.
    """
    log.unlink(missing_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    fs.remove_leftovers(out)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.work.") as name:
        work = Path(name)
        tree = work / "source"
        collect(tree / "stage")
        if suites.suite(root.suite).merged_usr:
            _merge_usr(tree / "stage")
        render(source, tree / "debian", epoch=epoch)
        sandbox.enter(
            root,
            ["dpkg-buildpackage", "-b", "-uc", "-us"],
            binds=[Bind(work, _WORK, writable=True)],
            cwd=f"{_WORK}/source",
            env={"SOURCE_DATE_EPOCH": str(epoch), "DEB_BUILD_OPTIONS": "terse nocheck"},
            timeout_s=_BUILD_TIMEOUT_S,
            log=log,
            hint="see the log",
        )
        (changes,) = work.glob("*.changes")
        packages = read_changes(changes)
        built = {package.name for package in packages}
        if missing := set(source.packages.values()) - built:
            raise BuildError(
                f"{source.name} was built without {', '.join(sorted(missing))}", log=log
            )
        with fs.fresh_directory(out) as fresh:
            for file in _listed(changes):
                (work / file).rename(fresh / file)
            changes.rename(fresh / changes.name)
    return read_changes(out / changes.name)


def _merge_usr(stage: Path) -> None:
    """Move lib/ of each package below usr/, because /lib is a link there since trixie."""
    for role in stage.iterdir():
        if (role / "lib").is_dir():
            (role / "usr/lib").mkdir(parents=True, exist_ok=True)
            for path in (role / "lib").iterdir():
                path.rename(role / "usr/lib" / path.name)
            (role / "lib").rmdir()


def read_changes(path: Path) -> tuple[Package, ...]:
    """Return the binary packages in a .changes file, after checking their digests.

    Raises BuildError if a file is missing or differs from its digest.
    """
    with path.open() as stream:
        changes = Changes(stream)
    packages = []
    for entry in changes["Checksums-Sha256"]:
        file = path.parent / entry["name"]
        if file.suffix != ".deb":
            continue
        found = fs.sha256_file(file) if file.exists() else "no such file"
        if found != entry["sha256"]:
            raise BuildError(
                f"{file.name} differs from its digest in {path.name}",
                expected=entry["sha256"],
                found=found,
            )
        name, _, architecture = file.stem.split("_")
        packages.append(
            Package(
                name=name,
                version=str(changes["Version"]),
                architecture=architecture,
                path=file,
                sha256=entry["sha256"],
            )
        )
    return tuple(sorted(packages, key=lambda package: package.name))


def records(packages: Iterable[Package]) -> tuple[Path, ...]:
    """Return the .changes and .buildinfo files of packages, which :func:`build` kept, sorted.

    Raises BuildError unless each package is in a .changes file next to it, which also lists a
    .buildinfo file.
    """
    wanted = {package.path: package.sha256 for package in packages}
    found: set[Path] = set()
    for directory in {path.parent for path in wanted}:
        for changes in directory.glob("*.changes"):
            listed = {one.path: one.sha256 for one in read_changes(changes)}
            infos = [name for name in _listed(changes) if name.endswith(".buildinfo")]
            if infos and listed.items() & wanted.items():
                wanted = dict(wanted.items() - listed.items())
                found |= {changes, *(directory / name for name in infos)}
    if wanted:
        raise BuildError(
            "packages lack the record of their build",
            expected="a .changes and a .buildinfo file next to each",
            found=", ".join(sorted(path.name for path in wanted)),
            hint="run ./inv package again",
        )
    return tuple(sorted(found))


def _listed(changes: Path) -> list[str]:
    """Return the checked names in a .changes file, which comes out of the root and may lie."""
    with changes.open() as stream:
        names = [entry["name"] for entry in Changes(stream)["Checksums-Sha256"]]
    for name in names:
        file = changes.parent / name
        if Path(name).name != name or file.is_symlink() or not file.is_file():
            raise BuildError(
                f"{changes.name} lists a name that is not a file next to it",
                expected="names of regular files",
                found=name,
            )
    return names


def control(path: Path, *, error: type[KbuildError] = BuildError) -> Mapping[str, str]:
    """Return the fields of a binary package; raises ``error`` if it is none or is damaged."""
    try:
        with DebFile(path) as package:
            return dict(package.debcontrol())
    except (DebError, ArError, TarError, LZMAError, EOFError, OSError, ValueError) as caught:
        raise error(
            f"{path} cannot be read as a package",
            found=str(caught) or type(caught).__name__,
        ) from caught


def lint(root: Root, changes: Sequence[Path], *, log: Path) -> None:
    """Run lintian on built packages; raises BuildError with the tags that it found.

    Errors and warnings count.  A deliberate exception has an override with its reason.
    """
    log.unlink(missing_ok=True)
    for path in changes:
        done = sandbox.enter(
            root,
            [
                "lintian",
                "--no-cfg",
                "--tag-display-limit=0",
                f"--suppress-tags={','.join(_SUPPRESSED)}",
                "--fail-on=error,warning",
                f"/mnt/lint/{path.name}",
            ],
            binds=[Bind(path.parent, "/mnt/lint")],
            timeout_s=_LINT_TIMEOUT_S,
            log=log,
            check=False,
        )
        if done.returncode != 0:
            tags = _TAG.findall(done.stdout)
            raise BuildError(
                f"lintian found {len(tags)} faults in {path.name}",
                found="\n".join(tags) or done.stdout.strip(),
                log=log,
                hint="correct the package, or override the tag and give the reason",
            )

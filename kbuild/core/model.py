"""The nouns of the pipeline: frozen values that the stages take and give.

Imports nothing of ours but the errors, so that every module may import it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

# Our module, the file that it makes, and the ways in which it can reach file tables.
MODULE = "cplayground"
PROCFILE = f"/proc/{MODULE}"
BACKENDS = ("stock", "export")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run works, as against what it makes: places, limits, and permissions."""

    project: Path  # the checkout: kmod/, patches/, debian/ lie here
    build: Path  # results, safe to delete, one run's work from being made again
    cache: Path  # downloads, roots, trees, ccache; outlives the checkout
    jobs: int = 1  # parallel compiler processes
    offline: bool = False  # nothing but the cache may be read
    dry: bool = False  # say what would be done, change nothing
    # base URLs tried before the machine's own, in order; may hold passwords, as remote_cache may
    mirrors: tuple[str, ...] = field(default=(), repr=False)
    revision: int = 1  # N of the package version suffix +cplaygroundN
    accept_expired: bool = False  # an InRelease past its Valid-Until is taken, with a warning
    # URL of a server that ccache asks for what is not in the local cache
    remote_cache: str = field(default="", repr=False)
    scheduler: str = ""  # host[:port] of an icecream scheduler


@dataclass(frozen=True)
class Target:
    """What is asked for: which kernel, in which flavour and variant."""

    suite: str  # a name of kbuild/core/suites.py: bookworm, trixie-backports
    flavour: str  # Debian's flavour (cloud-amd64, amd64), or ours: lab
    variant: str = "release"
    version: str | None = None  # Debian source version (6.1.192-2); None is the newest
    fragments: tuple[Path, ...] = ()  # configuration of the user's own, on top of ours

    @property
    def name(self) -> str:
        """The directory of this target's results: flavour, and the variant if it has one."""
        return self.flavour if self.variant == "release" else f"{self.flavour}-{self.variant}"

    def options(self, *names: str) -> str:
        """Return those of the options ``names`` that lead to this target again, for a shell."""
        said = {
            "suite": [self.suite],
            "flavour": [self.flavour],
            "variant": [self.variant],
            "version": [self.version] if self.version else [],
            "fragment": [str(path) for path in self.fragments],
        }
        pairs = [(f"--{name}", value) for name in names for value in said[name]]
        return shlex.join(word for pair in pairs for word in pair)


@dataclass(frozen=True)
class VerifiedFile:
    """A downloaded file whose SHA-256 the archive's signed index vouched for."""

    name: str  # the package's name, or the index's path
    version: str
    path: Path  # in the content-addressed cache; named like the pool's file
    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class Base:
    """A distro kernel: what Debian built, and the verified files that it consists of."""

    suite: str
    flavour: str  # always one of Debian's
    version: str  # Debian source version, epoch-less: 6.1.192-2
    abi: str  # 6.1.0-56
    signers: tuple[str, ...]  # OpenPGP fingerprints that signed the index used
    source: VerifiedFile  # linux-source-X.Y: the Debian-patched tree as a tarball
    image: VerifiedFile  # linux-image-<release>: vmlinuz, config, modules
    headers: VerifiedFile  # linux-headers-<release>: Module.symvers, auto.conf
    support: tuple[VerifiedFile, ...] = ()  # headers-common, kbuild, compiler: what headers needs
    expired: bool = False  # the index was past its Valid-Until and accepted on request
    parts: tuple[VerifiedFile, ...] = ()  # since 7.0: what the image package merely depends on

    @property
    def packages(self) -> tuple[VerifiedFile, ...]:
        """What an administrator installs to have the kernel and to build modules for it."""
        return tuple(dict.fromkeys((self.image, *self.parts, self.headers, *self.support)))

    @property
    def files(self) -> tuple[VerifiedFile, ...]:
        """Every file of it."""
        return (self.source, *self.packages)

    @property
    def release(self) -> str:
        """What ``uname -r`` prints on the distro's own kernel: 6.1.0-56-cloud-amd64."""
        return f"{self.abi}-{self.flavour}"

    @property
    def upstream(self) -> str:
        """The upstream version that the series' ranges speak of: 6.1.192."""
        return self.version.rpartition("-")[0]


@dataclass(frozen=True)
class Root:
    """A minimal Debian of one suite on disk, which compilers and packagers run in."""

    suite: str
    path: Path
    digest: str  # of everything that decided its content
    versions: dict[str, str] = field(default_factory=dict)  # package -> version installed


@dataclass(frozen=True)
class Patch:
    """One patch of a series, its DEP-3 header read."""

    path: Path
    description: str
    exports: tuple[str, ...]  # the symbols that it declares to export (X-Exports)


@dataclass(frozen=True)
class Series:
    """The patches for one range of kernels, in order."""

    name: str  # directory below patches/
    range: str  # a packaging specifier over the upstream version: >=5.11,<8
    patches: tuple[Patch, ...]
    digest: str

    @property
    def exports(self) -> tuple[str, ...]:
        """Every symbol that the series declares to export, sorted."""
        return tuple(sorted({symbol for patch in self.patches for symbol in patch.exports}))


@dataclass(frozen=True)
class Tree:
    """A kernel source tree with a series applied and its effect checked."""

    path: Path
    base_version: str
    series: Series
    digest: str  # of the tarball and of every patched file
    changed: tuple[str, ...]  # the files that differ from the pristine ones, sorted


@dataclass(frozen=True)
class BuiltKernel:
    """A compiled kernel, before it is packaged."""

    target: Target
    base: Base
    series: Series
    release: str  # what uname -r will print
    method: str  # "fast": image only, the distro's modules kept; "rebuild": everything
    source: Path  # the patched tree
    output: Path  # make's O= directory
    modules: Path | None  # a lib/modules/<release> tree, or None for a kernel without modules
    symvers: Path  # Module.symvers that external modules are built against
    config: Path
    compiler: str  # the compiler's first --version line
    digest: str  # of everything that decided this kernel
    seconds: float


@dataclass(frozen=True)
class Package:
    """One binary package that we built."""

    name: str
    version: str
    architecture: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Kernel:
    """The seam between building and trying: a kernel as an installed system holds it.

    Below ``root`` lie boot/vmlinuz-<release>, boot/initrd.img-<release> and
    lib/modules/<release>.  Whoever boots it does not know where it came from.
    """

    release: str
    flavour: str
    root: Path

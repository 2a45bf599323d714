"""Define the nouns of the pipeline: frozen values that the stages take and return.

It imports nothing of ours but the errors, so that every module may import it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

# Our module, its procfile, and the ways in which it reaches file tables.
MODULE = "cplayground"
PROCFILE = f"/proc/{MODULE}"
BACKENDS = ("stock", "export")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The decisions that ``watch`` makes without a person."""

    # suite, flavour and variant of each kernel to keep current; () for the configured one
    targets: tuple[tuple[str, str, str], ...] = ()
    # percent of the servers, and after how many hours in the state before; () for never
    promote: tuple[tuple[int, int], ...] = ()
    # is given a release's ID; exit status 0: no bad report.  Commands may hold passwords.
    health_command: tuple[str, ...] = field(default=(), repr=False)
    notify_command: tuple[str, ...] = field(default=(), repr=False)  # reads JSON
    webhook: str = field(default="", repr=False)  # URL that takes the same JSON
    free_gb: int = 20  # that a build must find where it writes
    unused_days: int = 30  # after which results and caches go, if there is less


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run works, independent of what it makes: places, limits and permissions."""

    project: Path  # the checkout: kmod/, patches/, debian/ lie here
    build: Path  # results; safe to delete, but they spare a run from making them again
    cache: Path  # downloads, roots, trees, ccache; outlives the checkout
    jobs: int = 1  # parallel compiler processes
    offline: bool = False  # read nothing but the cache
    dry: bool = False  # say what would be done, but change nothing
    # base URLs, tried in order before the machine's own; like remote_cache, may hold passwords
    mirrors: tuple[str, ...] = field(default=(), repr=False)
    revision: int = 1  # N of the package version suffix +cplaygroundN
    accept_expired: bool = False  # accept an InRelease past its Valid-Until, with a warning
    # URL of a server that ccache asks for objects missing from the local cache
    remote_cache: str = field(default="", repr=False)
    scheduler: str = ""  # host[:port] of an icecream scheduler
    archive: Path = Path("/nonexistent")  # the published packages; clean leaves it alone
    archive_url: str = ""  # where servers find the archive; "" if it is not set
    keys: Path = Path("/nonexistent")  # GnuPG's home with our secret keys
    signing_key: str = ""  # fingerprint, 40 hex digits; "" for the newest key in ``keys``
    # reads a Release, writes an InRelease; () for gpg; like remote_cache, may hold passwords
    sign_command: tuple[str, ...] = field(default=(), repr=False)
    # the machine owner key for Secure Boot, and its certificate, as PEM; None if it is not set
    mok_key: Path | None = None
    mok_certificate: Path | None = None
    # signs in place of mok_key; like sign_command, may hold passwords
    mok_sign_command: tuple[str, ...] = field(default=(), repr=False)
    policy: Policy = Policy()


@dataclass(frozen=True)
class Target:
    """A request: which kernel, in which flavour and variant."""

    suite: str  # a name of kbuild/core/suites.py: bookworm, trixie-backports
    flavour: str  # Debian's flavour (cloud-amd64, amd64), or ours: lab
    variant: str = "release"
    version: str | None = None  # Debian source version (6.1.192-2); None is the newest
    fragments: tuple[Path, ...] = ()  # the user's own configuration, on top of ours

    @property
    def name(self) -> str:
        """Return the directory of this target's results: flavour, then variant if it has one."""
        return self.flavour if self.variant == "release" else f"{self.flavour}-{self.variant}"

    def options(self, *names: str) -> str:
        """Return the options ``names`` that select this target, quoted for a shell."""
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
    """A downloaded file whose SHA-256 is in the archive's signed index."""

    name: str  # package name, or path in the index
    version: str
    path: Path  # in the content-addressed cache, named as in the pool
    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class Base:
    """A distro kernel: its names, and the verified files that it consists of."""

    suite: str
    flavour: str  # always one of Debian's
    version: str  # Debian source version, epoch-less: 6.1.192-2
    abi: str  # 6.1.0-56
    signers: tuple[str, ...]  # OpenPGP fingerprints of the keys that signed the index
    source: VerifiedFile  # linux-source-X.Y: the Debian-patched tree as a tarball
    image: VerifiedFile  # linux-image-<release>: vmlinuz, config, modules
    headers: VerifiedFile  # linux-headers-<release>: Module.symvers, auto.conf
    support: tuple[VerifiedFile, ...] = ()  # headers-common, kbuild, compiler: needed by headers
    expired: bool = False  # the index was past its Valid-Until and accepted on request
    parts: tuple[VerifiedFile, ...] = ()  # since 7.0: dependencies of the image package

    @property
    def packages(self) -> tuple[VerifiedFile, ...]:
        """Return the packages to install for this kernel and for building modules against it."""
        return tuple(dict.fromkeys((self.image, *self.parts, self.headers, *self.support)))

    @property
    def files(self) -> tuple[VerifiedFile, ...]:
        """Return every file of this kernel."""
        return (self.source, *self.packages)

    @property
    def release(self) -> str:
        """Return what ``uname -r`` prints on the distro's own kernel: 6.1.0-56-cloud-amd64."""
        return f"{self.abi}-{self.flavour}"

    @property
    def upstream(self) -> str:
        """Return the upstream version, which the series' ranges use: 6.1.192."""
        return self.version.rpartition("-")[0]


@dataclass(frozen=True)
class Root:
    """A minimal Debian of one suite on disk; compilers and packagers run in it."""

    suite: str
    path: Path
    digest: str  # of everything that determined its content
    versions: dict[str, str] = field(default_factory=dict)  # package -> version installed


@dataclass(frozen=True)
class Patch:
    """One patch of a series, with its DEP-3 header parsed."""

    path: Path
    description: str
    exports: tuple[str, ...]  # the symbols it declares to export (X-Exports)


@dataclass(frozen=True)
class Series:
    """The patches for one range of kernels, in order."""

    name: str  # directory below patches/
    range: str  # a packaging specifier over the upstream version: >=5.11,<8
    patches: tuple[Patch, ...]
    digest: str

    @property
    def exports(self) -> tuple[str, ...]:
        """Return every symbol that the series declares to export, sorted."""
        return tuple(sorted({symbol for patch in self.patches for symbol in patch.exports}))


@dataclass(frozen=True)
class Tree:
    """A kernel source tree with a series applied and its effect checked."""

    path: Path
    base_version: str
    series: Series
    digest: str  # of the tarball and of every patched file
    changed: tuple[str, ...]  # files that differ from the pristine ones, sorted


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
    symvers: Path  # the Module.symvers for building external modules
    config: Path
    compiler: str  # the compiler's first --version line
    digest: str  # of everything that determined this kernel
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
    """A kernel as an installed system holds it: the seam between building and testing.

    Below ``root`` lie boot/vmlinuz-<release>, boot/initrd.img-<release> and
    lib/modules/<release>.  The code that boots it does not know where it came from.
    """

    release: str
    flavour: str
    root: Path

"""Plan a kernel: its method, configuration, release and version; nothing is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import recipe, stamp
from kbuild.core.errors import UserError
from kbuild.core.model import Base, Settings, Target
from kbuild.core.suites import DEBIAN_FLAVOURS
from kbuild.core.variants import variant
from kbuild.kernel import kconfig
from kbuild.kernel.kconfig import Fragment

# Values of --modules: what happens to the distro's modules.
MODULES = ("auto", "keep", "rebuild")
# Signing options of a full build: a new key for this build only, as Debian makes one.  The
# distro's own private key no longer exists.
_OWN_KEY = Fragment(
    "module signing of a full build",
    {"MODULE_SIG_KEY": '"certs/signing_key.pem"', "SYSTEM_TRUSTED_KEYS": '""'},
)
# The distro's salt of build IDs is its ABI name, so it differs in each point release.  It only
# goes into two notes, but every file would have to be compiled again for it.
_NO_SALT = Fragment("no salt in build IDs", {"BUILD_SALT": '""'})


@dataclass(frozen=True)
class Plan:
    """Everything that decides a kernel, before the first compiler runs."""

    target: Target
    base: Base
    release: str
    package_version: str  # shown by uname -v, with the day of the source
    method: str  # "fast" or "rebuild"
    reason: str  # why that method
    fragments: tuple[Fragment, ...]
    distro_options: bool  # the configuration is the distro's own, except for keys and salt
    config: str  # merged, before olddefconfig; for lab, the input of allnoconfig
    distro: Fragment  # Debian's own configuration
    timestamp: str  # of the source, in seconds since the epoch


def choose_method(
    target: Target, distro: Fragment, fragments: Sequence[Fragment], modules: str
) -> tuple[str, str]:
    """Decide between the fast path and a full build, and return the method and the reason.

    ``modules`` is the user's choice: "keep", "rebuild" or "auto".  Raises UserError if the
    distro's modules cannot be kept although the user asked for it.
    """
    if modules not in MODULES:
        raise UserError(
            f"--modules {modules} is not known", expected=", ".join(MODULES), found=modules
        )
    obstacle = None
    if target.flavour not in DEBIAN_FLAVOURS:
        obstacle = f"the flavour {target.flavour} is ours: Debian has no modules for it"
    elif fragments:
        names = ", ".join(fragment.name for fragment in fragments)
        obstacle = f"the configuration is not the distro's ({names})"
    elif distro.options.get("MODVERSIONS") != "y":
        obstacle = "the distro's kernel has no CONFIG_MODVERSIONS, so CRCs prove nothing"
    if modules == "rebuild":
        return "rebuild", "asked for"
    if obstacle is None:
        return "fast", "Debian's configuration, with symbol versions to prove it by"
    if modules == "keep":
        raise UserError(
            "the distro's modules cannot be kept",
            found=obstacle,
            hint="omit --modules, or use --modules rebuild",
        )
    return "rebuild", obstacle


def fragments_of(settings: Settings, target: Target) -> tuple[Fragment, ...]:
    """Return our fragments for a target, in order; raises UserError for an unknown variant."""
    names = variant(target.variant).fragments
    places = [settings.project / "fragments" / name for name in names]
    if target.flavour not in DEBIAN_FLAVOURS:
        places.insert(0, settings.project / "fragments" / f"{target.flavour}.config")
    return tuple(kconfig.read(path) for path in (*places, *target.fragments))


def make_plan(
    settings: Settings,
    target: Target,
    base: Base,
    *,
    release: str,
    package_version: str,
    distro_config: Path,
    timestamp: int,
    pristine: Path,
    modules: str = "auto",
) -> Plan:
    """Return everything that decides a kernel; raises UserError for an impossible request.

    ``pristine`` is its source tree, whose Kconfig files define the options.
    """
    distro = kconfig.read(distro_config, strict=False)
    fragments = tuple(kconfig.settle(one, pristine) for one in fragments_of(settings, target))
    method, reason = choose_method(target, distro, fragments, modules)
    distro_options = target.flavour in DEBIAN_FLAVOURS and not fragments
    if method == "fast":
        fragments = (
            Fragment(
                "module signing of the fast path",
                {
                    "MODULE_SIG_KEY": '""',
                    "SYSTEM_TRUSTED_KEYS": '"/mnt/input/distro-modules.pem"',
                },
            ),
        )
    elif target.flavour in DEBIAN_FLAVOURS:
        fragments = (_OWN_KEY, *fragments)
    start = distro if target.flavour in DEBIAN_FLAVOURS else Fragment("allnoconfig", {})
    if "BUILD_SALT" in start.options:
        fragments = (_NO_SALT, *fragments)
    return Plan(
        target=target,
        base=base,
        release=release,
        package_version=package_version,
        method=method,
        reason=reason,
        fragments=fragments,
        distro_options=distro_options,
        config=kconfig.merge(start, fragments),
        distro=distro,
        timestamp=str(timestamp),
    )


def plan_inputs(plan: Plan, tree_digest: str, root_digest: str) -> dict[str, str]:
    """Return the inputs of a kernel build."""
    code = ["compilation.py", "kconfig.py", "symbol_versions.py"]
    code += ["in_root/symbol-versions", "in_root/symbol-versions-gcc"]
    if plan.method == "fast":
        # A stricter guard looks at the kernel that an older one has let pass.
        code += ["guard.py", "symvers.py", "debian_image.py"]
    return {
        "source": f"{plan.base.version} {plan.base.source.sha256}",
        "distro image": plan.base.image.sha256,
        "distro headers": plan.base.headers.sha256,
        "patched source": tree_digest,
        "configuration": stamp.digest({"text": plan.config}),
        "method": plan.method,
        "release": plan.release,
        "package version": plan.package_version,
        "root": root_digest,
        "recipe": recipe.digest(*(Path(__file__).parent / name for name in code)),
    }


def distro_compiler(plan: Plan) -> str | None:
    """Return the first --version line of the distro's compiler if ours must be the same."""
    if plan.method != "fast":
        return None
    text = kconfig.parse(plan.config, name="the distro's configuration").options["CC_VERSION_TEXT"]
    return text.strip('"')

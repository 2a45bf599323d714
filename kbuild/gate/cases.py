"""The cases of the gate: what an administrator does with our packages, and what must come of it.

Each function judges one or more cases into their trials.  It raises an error when a step that must
succeed fails; the round makes that a reason.  Steps that only need apt run in a tree, at the
host's speed.  Only the installation of ``install`` runs in a booted server.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from debian.debian_support import Version

from kbuild.archive import operations
from kbuild.archive.release import Release
from kbuild.core.errors import BuildError
from kbuild.core.run import Arg, failure, killed, run
from kbuild.core.sandbox import Bind
from kbuild.gate import installed, listing, machine, rehearsal, secure_boot, wire
from kbuild.gate.guarded import guard
from kbuild.gate.machine import Command
from kbuild.gate.round import BUILT, PREBUILT, Names, Round, Trial, names
from kbuild.gate.server import Server
from kbuild.gate.steps import boot_both, boot_next, install_older, of_kernel
from kbuild.ship import dkms, tool_package, versions

# Seconds of a fast machine, for apt in a booted server.
_UPDATE_S, _INSTALL_S, _AUDIT_S = 60.0, 300.0, 20.0
_BUILD_TIMEOUT_S = 120

_AUDIT = Command(("dpkg", "--audit"), _AUDIT_S)

Trials = Mapping[str, Trial]


@dataclass(frozen=True)
class Case:
    """Cases that are judged together, because they share servers and boots."""

    names: tuple[str, ...]
    run: Callable[[Round, Trials], None]


# --- install ----------------------------------------------------------------------------------


def install(round: Round, trials: Trials) -> None:
    """Install the candidate from staging in a booted server, and boot it."""
    (trial,) = trials.values()
    wanted = names(round.candidate)
    commands = [Command(argv, _UPDATE_S) for argv in round.following(round.view.staging)]
    commands += [
        Command(("apt-get", "install", "--yes", *wanted.prebuilt), _INSTALL_S),
        _AUDIT,
    ]

    def judge(seen: machine.Boot) -> bool:
        audits = [one.text for one in seen.results if one.argv == _AUDIT.argv]
        trial.require(audits == [""], f"dpkg --audit: {''.join(audits) or 'it did not run'}")
        return not trial.reasons

    with round.server(trial.name) as made, round.disk(made) as disk:
        what = "the server after the installation"
        boot_both(round, trial, disk, what, first=commands, judge=judge)


# --- DKMS -------------------------------------------------------------------------------------


def with_dkms(round: Round, trials: Trials) -> None:
    """Install the candidate with DKMS, next to another module that fails too, and boot it."""
    wanted, candidate = names(round.candidate), round.candidate
    trial, other = trials["install-dkms"], trials["foreign-dkms"]
    with round.server(trial.name, dkms=True) as made:
        round.follow(made, round.view.staging)
        round.apt(made, "install", *wanted.dkms)
        installed.require_configured(trial, made, round)
        alone = round.record(made)
        with round.disk(made) as disk:
            round.boot(
                trial,
                disk,
                "the server with the module by DKMS",
                release=candidate.kernel,
                module=BUILT,
            )
    with round.server(other.name, dkms=True) as made:
        _next_to_a_failing_module(round, other, made, wanted, alone)


def _next_to_a_failing_module(
    round: Round, trial: Trial, made: Server, wanted: Names, alone: Mapping[str, listing.Entry]
) -> None:
    """Judge an installation next to a module of a third party that cannot be compiled.

    DKMS of some suites makes the installation of every kernel fail then, Debian's own kernels
    included.  That failure must name the other module, and ours must be built all the same.  The
    boot menu must offer no kernel that cannot start.  Without the other package all must be
    configured; the tree is then the one that ``install-dkms`` boots.
    """
    _install_foreign(round, made, round.home / "foreign")
    round.follow(made, round.view.staging)
    # No package of ours is named: the failure of the other must not be ours.
    done = round.apt(made, "install", *wanted.dkms, check=False)
    if killed(done):
        raise failure(done, "apt-get install next to another module", log=made.log)
    half = installed.unconfigured(round, made)
    if done.returncode != 0:
        culprit = re.search(rf"/var/lib/dkms/{_FOREIGN}/|Module {_FOREIGN}[/ ]", done.stdout)
        trial.require(culprit is not None, "apt failed, and its output does not name the other one")
        trial.notes.append(
            f"DKMS makes the kernel's installation fail: {', '.join(half) or 'nothing'} is"
            " unconfigured until the other module is removed"
        )
    elif half:
        trial.reasons.append(f"apt succeeded, and {', '.join(half)} is unconfigured")
    trial.require(dkms.PACKAGE not in half, f"{dkms.PACKAGE} is unconfigured")
    tried = made.root.path / "var/lib/dkms" / _FOREIGN
    trial.require(
        any(_COMPLAINT in one.read_text(errors="replace") for one in tried.rglob("make.log")),
        "DKMS did not try to build the other module, so nothing was shown",
    )
    built = made.root.path / f"lib/modules/{round.candidate.kernel}/{BUILT}"
    trial.require(
        any(built.glob("cplayground.ko*")), f"our module was not built for {round.candidate.kernel}"
    )
    trial.reasons += installed.menu_faults(made.root.path)
    round.apt(made, "purge", f"{_FOREIGN}-dkms", check=False)
    round.apt(made, "install", "--fix-broken")
    installed.require_configured(trial, made, round)
    after = round.record(made)
    trial.reasons += [
        f"without the other module: {one}"
        for one in listing.differences(alone, after, changing=_OTHER_RUN)
    ]


_FOREIGN, _COMPLAINT = "gate-foreign", "this module knows no kernel"
# An initrd has times in it, and DKMS signs modules with a key of the server's own.
_OTHER_RUN = (
    r"boot/initrd\.img-.*",
    r"(usr/)?lib/modules/[^/]+/updates/dkms/.*",
    r"var/lib/dkms/(mok\.(key|pub)|.*/module/.*|.*/log/make\.log)",
    r"var/lib/initramfs-tools/.*",
    r"var/lib/dpkg/status",
)
_FOREIGN_FILES = {
    "DEBIAN/control": (
        f"Package: {_FOREIGN}-dkms\nVersion: 1.0\nArchitecture: all\n"
        "Maintainer: The gate <gate@gate.invalid>\nDepends: dkms\n"
        "Description: module that no kernel can compile\n"
    ),
    # As dh_dkms makes them, but its own installation succeeds: the server had it before.
    "DEBIAN/postinst": (
        '#!/bin/sh\nset -e\nif [ "$1" = configure ]; then\n'
        f'    /usr/lib/dkms/common.postinst {_FOREIGN} 1.0 "" amd64 "$2" || true\n'
        "fi\n"
    ),
    "DEBIAN/prerm": (f"#!/bin/sh\nset -e\ndkms remove -m {_FOREIGN} -v 1.0 --all || true\n"),
    f"usr/src/{_FOREIGN}-1.0/dkms.conf": (
        f'PACKAGE_NAME="{_FOREIGN}"\nPACKAGE_VERSION="1.0"\nBUILT_MODULE_NAME[0]="{_FOREIGN}"\n'
        'DEST_MODULE_LOCATION[0]="/updates/dkms"\nAUTOINSTALL="yes"\n'
        'MAKE[0]="make -C $kernel_source_dir M=$dkms_tree/$PACKAGE_NAME/$PACKAGE_VERSION/build"\n'
    ),
    f"usr/src/{_FOREIGN}-1.0/Makefile": f"obj-m := {_FOREIGN}.o\n",
    f"usr/src/{_FOREIGN}-1.0/{_FOREIGN}.c": f"#error {_COMPLAINT}\n",
}


def _install_foreign(round: Round, made: Server, place: Path) -> None:
    """Install a third party's module, which cannot be compiled for any kernel."""
    deb = _deb(place, _FOREIGN_FILES)
    round.run(
        made, ["dpkg", "--install", "/tmp/foreign.deb"], binds=[Bind(deb, "/tmp/foreign.deb")]
    )


def _deb(place: Path, files: Mapping[str, str]) -> Path:
    """Build a package of the gate's own from its files, and return it."""
    for name, content in files.items():
        path = place / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755 if name.startswith("DEBIAN/p") else 0o644)
    deb = place / "package.deb"
    run(
        ["dpkg-deb", "--root-owner-group", "--build", place / "tree", deb],
        timeout_s=_BUILD_TIMEOUT_S,
    )
    return deb


# --- upgrade, autoremove, downgrade -----------------------------------------------------------


def upgrade(round: Round, trials: Trials) -> None:
    """Upgrade from each promoted release; both kernels boot, and autoremove keeps both."""
    trial, removal = trials["upgrade"], trials["autoremove"]
    for older in round.view.promoted:
        with round.server(f"{trial.name}-{older.version}") as made:
            install_older(round, made, older)
            _upgrade(round, made)
            installed.require_versions(trial, round, made, names(round.candidate).prebuilt)
            installed.require_kernels(trial, round, made, older, round.candidate)
            with round.disk(made) as disk:
                round.boot(
                    trial,
                    disk,
                    f"the server after the upgrade from {older.version}",
                    release=round.candidate.kernel,
                    module=PREBUILT,
                )
            _install_unwanted(round, made)
            boot_next(round, made, older.kernel)
            with round.disk(made) as disk:
                seen = round.boot(
                    trial,
                    disk,
                    f"the upgraded server with {older.version} chosen in the boot menu",
                    release=older.kernel,
                    module=PREBUILT,
                    commands=AUTOREMOVE,
                )
            if older == round.view.promoted[0]:
                judge_autoremove(removal, seen, (older, round.candidate))
    if round.view.promoted:
        return
    with round.server(removal.name) as made:
        round.follow(made, round.view.staging)
        round.apt(made, "install", *names(round.candidate).prebuilt)
        _install_unwanted(round, made)
        with round.disk(made) as disk:
            seen = round.boot(
                removal,
                disk,
                "the server with one kernel of ours",
                release=round.candidate.kernel,
                module=PREBUILT,
                commands=AUTOREMOVE,
            )
        judge_autoremove(removal, seen, (round.candidate,))


def downgrade(round: Round, trials: Trials) -> None:
    """Go back from the candidate to the newest promoted release, as docs/howto says."""
    (trial,) = trials.values()
    for older in round.view.promoted[:1]:
        with round.server(trial.name) as made:
            install_older(round, made, older)
            remove_newer_stock(round, trial, made, older)
            _upgrade(round, made)
            old = names(older)
            for argv in going_back(older, round.candidate):
                round.run(made, argv)
            # The next upgrade must not bring the newer version back.
            _upgrade(round, made)
            installed.require_versions(trial, round, made, old.prebuilt, older)
            with round.disk(made) as disk:
                round.boot(
                    trial,
                    disk,
                    f"the server after the downgrade to {older.version}",
                    release=older.kernel,
                    module=PREBUILT,
                )


def going_back(older: Release, newer: Release) -> Iterator[tuple[str, ...]]:
    """Yield the commands of docs/howto/install-and-upgrade.md for going back to a version."""
    wanted = names(older)
    chosen = wanted.prebuilt
    if older.kernel == newer.kernel:
        chosen += of_kernel(older)
    yield ("apt-get", "install", "--allow-downgrades", *wanted.pinned(chosen))
    yield ("apt-mark", "hold", *wanted.prebuilt)
    if older.kernel != newer.kernel:
        yield ("apt-get", "purge", versions.image_package(newer.kernel))


def comes_before(stock: str, ours: str) -> bool:
    """Return whether GRUB's menu has Debian's kernel before a kernel of ours.

    The arguments are what ``uname -r`` prints.  GRUB 2.06 compares these as dpkg does, and
    tests/unit/test_versions.py shows that later ones come to the same order.
    """
    return Version(stock) > Version(ours)


def remove_newer_stock(round: Round, trial: Trial, made: Server, older: Release) -> None:
    """Remove Debian's kernel, as documented, if it would be started instead of the older one.

    A tree has Debian's kernel of the candidate.  If the older release has a lower ABI, its servers
    had Debian's kernel of that time, which Debian's archive may have no more.  Raises BuildError
    if the kernel is still there.
    """
    stock = round.base
    if not comes_before(stock.release, older.kernel):
        return
    files = [one.path.name for one in (stock.image, *stock.parts)]
    # Since 7.0 the kernel's file is in another package than the image.
    found = [name.partition("_")[0] for name in files if stock.release in name]
    round.apt(made, "purge", *found)
    left = made.root.path / f"boot/vmlinuz-{stock.release}"
    if left.exists():
        raise BuildError("Debian's kernel cannot be removed", found=str(left), log=made.log)
    trial.notes.append(
        f"Debian's {stock.release} was removed, because the boot menu has it before {older.kernel}"
    )


def _upgrade(round: Round, made: Server) -> None:
    round.apt(made, "dist-upgrade")


# A release of ours that is older than all others, which apt may remove.
_UNWANTED = "0.0.1-1-cplayground-unwanted"
AUTOREMOVE = (
    Command(("apt-get", "autoremove", "--yes"), _INSTALL_S),
    Command(installed.STATES, _AUDIT_S),
)


def unwanted() -> tuple[str, str]:
    """Return the names of the empty packages that apt must remove."""
    return versions.image_package(_UNWANTED), versions.modules_package(_UNWANTED)


def _install_unwanted(round: Round, made: Server) -> None:
    """Install empty packages with the names of an old kernel and its module, as automatic ones."""
    image, modules = unwanted()
    for name, depends in ((image, ""), (modules, f"Depends: {image}\n")):
        control = (
            f"Package: {name}\nVersion: 0.0.1-1\nArchitecture: amd64\n{depends}"
            "Maintainer: The gate <gate@gate.invalid>\nDescription: kernel that nothing needs\n"
        )
        deb = _deb(made.root.path.parent / name, {"DEBIAN/control": control})
        round.run(made, ["dpkg", "--install", "/tmp/old.deb"], binds=[Bind(deb, "/tmp/old.deb")])
    round.run(made, ["apt-mark", "auto", image, modules])


def judge_autoremove(trial: Trial, seen: machine.Boot, releases: Sequence[Release]) -> None:
    """Judge what is installed after autoremove in a booted server; ``releases`` must be whole."""
    done = [one for one in seen.results if one.argv == AUTOREMOVE[-1].argv]
    if not trial.require(bool(done), "apt-get autoremove did not run in the server"):
        return
    states = installed.by_name(done[0].text)
    kept = {name for name, state in states.items() if state == "installed"}
    for release in releases:
        for wanted in of_kernel(release):
            trial.require(wanted in kept, f"apt-get autoremove removed {wanted}")
    for name in names(releases[-1]).prebuilt:
        trial.require(name in kept, f"apt-get autoremove removed {name}")
    for name in unwanted():
        trial.require(name not in kept, f"apt-get autoremove kept {name}, which nothing needs")


# --- rollback -----------------------------------------------------------------------------------

_PERCENT = 10
# Machine ids that are tried; apt chooses by them which server is among the first.
_TRIED = tuple(hashlib.md5(str(number).encode()).hexdigest() for number in range(200))
# So many are tried even after both kinds were found.
_LEAST_TRIED = 40
# Prints what apt would install, for each machine id in the arguments.
_SIMULATE = """
for id; do
    echo "id $id"
    apt-get --simulate --with-new-pkgs -o "APT::Machine-ID=$id" upgrade | grep '^Inst ' || true
done
"""


def rollback(round: Round, trials: Trials) -> None:
    """Let the candidate reach some servers of a scratch archive, withdraw it, and upgrade again."""
    (trial,) = trials.values()
    older, candidate = round.view.promoted[0], round.candidate
    place = round.home / "rehearsal"
    scratch = rehearsal.archive(round.settings, place, round.view.promoted)
    with wire.serve(scratch.archive, round.logs / f"{trial.name}-requests.log") as connected:
        there = dataclasses.replace(round, network=connected.namespace)
        with there.server(trial.name) as made:
            wanted = names(candidate).prebuilt
            there.follow(made, round.view.stable)
            there.apt(made, "install", *wanted)
            remove_newer_stock(there, trial, made, older)
            rehearsal.stage(scratch, candidate, place)
            operations.promote(scratch, candidate.id, _PERCENT)
            there.apt(made, "update")
            inside, outside = phases(trial, there, made, wanted)
            if inside is None or outside is None:
                return
            _become(made, outside)
            _plain_upgrade(there, made)
            installed.require_versions(trial, there, made, wanted, older)
            _become(made, inside)
            _plain_upgrade(there, made)
            installed.require_versions(trial, there, made, wanted)
            operations.rollback(scratch, candidate.id, "the gate rehearses a bad release")
            had = installed.states(there, made)
            there.apt(made, "update")
            _plain_upgrade(there, made)
            lost = sorted(had.keys() - installed.states(there, made).keys())
            trial.require(not lost, f"the rollback removed {', '.join(lost)}")
            installed.require_configured(trial, made, there)
            installed.require_kernels(trial, there, made, older)
            with there.disk(made) as disk:
                there.boot(
                    trial,
                    disk,
                    f"the server after {candidate.version} was rolled back",
                    release=older.kernel,
                    module=PREBUILT,
                )


def _plain_upgrade(round: Round, made: Server) -> None:
    """Upgrade as "apt upgrade" does, which installs new packages and removes none."""
    round.apt(made, "upgrade", "--with-new-pkgs")


def _become(made: Server, machine_id: str) -> None:
    (made.root.path / "etc/machine-id").write_text(f"{machine_id}\n")


def phases(
    trial: Trial, round: Round, made: Server, wanted: Sequence[str]
) -> tuple[str | None, str | None]:
    """Return a machine id that gets a promoted candidate at once, and one that does not.

    Every server must get all of ``wanted`` or none: a kernel without its module would be worse
    than either.
    """
    inside = outside = None
    for start in range(0, len(_TRIED), _LEAST_TRIED):
        ids = _TRIED[start : start + _LEAST_TRIED]
        said = round.run(made, ["sh", "-c", _SIMULATE, "sh", *ids]).stdout
        for part in said.split("id ")[1:]:
            machine_id, *lines = part.splitlines()
            upgraded = {line.split()[1] for line in lines if line.startswith("Inst ")}
            got = upgraded & set(wanted)
            if got and got != set(wanted):
                missing = ", ".join(sorted(set(wanted) - got))
                trial.reasons.append(f"the server {machine_id} gets the release without {missing}")
                return None, None
            if got:
                inside = inside or machine_id
            else:
                outside = outside or machine_id
        if inside and outside:
            break
    trial.require(inside is not None, f"at {_PERCENT} % no server of {len(_TRIED)} is upgraded")
    trial.require(outside is not None, f"at {_PERCENT} % each server is upgraded")
    return inside, outside


# --- remove, reinstall --------------------------------------------------------------------------


def remove(round: Round, trials: Trials) -> None:
    """Remove and purge everything; the server's files are then those of before."""
    (trial,) = trials.values()
    wanted = names(round.candidate)
    for kind, dkms_too in ((wanted.prebuilt, False), (wanted.dkms, True)):
        way = "DKMS" if dkms_too else "the prebuilt module"
        with round.server(f"{trial.name}{'-dkms' if dkms_too else ''}", dkms=dkms_too) as made:
            before = round.record(made)
            round.follow(made, round.view.staging)
            if dkms_too:
                # As if the administrator had answered yes.
                round.run(made, ["sh", "-c", _LET_GROUP_READ])
            round.apt(made, "install", *kind)
            if dkms_too:
                there = (made.root.path / _GROUP_FILE).exists()
                trial.require(there, f"/{_GROUP_FILE} was not written")
            ours = [*installed.ours(round, made), _keyring_name(round)]
            round.apt(made, "remove", *ours)
            for after, allowed in (
                ("removed", (*_OF_DKMS, *_LEFT_BY_REMOVE)),
                ("purged", _OF_DKMS),
            ):
                if after == "purged":
                    round.apt(made, "purge", *ours)
                found = listing.differences(
                    before,
                    round.record(made),
                    allowed=allowed,
                    changing=(*_LAST_INSTALLED, *(_OF_THE_GROUP if dkms_too else ())),
                )
                trial.reasons += [f"{way}, {after}: {one}" for one in found]
            asked = round.run(made, ["debconf-show", tool_package.PACKAGE]).stdout.strip()
            trial.require(not asked, f"{way}, purged: debconf still has {asked}")


_LET_GROUP_READ = (
    f"echo {tool_package.PACKAGE} {tool_package.PACKAGE}/group-reads boolean true"
    " | debconf-set-selections"
)
_GROUP_FILE = "etc/modprobe.d/cplayground-group.conf"
# System groups stay, because files may still have their numbers.
_OF_THE_GROUP = (r"etc/g(roup|shadow)-?",)
# DKMS makes a key for modules with the first one that it builds, and keeps it.  adduser has its
# lock in /run, which is empty after a boot.
_OF_DKMS = (r"var/lib/dkms/mok\.(key|pub)", r"run/adduser")
# The apt of Debian 11 notes the kernel that was installed last, and nothing at its removal.
_LAST_INSTALLED = (r"etc/apt/apt\.conf\.d/01autoremove-kernels",)
# Until they are purged, packages keep configuration, and kernels what depmod made, as Debian's do.
_LEFT_BY_REMOVE = (
    r"(usr/)?lib/modules/[^/]*-cplayground[^/]*(/modules\..*)?",
    r"var/lib/dpkg/(info/.*|status)",
    r"etc/apt/sources\.list\.d/cplayground.*",
    r"var/(log|cache)/cplayground-dkms.*",
    re.escape(_GROUP_FILE),
)


def _keyring_name(round: Round) -> str:
    argv: list[Arg] = ["dpkg-deb", "--field", round.view.keyring, "Package"]
    return run(argv, timeout_s=_BUILD_TIMEOUT_S).stdout.strip()


def reinstall(round: Round, trials: Trials) -> None:
    """Install again over itself, and finish an installation that was killed in the middle."""
    (trial,) = trials.values()
    wanted, kernel = names(round.candidate), round.candidate.kernel
    with round.server(trial.name) as made:
        round.follow(made, round.view.staging)
        with round.copy(made.root, f"{trial.name}-whole") as whole:
            round.apt(whole, "install", *wanted.prebuilt)
            straight = round.record(whole)
            round.apt(whole, "install", "--reinstall", *installed.ours(round, whole))
            installed.require_configured(trial, whole, round)
            trial.reasons += _unlike(round, straight, whole, "after a reinstallation")
        image = versions.image_package(kernel)
        for word in (f"Unpacking {image} ", f"Setting up {image} ", "Generating /boot/initrd"):
            with round.copy(made.root, f"{trial.name}-killed") as cut:
                _kill_at(round, cut, word, wanted.prebuilt)
                if not _unfinished(round, cut, wanted.prebuilt):
                    trial.reasons.append(f"the kill at {word!r} came too late to prove anything")
                round.run(cut, ["dpkg", "--configure", "--pending"])
                round.apt(cut, "install", "--fix-broken")
                round.apt(cut, "install", *wanted.prebuilt)
                installed.require_configured(trial, cut, round)
                trial.reasons += _unlike(round, straight, cut, f"after a kill at {word!r}")


def _unlike(
    round: Round, straight: Mapping[str, listing.Entry], made: Server, when: str
) -> list[str]:
    found = listing.differences(straight, round.record(made), changing=_OTHER_RUN)
    return [f"{when}: {one}" for one in found]


# Ends all processes of the sandbox at the first line of output that contains a text.
_KILLER = """
"$@" 2>&1 | while IFS= read -r line; do
    printf '%s\\n' "$line"
    case $line in *"$0"*) kill -9 -1 ;; esac
done
"""


def _kill_at(round: Round, made: Server, word: str, wanted: Sequence[str]) -> None:
    """Kill apt, dpkg and all that they run with SIGKILL when dpkg prints a text."""
    round.run(made, ["sh", "-c", _KILLER, word, "apt-get", "install", *wanted], check=False)


def _unfinished(round: Round, made: Server, wanted: Sequence[str]) -> bool:
    states = installed.states(round, made)
    return any(states.get(name) != "installed" for name in wanted)


CASES = (
    Case(("install",), install),
    Case(("guard",), guard),
    Case(("upgrade", "autoremove"), upgrade),
    Case(("install-dkms", "foreign-dkms"), with_dkms),
    Case(("rollback",), rollback),
    Case(("downgrade",), downgrade),
    Case(("reinstall",), reinstall),
    Case(("remove",), remove),
    Case(("secure-boot", "secure-boot-dkms"), secure_boot.secure_boot),
)

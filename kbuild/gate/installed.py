"""Look at what a server's tree has: dpkg's packages with their states, kernels, the boot menu."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kbuild.archive.release import Release
from kbuild.gate.round import Round, Trial, names
from kbuild.gate.server import Server
from kbuild.gate.steps import of_kernel

# Prints each package that dpkg knows, with its state.
STATES = ("dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n")


def states(round: Round, made: Server) -> dict[str, str]:
    """Return dpkg's state of each package that it knows."""
    return by_name(round.run(made, STATES).stdout)


def by_name(listed: str) -> dict[str, str]:
    """Return what dpkg-query printed after the name of each package."""
    return dict(line.split(" ", 1) for line in listed.splitlines() if " " in line)


def ours(round: Round, made: Server) -> list[str]:
    """Return the packages of releases of ours that dpkg knows there."""
    known = {one.name for release in _releases(round) for one in release.packages}
    return sorted(known & states(round, made).keys())


def _releases(round: Round) -> tuple[Release, ...]:
    return (round.candidate, *round.view.promoted)


def unconfigured(round: Round, made: Server) -> list[str]:
    """Return those of our packages there that are not installed in whole."""
    found = states(round, made)
    return [name for name in ours(round, made) if found[name] != "installed"]


def require_configured(trial: Trial, made: Server, round: Round) -> None:
    """Require that dpkg has no complaint about a tree."""
    said = round.run(made, ["dpkg", "--audit"], check=False).stdout.strip()
    trial.require(not said, f"dpkg --audit: {said.splitlines()[0] if said else ''}")
    for name in unconfigured(round, made):
        trial.reasons.append(f"{name} is {states(round, made)[name]}")


def require_versions(
    trial: Trial,
    round: Round,
    made: Server,
    wanted: Sequence[str],
    release: Release | None = None,
) -> None:
    """Require that packages are installed in the versions of a release, else the candidate's."""
    expected = names(release or round.candidate).versions
    query = ["dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Status}\n"]
    there = by_name(round.run(made, query).stdout)
    for name in wanted:
        trial.require(
            there.get(name) == f"{expected[name]} installed",
            f"{name} is {there.get(name, 'not installed')}, not {expected[name]} installed",
        )


def require_kernels(trial: Trial, round: Round, made: Server, *releases: Release) -> None:
    """Require that each kernel is there with its initrd and its module, and is in the menu."""
    found = states(round, made)
    for release in releases:
        for name in of_kernel(release):
            trial.require(found.get(name) == "installed", f"{name} is not installed any more")
        for name in (f"boot/vmlinuz-{release.kernel}", f"boot/initrd.img-{release.kernel}"):
            trial.require((made.root.path / name).exists(), f"/{name} is missing")
    trial.reasons += menu_faults(made.root.path)


def menu_faults(tree: Path) -> list[str]:
    """Return each file that the boot menu names and that is missing, and kernels without initrd."""
    menu = (tree / "boot/grub/grub.cfg").read_text()
    files = re.findall(r"^\s*(?:linux|initrd)\s+(/boot/\S+)", menu, re.MULTILINE)
    found = [
        f"the boot menu names {one}, which is missing"
        for one in dict.fromkeys(files)
        if not (tree / one.lstrip("/")).exists()
    ]
    kernels = {one.partition("vmlinuz-")[2] for one in files if "vmlinuz-" in one}
    initrds = {one.partition("initrd.img-")[2] for one in files if "initrd.img-" in one}
    found += [f"the boot menu starts {one} without an initrd" for one in sorted(kernels - initrds)]
    return found if kernels else ["the boot menu starts no kernel"]

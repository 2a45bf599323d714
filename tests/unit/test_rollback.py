"""The packages that lead back to an older release, and the script that withdraws a kernel."""

from __future__ import annotations

import itertools
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from debian.deb822 import Deb822

from kbuild.core import fs
from kbuild.core.errors import BuildError
from kbuild.core.model import Package, Target
from kbuild.ship import rollback, versions
from kbuild.ship.release import Release

TARGET = Target("bookworm", "cloud-amd64")
META = "linux-image-cplayground-cloud-amd64"
LIST = "/usr/share/cplayground/withdrawn-cloud-amd64"


def package(top: Path, name: str, version: str, depends: str = "", arch: str = "amd64") -> Package:
    tree = top / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/share/doc" / name).mkdir(parents=True)
    (tree / "usr/share/doc" / name / "copyright").write_text("a test\n")
    (tree / "DEBIAN/md5sums").write_text("")
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: {arch}\nMaintainer: N <n@x.example>\n"
        + (f"Depends: {depends}\n" if depends else "")
        + "Description: a test\n of two lines\n"
    )
    path = top / f"{name}_{version}_{arch}.deb"
    env = os.environ | {"SOURCE_DATE_EPOCH": "1000000000"}
    command = ["dpkg-deb", "--root-owner-group", "-Zxz", "-b", f"{tree}", f"{path}"]
    subprocess.run(command, check=True, capture_output=True, env=env)
    fs.remove_tree(tree)
    return Package(name, version, arch, path, fs.sha256_file(path))


def release(
    top: Path,
    base: str = "6.1.192-3",
    revision: int = 1,
    *,
    abi: str = "6.1.0-57",
    module: str = "0.2.0",
    target: Target = TARGET,
) -> Release:
    """Return a release whose packages depend on each other as the real ones do."""
    version = versions.package_version(base, revision)
    kernel = versions.release(abi, target.flavour, target.variant, revision)
    modules = versions.prebuilt_version(module, version)
    image, headers = versions.image_package(kernel), versions.headers_package(kernel)
    prebuilt = versions.modules_package(kernel)
    flavour = target.flavour, target.variant
    made = (
        package(top, image, version, "kmod, linux-base (>= 4.3~)"),
        package(top, headers, version, "gcc-12"),
        package(top, prebuilt, modules, f"kmod, {image} (= {version})"),
        package(top, versions.image_meta(*flavour), version, f"{image} (= {version})"),
        package(top, versions.headers_meta(*flavour), version, f"{headers} (= {version})"),
        package(top, versions.modules_meta(*flavour), modules, f"{prebuilt} (= {modules})"),
        package(top, "cplayground-dkms", versions.suite_version(module, "deb12"), arch="all"),
    )
    return Release(target, kernel, version, made)


def control(one: Package) -> Deb822:
    said = subprocess.run(["dpkg-deb", "-f", one.path], check=True, capture_output=True, text=True)
    return Deb822(said.stdout)


def files(one: Package, into: Path) -> dict[str, str]:
    subprocess.run(["dpkg-deb", "-R", one.path, into], check=True)
    return {
        f"/{path.relative_to(into)}": path.read_text()
        for path in into.rglob("*")
        if path.is_file() and "doc" not in path.parts
    }


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release(tmp_path_factory.mktemp("older"))


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release(tmp_path_factory.mktemp("bad"), revision=2)


def test_the_metapackages_lead_to_the_older_release(
    tmp_path: Path, older: Release, bad: Release
) -> None:
    made = {one.name: one for one in rollback.packages(bad, older, tmp_path)}
    # The module has the same version in both.
    assert set(made) == {
        META,
        "linux-headers-cplayground-cloud-amd64",
        "cplayground-modules-cloud-amd64",
    }
    version = "6.1.192-3+cplayground2+rollback1"
    for one in made.values():
        assert one.path == tmp_path / f"{one.name}_{one.version}_amd64.deb"
        assert one.sha256 == fs.sha256_file(one.path)
        fields = control(one)
        assert (fields["Package"], fields["Version"]) == (one.name, one.version)
        assert fields["Description"] == "a test\n of two lines"
    meta = control(made[META])
    assert made[META].version == version
    assert meta["Depends"] == f"linux-image-{older.kernel} (= 6.1.192-3+cplayground1)"
    modules = control(made["cplayground-modules-cloud-amd64"])
    assert modules["Version"] == f"0.2.0+{version}"
    assert modules["Depends"] == (
        f"cplayground-modules-{older.kernel} (= 0.2.0+6.1.192-3+cplayground1)"
    )


def test_only_the_image_withdraws_the_kernel(tmp_path: Path, older: Release, bad: Release) -> None:
    first = release(tmp_path, "6.1.191-1", abi="6.1.0-56")
    out = tmp_path / "out"
    out.mkdir()
    for one in rollback.packages(bad, first, out, also=[older]):
        content = files(one, tmp_path / one.name)
        if one.name != META:
            assert set(content) == {"/DEBIAN/control", "/DEBIAN/md5sums"}
            continue
        assert content[LIST] == f"{older.kernel}\n{bad.kernel}\n"
        assert (tmp_path / one.name / "DEBIAN/postinst").stat().st_mode & 0o777 == 0o755
        check = ["md5sum", "--strict", "-c", "DEBIAN/md5sums"]
        done = subprocess.run(check, cwd=tmp_path / one.name, capture_output=True, text=True)
        assert done.stdout == f"{LIST[1:]}: OK\n"


def test_two_flavours_have_no_file_in_common(tmp_path: Path, older: Release, bad: Release) -> None:
    lists = set()
    for flavour, variant in (("lab", "release"), ("lab", "kasan"), ("cloud-amd64", "release")):
        target = Target("bookworm", flavour, variant)
        into = tmp_path / target.name
        into.mkdir()
        pair = (release(into, revision=2, target=target), release(into, target=target))
        made = rollback.packages(*pair, into)
        for one in made:
            lists |= {name for name in files(one, into / one.name) if name.startswith("/usr")}
    assert lists == {
        f"/usr/share/cplayground/withdrawn-{name}" for name in ("lab", "lab-kasan", "cloud-amd64")
    }


def test_another_version_of_the_dkms_package_goes_back_too(tmp_path: Path, older: Release) -> None:
    bad = release(tmp_path, revision=2, module="0.3.0")
    out = tmp_path / "out"
    out.mkdir()
    made = {one.name: one for one in rollback.packages(bad, older, out)}
    assert made["cplayground-dkms"].path.name == "cplayground-dkms_0.3.0+deb12+rollback1_all.deb"


def test_a_kernel_of_the_same_release_is_replaced(tmp_path: Path, older: Release) -> None:
    """Debian may build a base again without another ABI; nothing is out of the menu then."""
    bad = release(tmp_path, "6.1.192-4")
    assert bad.kernel == older.kernel
    out = tmp_path / "out"
    out.mkdir()
    made = {one.name: one for one in rollback.packages(bad, older, out)}
    assert len(made) == 6
    version = "6.1.192-4+cplayground1+rollback1"
    assert control(made[META])["Depends"] == f"linux-image-{bad.kernel} (= {version})"
    prebuilt = control(made[f"cplayground-modules-{bad.kernel}"])
    assert prebuilt["Depends"] == f"kmod, linux-image-{bad.kernel} (= {version})"
    assert LIST not in files(made[META], tmp_path / "meta")


def dpkg_less(left: str, right: str) -> bool:
    return subprocess.run(["dpkg", "--compare-versions", left, "lt", right]).returncode == 0


@pytest.mark.parametrize("name", [META, "cplayground-modules-cloud-amd64", "cplayground-dkms"])
def test_its_version_lies_between_the_withdrawn_and_every_later_one(
    tmp_path: Path, older: Release, name: str
) -> None:
    bad = release(tmp_path / "bad", revision=2, module="0.3.0")
    later = [
        *([release(tmp_path / "revision", revision=3, module="0.3.1")]),
        *([release(tmp_path / "base", "6.1.192-3+deb12u1", module="0.3.1")]),
        *([release(tmp_path / "point", "6.1.193-1", abi="6.1.0-58", module="0.3.1")]),
    ]
    order = [next(one.version for one in bad.packages if one.name == name)]
    for number in (1, 2, 10):
        out = tmp_path / str(number)
        out.mkdir()
        made = rollback.packages(bad, older, out, number=number)
        order.append(next(one.version for one in made if one.name == name))
    assert all(dpkg_less(low, high) for low, high in itertools.pairwise(order)), order
    for one in later:
        (version,) = (two.version for two in one.packages if two.name == name)
        assert dpkg_less(order[-1], version)


def test_the_same_releases_give_the_same_bytes(
    tmp_path: Path, older: Release, bad: Release
) -> None:
    digests = []
    for name, umask in (("one", 0o022), ("two", 0o077)):
        (tmp_path / name).mkdir()
        before = os.umask(umask)
        try:
            digests.append([one.sha256 for one in rollback.packages(bad, older, tmp_path / name)])
        finally:
            os.umask(before)
    assert digests[0] == digests[1]


def test_a_package_that_has_changed_is_refused(
    tmp_path: Path, older: Release, bad: Release
) -> None:
    changed = tuple(replace(one, sha256="0" * 64) for one in older.packages)
    with pytest.raises(BuildError, match="has changed") as caught:
        rollback.packages(bad, replace(older, packages=changed), tmp_path)
    assert caught.value.expected == "0" * 64
    lost = tuple(replace(one, path=tmp_path / "lost.deb") for one in older.packages)
    with pytest.raises(BuildError, match=r"lost\.deb has changed"):
        rollback.packages(bad, replace(older, packages=lost), tmp_path)


# The script of the image's metapackage.

BAD, GOOD = "6.1.0-57-cplayground.2-cloud-amd64", "6.1.0-57-cplayground-cloud-amd64"
# Stand-ins.  A mount hides a file from update-grub until the command of unshare ends.
PROGRAMS = {
    "unshare": 'shift; [ ! -e "$TOP/no-mounts" ] || exit 1\n"$@"; s=$?; rm -f "$TOP/hidden"\n'
    'exit "$s"',
    "mount": 'echo "$3" >> "$TOP/hidden"',
    "update-grub": '[ ! -e "$TOP/broken" ] || exit 1\ncd "$TOP/boot"; rm -f grub/new\n'
    'for i in vmlinuz-*; do grep -qsx "$TOP/boot/$i" "$TOP/hidden" || echo "$i" >> grub/new; done\n'
    'mv grub/new grub/grub.cfg; echo "menu of" $(ls) >> "$TOP/said"',
    "linux-update-symlinks": 'echo "symlinks $*" >> "$TOP/said"',
    "uname": f"echo {BAD}",
}


@dataclass
class Server:
    """A machine with two kernels of ours, below ``top``."""

    top: Path

    def configure(self) -> int:
        return self.configured().returncode

    def configured(self) -> subprocess.CompletedProcess[str]:
        text = rollback._SCRIPT.read_text()
        for path in ("/boot", "/usr/share/cplayground", "/etc/kernel", "/run/"):
            text = text.replace(path, f"{self.top}{path}")
        return subprocess.run(
            ["sh", "-c", text, "postinst", "configure"],
            stderr=subprocess.PIPE,
            text=True,
            env={
                "PATH": f"{self.top}/bin:{os.environ['PATH']}",
                "TOP": str(self.top),
                "DPKG_ADMINDIR": str(self.top / "dpkg"),
                "DPKG_MAINTSCRIPT_PACKAGE": META,
            },
        )

    @property
    def boot(self) -> set[str]:
        return {path.name for path in (self.top / "boot").iterdir() if path.is_file()}

    @property
    def menu(self) -> list[str]:
        return (self.top / "boot/grub/grub.cfg").read_text().split()

    def diversions(self) -> str:
        """Return the list of diversions, with the names of files without their directory."""
        command = ["dpkg-divert", "--admindir", f"{self.top}/dpkg", "--list"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return said.replace(f"{self.top}/boot/", "")


@pytest.fixture
def server(tmp_path: Path) -> Server:
    for name, text in PROGRAMS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    for name in ("dpkg", "boot/grub", "etc/kernel/postrm.d", "run", LIST[1:]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir() if name != LIST[1:] else None
    (tmp_path / LIST[1:]).write_text(f"{BAD}\n6.1.0-55-cplayground-cloud-amd64\n")
    for release in (BAD, GOOD):
        (tmp_path / f"boot/vmlinuz-{release}").write_text(release)
    (tmp_path / "boot/grub/grub.cfg").write_text(f"vmlinuz-{BAD}\nvmlinuz-{GOOD}\n")
    hook = tmp_path / "etc/kernel/postrm.d/zz-update-grub"
    hook.write_text('#!/bin/sh\necho "hook $* $DEB_MAINT_PARAMS" >> "$TOP/said"\nupdate-grub\n')
    hook.chmod(0o755)
    return Server(tmp_path)


def test_a_withdrawn_kernel_leaves_the_menu_before_its_file_is_renamed(server: Server) -> None:
    assert server.configure() == 0
    assert server.boot == {f"vmlinuz-{GOOD}", f"withdrawn-vmlinuz-{BAD}"}
    assert server.menu == [f"vmlinuz-{GOOD}"]
    said = (server.top / "said").read_text().replace(f"{server.top}/boot/", "").splitlines()
    assert said == [
        f"menu of grub vmlinuz-{GOOD} vmlinuz-{BAD}",
        f"symlinks remove {BAD} vmlinuz-{BAD}",
        f"hook {BAD} vmlinuz-{BAD} remove",
        f"menu of grub vmlinuz-{GOOD} withdrawn-vmlinuz-{BAD}",
    ]
    assert server.diversions() == (
        f"diversion of vmlinuz-{BAD} to withdrawn-vmlinuz-{BAD} by {META}\n"
    )
    # The one that runs asks for a reboot.
    assert (server.top / "run/reboot-required").exists()
    assert (server.top / "run/reboot-required.pkgs").read_text() == f"{META}\n"


def test_a_menu_that_cannot_be_made_stays_with_its_files(server: Server) -> None:
    (server.top / "broken").touch()
    before = server.boot, server.menu
    assert server.configure() != 0
    assert (server.boot, server.menu) == before
    assert server.diversions() == ""
    (server.top / "broken").unlink()
    assert server.configure() == 0
    assert server.menu == [f"vmlinuz-{GOOD}"]


def test_an_interrupted_run_is_finished_by_the_next(server: Server) -> None:
    hook = server.top / "etc/kernel/postrm.d/initramfs-tools"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    assert server.configure() != 0
    assert server.menu == [f"vmlinuz-{GOOD}"]
    hook.unlink()
    assert server.configure() == 0
    said = (server.top / "said").read_text()
    assert server.configure() == 0
    assert server.boot == {f"vmlinuz-{GOOD}", f"withdrawn-vmlinuz-{BAD}"}
    assert "hook" in said


@pytest.mark.parametrize("lacks", ["mounts", "menu"])
def test_a_machine_without_mounts_or_grub_withdraws_too(server: Server, lacks: str) -> None:
    if lacks == "mounts":
        (server.top / "no-mounts").touch()
    else:
        (server.top / "boot/grub/grub.cfg").unlink()
        (server.top / "bin/update-grub").write_text("#!/bin/sh\n")
    assert server.configure() == 0
    assert server.boot == {f"vmlinuz-{GOOD}", f"withdrawn-vmlinuz-{BAD}"}
    if lacks == "mounts":
        assert server.menu == [f"vmlinuz-{GOOD}"]


def test_a_server_without_the_withdrawn_kernel_is_left_alone(server: Server) -> None:
    (server.top / f"boot/vmlinuz-{BAD}").unlink()
    assert server.configure() == 0
    assert not (server.top / "said").exists()
    assert server.diversions() == ""


@pytest.mark.parametrize("other", ["nothing", "a link", "an empty file", "an unpacked file"])
def test_the_last_kernel_is_never_hidden(server: Server, other: str) -> None:
    boot = server.top / "boot"
    good = boot / f"vmlinuz-{GOOD}"
    # The other one of the list is no kernel to start either.
    (boot / "vmlinuz-6.1.0-55-cplayground-cloud-amd64").write_text("withdrawn too")
    text = good.read_text()
    good.unlink()
    if other == "a link":
        good.symlink_to(boot / f"vmlinuz-{BAD}")
    elif other == "an empty file":
        good.touch()
    elif other == "an unpacked file":
        good.with_name(f"{good.name}.dpkg-new").write_text(text)
    before = server.boot, server.menu
    done = server.configured()
    assert done.returncode == 0
    assert f"vmlinuz-{BAD}" in done.stderr
    assert (server.boot, server.menu) == before
    assert server.diversions() == ""
    assert not (server.top / "said").exists()
    # With a kernel to start, the next run withdraws it.
    good.unlink(missing_ok=True)
    good.write_text(text)
    assert server.configured().stderr.count("stay in the boot menu") == 0
    assert f"withdrawn-vmlinuz-{BAD}" in server.boot
    assert server.menu[0] == f"vmlinuz-{GOOD}"


def test_debians_kernel_is_one_to_start(server: Server) -> None:
    (server.top / f"boot/vmlinuz-{GOOD}").rename(server.top / "boot/vmlinuz-6.1.0-57-cloud-amd64")
    assert server.configure() == 0
    assert server.boot == {"vmlinuz-6.1.0-57-cloud-amd64", f"withdrawn-vmlinuz-{BAD}"}


def test_a_name_that_only_begins_like_a_withdrawn_one_is_another(server: Server) -> None:
    (server.top / f"boot/vmlinuz-{GOOD}").rename(server.top / f"boot/vmlinuz-{BAD}-2")
    assert server.configure() == 0
    assert server.boot == {f"vmlinuz-{BAD}-2", f"withdrawn-vmlinuz-{BAD}"}

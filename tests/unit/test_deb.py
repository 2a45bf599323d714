"""The kernel's packages: their files, and their control data."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from debian.changelog import Changelog
from debian.deb822 import Deb822

from kbuild.core import fs, sandbox
from kbuild.core.errors import BuildError
from kbuild.core.model import Root
from kbuild.core.run import Arg, Completed
from kbuild.ship import deb, headers, versions
from tests.unit import fake_kernel
from tests.unit.fake_kernel import EPOCH, RELEASE

PROJECT = Path(__file__).parents[2]


def names_below(top: Path) -> set[str]:
    return {
        path.relative_to(top).as_posix()
        for path in top.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_image_holds_the_kernel_and_the_modules_untouched(tmp_path: Path) -> None:
    kernel = fake_kernel.kernel(tmp_path)
    deb.stage_image(kernel, tmp_path / "stage")
    below = f"lib/modules/{RELEASE}"
    assert names_below(tmp_path / "stage") == {
        f"boot/vmlinuz-{RELEASE}",
        f"boot/System.map-{RELEASE}",
        f"boot/config-{RELEASE}",
        f"{below}/kernel/fs/ext4/ext4.ko",
        f"{below}/modules.builtin",
        f"{below}/modules.builtin.modinfo",
        f"{below}/modules.order",
    }
    assert kernel.modules is not None
    module = "kernel/fs/ext4/ext4.ko"
    assert fs.sha256_file(tmp_path / "stage" / below / module) == fs.sha256_file(
        kernel.modules / module
    )


def test_image_without_modules_still_takes_ours(tmp_path: Path) -> None:
    kernel = replace(fake_kernel.kernel(tmp_path), modules=None)
    fake_kernel.write(kernel.output / "modules.builtin", "kernel/fs/proc/proc.ko\n")
    deb.stage_image(kernel, tmp_path / "stage")
    modules = tmp_path / "stage/lib/modules" / RELEASE
    assert names_below(modules) == {"modules.builtin", "modules.order"}


@pytest.mark.parametrize("lost", ["out/System.map", "out/arch/x86/boot/bzImage", "config"])
def test_image_needs_its_files(tmp_path: Path, lost: str) -> None:
    kernel = fake_kernel.kernel(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(BuildError, match="missing") as caught:
        deb.stage_image(kernel, tmp_path / "stage")
    assert lost in str(caught.value)


def test_image_of_another_release_is_refused(tmp_path: Path) -> None:
    kernel = replace(fake_kernel.kernel(tmp_path), release="6.1.0-57-cplayground-cloud-amd64")
    with pytest.raises(BuildError, match="another release") as caught:
        deb.stage_image(kernel, tmp_path / "stage")
    assert caught.value.found == RELEASE


def test_headers_hold_what_a_module_build_reads(tmp_path: Path) -> None:
    kernel = fake_kernel.kernel(tmp_path)
    headers.stage(kernel, tmp_path / "stage", compiler="gcc-12")
    top = tmp_path / "stage/usr/src" / f"linux-headers-{RELEASE}"
    assert names_below(top) == {
        ".config",
        ".kernelvariables",
        "Kconfig",
        "Makefile",
        "Module.symvers",
        "arch/x86/Makefile",
        "arch/x86/include/asm/io.h",
        "arch/x86/include/generated/uapi/asm/types.h",
        "drivers/net/Makefile",
        "include/config/auto.conf",
        "include/config/kernel.release",
        "include/generated/autoconf.h",
        "include/generated/utsrelease.h",
        "include/linux/module.h",
        "scripts/Makefile.build",
        "scripts/basic/fixdep",
        "scripts/checkpatch.pl",
        "scripts/mod/modpost",
        "scripts/module.lds",
        "tools/objtool/objtool",
    }
    link = tmp_path / "stage/lib/modules" / RELEASE / "build"
    assert str(link.readlink()) == f"/usr/src/linux-headers-{RELEASE}"
    assert (top / "scripts/mod/modpost").stat().st_mode & 0o111
    assert (top / "include/config/kernel.release").read_text() == f"{RELEASE}\n"
    assert "CC = $(CROSS_COMPILE)gcc-12\n" in (top / ".kernelvariables").read_text()
    assert (top / "Module.symvers").read_text() == kernel.symvers.read_text()


@pytest.mark.parametrize(
    "lost",
    [
        "tools/objtool/objtool",
        "scripts/mod/modpost",
        "scripts/module.lds",
        "include/generated/autoconf.h",
    ],
)
def test_headers_without_which_no_module_builds_are_refused(tmp_path: Path, lost: str) -> None:
    kernel = fake_kernel.kernel(tmp_path)
    (kernel.output / lost).unlink()
    with pytest.raises(BuildError, match="incomplete") as caught:
        headers.stage(kernel, tmp_path / "stage", compiler="gcc-12")
    assert caught.value.expected == lost


@pytest.mark.parametrize("option", ["OBJTOOL", "STACK_VALIDATION"])
def test_headers_without_the_objtool_that_the_kernel_runs_are_refused(
    tmp_path: Path, option: str
) -> None:
    kernel = fake_kernel.kernel(tmp_path)
    (kernel.output / "tools/objtool/objtool").unlink()
    (kernel.output / "include/config/auto.conf").write_text(f"CONFIG_{option}=y\n")
    with pytest.raises(BuildError, match="incomplete") as caught:
        headers.stage(kernel, tmp_path / "stage", compiler="gcc-12")
    assert caught.value.expected == "tools/objtool/objtool"


def test_headers_need_objtool_only_where_the_kernel_says_so(tmp_path: Path) -> None:
    kernel = fake_kernel.kernel(tmp_path)
    (kernel.output / "tools/objtool/objtool").unlink()
    (kernel.output / "include/config/auto.conf").write_text("CONFIG_MODULES=y\n")
    headers.stage(kernel, tmp_path / "stage", compiler="gcc-12")


@pytest.mark.parametrize(
    ("compiler", "lines"),
    [
        ("gcc-12", ["CC = $(CROSS_COMPILE)gcc-12"]),
        (
            "x86_64-linux-gnu-gcc-14",
            ["CC = $(CROSS_COMPILE)gcc-14", "override CROSS_COMPILE = x86_64-linux-gnu-"],
        ),
    ],
)
def test_headers_name_the_compiler_as_debian_s_own_do(compiler: str, lines: list[str]) -> None:
    text = headers.kernel_variables(RELEASE, compiler)
    assert text.splitlines() == [
        "override ARCH = x86",
        f"override KERNELRELEASE = {RELEASE}",
        *lines,
    ]


@pytest.mark.parametrize(("suite", "prefix"), [("bookworm", ""), ("trixie", "usr/")])
def test_packages_install_where_their_suite_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suite: str, prefix: str
) -> None:
    builder = FakeBuilder()
    monkeypatch.setattr(sandbox, "enter", builder)
    module = fake_kernel.write(tmp_path / "cplayground.ko", "module")
    deb.build_prebuilt(
        fake_kernel.settings(tmp_path),
        Root(suite, Path("/nowhere"), "digest"),
        fake_kernel.kernel(tmp_path),
        module,
        epoch=EPOCH,
        log=tmp_path / "log",
        out=tmp_path / "debs",
    )
    assert builder.files == {
        f"modules/{prefix}lib/modules/{RELEASE}/extra/cplayground.ko",
        # Its name differs from that in another kernel's package, because both are installed.
        f"modules/usr/lib/modules-load.d/cplayground-{RELEASE}.conf",
        "cplayground.conf",
    }


class FakeBuilder:
    """Stands in for sandbox.enter: takes the rendered tree, leaves small packages."""

    def __init__(self, *, leave_out: str = "", status: int = 0, output: str = "") -> None:
        self.leave_out = leave_out
        self.status = status
        self.output = output
        self.debian: dict[str, str] = {}
        self.staged = ""
        self.files: set[str] = set()  # staged, by role
        self.environment: dict[str, str] = {}

    def __call__(
        self,
        root: Root,
        argv: Sequence[Arg],
        *,
        binds: Sequence[sandbox.Bind],
        env: Mapping[str, str] | None = None,
        **options: object,
    ) -> Completed:
        if argv[0] == "lintian":
            return Completed(tuple(map(str, argv)), self.status, self.output, "", 0.1)
        assert list(argv) == ["dpkg-buildpackage", "-b", "-uc", "-us"]
        (bind,) = binds
        assert bind.writable
        self.environment = dict(env or {})
        tree = bind.source / "source"
        self.staged = fs.sha256_tree(tree)
        self.files = names_below(tree / "stage")
        for path in sorted((tree / "debian").rglob("*")):
            if path.is_file():
                self.debian[path.relative_to(tree / "debian").as_posix()] = path.read_text()
        source = Deb822(self.debian["control"])
        version = str(Changelog(self.debian["changelog"]).version)
        listed = []
        for stanza in Deb822.iter_paragraphs(self.debian["control"].split("\n\n", 1)[1]):
            if stanza["Package"] == self.leave_out:
                continue
            file = f"{stanza['Package']}_{version}_{stanza['Architecture']}.deb"
            content = file.encode()
            (bind.source / file).write_bytes(content)
            listed.append(f" {hashlib.sha256(content).hexdigest()} {len(content)} {file}")
        (bind.source / "stray_1_amd64.deb").write_text("not ours")
        (bind.source / f"{source['Source']}_{version}_amd64.changes").write_text(
            f"Source: {source['Source']}\nVersion: {version}\nChecksums-Sha256:\n"
            + "\n".join(listed)
            + "\n"
        )
        return Completed(tuple(map(str, argv)), 0, "", "", 0.1)


ROOT = Root("bookworm", Path("/nowhere"), "digest")


def build(
    tmp_path: Path, builder: Callable[..., Completed], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    monkeypatch.setattr(sandbox, "enter", builder)
    kernel = fake_kernel.kernel(tmp_path)
    packages = deb.build_kernel_packages(
        fake_kernel.settings(tmp_path),
        ROOT,
        kernel,
        epoch=EPOCH,
        log=tmp_path / "log",
        out=tmp_path / "debs",
    )
    return [package.name for package in packages]


def test_kernel_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = FakeBuilder()
    assert build(tmp_path, builder, monkeypatch) == [
        f"linux-headers-{RELEASE}",
        "linux-headers-cplayground-cloud-amd64",
        f"linux-image-{RELEASE}",
        "linux-image-cplayground-cloud-amd64",
    ]
    assert builder.environment["SOURCE_DATE_EPOCH"] == str(EPOCH)
    # Only what the .changes file lists is taken, and no work is left behind.
    assert not (tmp_path / "debs/stray_1_amd64.deb").exists()
    assert not list(tmp_path.glob(".debs.*"))


def test_kernel_packages_depend_on_each_other_by_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = FakeBuilder()
    build(tmp_path, builder, monkeypatch)
    stanzas = {
        stanza["Package"]: stanza
        for stanza in Deb822.iter_paragraphs(builder.debian["control"])
        if "Package" in stanza
    }
    for kind in ("image", "headers"):
        depends = stanzas[f"linux-{kind}-cplayground-cloud-amd64"]["Depends"]
        assert f"linux-{kind}-{RELEASE} (= ${{binary:Version}})" in depends.split(",")
    assert "gcc-12" in stanzas[f"linux-headers-{RELEASE}"]["Depends"]
    assert "linux-libc-dev" not in "".join(builder.debian.values())
    # Debian's headers are not needed.
    assert "linux-kbuild" not in stanzas[f"linux-headers-{RELEASE}"]["Depends"]
    assert stanzas[f"linux-image-{RELEASE}"]["Built-Using"] == "linux (= 6.1.192-2)"


def test_kernel_changelog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = FakeBuilder()
    build(tmp_path, builder, monkeypatch)
    changelog = Changelog(builder.debian["changelog"], strict=True)
    assert str(changelog.version) == "6.1.192-2+cplayground1"
    assert changelog.date == "Mon, 16 Nov 2026 10:17:40 +0000"
    assert "fs: export file tables" in str(changelog)


def test_same_input_gives_the_same_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = FakeBuilder(), FakeBuilder(), FakeBuilder()
    build(tmp_path / "one", first, monkeypatch)
    build(tmp_path / "two", second, monkeypatch)
    assert first.staged == second.staged
    monkeypatch.setattr(deb, "COMPRESSION", 9)
    build(tmp_path / "three", third, monkeypatch)
    assert first.staged != third.staged


def test_no_word_of_a_template_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = FakeBuilder()
    build(tmp_path, builder, monkeypatch)
    assert "control" in builder.debian
    for name, text in builder.debian.items():
        assert "{{" not in text and "{%" not in text, name
        assert not name.endswith(".j2")


def test_maintainer_scripts_are_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = FakeBuilder()
    build(tmp_path, builder, monkeypatch)
    scripts = {
        name: text
        for name, text in builder.debian.items()
        if name.endswith(("preinst", "postinst", "prerm", "postrm"))
    }
    assert set(scripts) == {
        f"linux-image-{RELEASE}.preinst",
        f"linux-image-{RELEASE}.postinst",
        f"linux-image-{RELEASE}.prerm",
        f"linux-image-{RELEASE}.postrm",
        f"linux-headers-{RELEASE}.postinst",
    }
    for name, text in scripts.items():
        path = fake_kernel.write(tmp_path / name, text)
        assert subprocess.run(["sh", "-n", path]).returncode == 0
        assert "#DEBHELPER#" in text
        assert f"release={RELEASE}" in text


def test_a_withdrawn_kernel_enters_no_menu_and_leaves_no_diversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = FakeBuilder()
    build(tmp_path, builder, monkeypatch)
    image, log = tmp_path / f"boot/vmlinuz-{RELEASE}", tmp_path / "log"
    admin = fake_kernel.write(tmp_path / "dpkg/diversions").parent
    for name in ("linux-update-symlinks", "depmod"):
        fake_kernel.write(tmp_path / "bin" / name, f'#!/bin/sh\necho "$0" >> {log}\n', mode=0o755)
    hook = f'#!/bin/sh\necho "$0" >> {log}\n'
    for name in ("postinst.d/hook", "postrm.d/hook"):
        fake_kernel.write(tmp_path / "hooks" / name, hook, mode=0o755)

    def run(script: str, action: str) -> list[str]:
        text = builder.debian[f"linux-image-{RELEASE}.{script}"]
        for path, ours in {
            "/lib/modules": "modules",
            "/boot": "boot",
            "/etc/kernel": "hooks",
        }.items():
            text = text.replace(path, f"{tmp_path}/{ours}")
        env = {
            "PATH": f"{tmp_path}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "DPKG_ADMINDIR": f"{admin}",
            "DPKG_MAINTSCRIPT_PACKAGE": f"linux-image-{RELEASE}",
        }
        fake_kernel.write(log)
        subprocess.run(["sh", "-c", text, script, action], env=env, check=True)
        return [Path(line).name for line in log.read_text().splitlines()]

    def divert(owner: str) -> str:
        command = ["dpkg-divert", "--admindir", f"{admin}", "--no-rename", "--quiet"]
        away = f"{image.parent}/withdrawn-{image.name}"
        added = [*command, "--package", owner, "--divert", away, "--add", f"{image}"]
        subprocess.run(added, check=True)
        return f"{image}\n{away}\n{owner}\n"

    whole = ["depmod", "linux-update-symlinks", "hook"]
    assert run("postinst", "configure") == whole
    divert("linux-image-cplayground-cloud-amd64")
    assert run("postinst", "configure") == whole[:1]
    before = (admin / "diversions").read_text()
    assert run("postrm", "upgrade") == ["hook"]
    assert (admin / "diversions").read_text() == before
    assert run("postrm", "remove") == whole[1:]
    assert (admin / "diversions").read_text() == ""
    # An administrator's own diversion is not ours to remove, and no error.
    other = divert("other")
    assert run("postrm", "remove") == whole[1:]
    assert (admin / "diversions").read_text() == other


def test_purge_leaves_nothing_that_depmod_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables are those of Debian 12, of Debian 13 (weakdep), and one to come."""
    builder = FakeBuilder()
    build(tmp_path, builder, monkeypatch)
    modules = tmp_path / "modules" / RELEASE
    script = (
        builder.debian[f"linux-image-{RELEASE}.postrm"]
        .replace("/lib/modules/", f"{tmp_path}/modules/")
        .replace("/etc/kernel/", f"{tmp_path}/hooks/")
    )
    tables = ["alias", "alias.bin", "builtin.alias.bin", "dep", "dep.bin", "devname", "softdep"]
    for table in [*tables, "symbols.bin", "weakdep", "to-come"]:
        fake_kernel.write(modules / f"modules.{table}")
    fake_kernel.write(tmp_path / "bin/linux-update-symlinks", "#!/bin/sh\n", mode=0o755)

    def postrm(action: str) -> None:
        path = f"{tmp_path}/bin:/usr/bin:/bin"
        subprocess.run(["sh", "-c", script, "postrm", action], env={"PATH": path}, check=True)

    postrm("remove")
    assert (modules / "modules.dep").exists()
    other = fake_kernel.write(modules / "updates/dkms/other.ko")
    postrm("purge")
    assert names_below(modules) == {"updates/dkms/other.ko"}
    other.unlink()
    for directory in (other.parent, other.parent.parent):
        directory.rmdir()
    postrm("purge")
    assert not modules.exists()


@pytest.mark.parametrize("table", ["weakdep", "to-come", "builtin.alias.bin"])
def test_image_leaves_out_what_depmod_makes(tmp_path: Path, table: str) -> None:
    kernel = fake_kernel.kernel(tmp_path)
    assert kernel.modules is not None
    fake_kernel.write(kernel.modules / f"modules.{table}")
    # Linux 6.12 and later make it themselves.
    fake_kernel.write(kernel.modules / "modules.builtin.ranges")
    deb.stage_image(kernel, tmp_path / "stage")
    modules = tmp_path / "stage/lib/modules" / RELEASE
    assert {path.name for path in modules.glob("modules.*")} == {
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.builtin.ranges",
        "modules.order",
    }


def test_leftovers_of_a_killed_packaging_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (".debs.work.a1b2", ".debs.c3d4", ".debs.old.e5f6"):
        fake_kernel.write(tmp_path / name / "left/x.deb")
    lock = fake_kernel.write(tmp_path / ".debs.lock")
    others = fake_kernel.write(tmp_path / ".debs-other.work.a1b2/x.deb")
    build(tmp_path, FakeBuilder(), monkeypatch)
    assert lock.exists() and others.exists()
    assert [path.name for path in tmp_path.glob(".debs.*")] == [lock.name]


def test_lost_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = FakeBuilder(leave_out="linux-headers-cplayground-cloud-amd64")
    with pytest.raises(BuildError, match="without linux-headers-cplayground-cloud-amd64"):
        build(tmp_path, builder, monkeypatch)
    assert not (tmp_path / "debs").exists()


def test_prebuilt_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = FakeBuilder()
    monkeypatch.setattr(sandbox, "enter", builder)
    module = fake_kernel.write(tmp_path / "cplayground.ko", "module")
    settings = fake_kernel.settings(tmp_path)
    packages = deb.build_prebuilt(
        settings,
        ROOT,
        fake_kernel.kernel(tmp_path),
        module,
        epoch=EPOCH,
        log=tmp_path / "log",
        out=tmp_path / "debs",
    )
    assert [package.name for package in packages] == [
        f"cplayground-modules-{RELEASE}",
        "cplayground-modules-cloud-amd64",
    ]
    version = versions.module_version(settings.project)
    assert {package.version for package in packages} == {f"{version}+6.1.192-2+cplayground1"}
    assert f"linux-image-{RELEASE} (= 6.1.192-2+cplayground1)" in builder.debian["control"]


def test_unknown_name_in_a_template_is_an_error(tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    fake_kernel.write(templates / "control.j2", "Package: {{ unheard_of }}\n")
    source = deb.SourcePackage("s", "1", templates, {}, {})
    with pytest.raises(BuildError, match="unheard_of"):
        deb.render(source, tmp_path / "debian", epoch=EPOCH)


def test_changes_with_a_changed_package_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, FakeBuilder(), monkeypatch)
    (changes,) = (tmp_path / "debs").glob("*.changes")
    victim = deb.read_changes(changes)[0].path
    victim.write_bytes(victim.read_bytes() + b"x")
    with pytest.raises(BuildError, match="differs from its digest"):
        deb.read_changes(changes)
    victim.unlink()
    with pytest.raises(BuildError, match="differs from its digest") as caught:
        deb.read_changes(changes)
    assert caught.value.found == "no such file"


def test_lint_lists_the_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = "running with root privileges\nE: linux-image-x: bad-thing [usr]\nN: aside\n"
    monkeypatch.setattr(sandbox, "enter", FakeBuilder(status=2, output=output))
    changes = fake_kernel.write(tmp_path / "x.changes")
    with pytest.raises(BuildError, match="lintian found 1 fault") as caught:
        deb.lint(ROOT, [changes], log=tmp_path / "log")
    assert caught.value.found == "E: linux-image-x: bad-thing [usr]"
    monkeypatch.setattr(sandbox, "enter", FakeBuilder(status=0))
    deb.lint(ROOT, [changes], log=tmp_path / "log")


def test_every_override_gives_its_reason() -> None:
    overrides = sorted((PROJECT / "debian").rglob("*.lintian-overrides"))
    assert overrides
    for path in overrides:
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if line and not line.startswith("#"):
                assert number > 0 and lines[number - 1].startswith("#"), f"{path}:{number + 1}"


@pytest.mark.parametrize("name", ["changelog.Debian.gz", "changelog.gz"])
def test_changelog_epoch(tmp_path: Path, name: str) -> None:
    path = tmp_path / "usr/share/doc/thing" / name
    path.parent.mkdir(parents=True)
    entry = "thing ({}) bookworm; urgency=low\n\n  * It.\n\n -- Nobody <nobody@example.org>  {}\n\n"
    text = entry.format("1-1", "Mon, 16 Nov 2026 10:17:40 +0000")
    path.write_bytes(gzip.compress((text + entry.format("1-0", "Mon, 02 Nov 2026")).encode()))
    assert deb.changelog_epoch(tmp_path, "thing") == EPOCH
    with pytest.raises(BuildError, match="no changelog"):
        deb.changelog_epoch(tmp_path, "other")


def test_control_lines_fit() -> None:
    """Check descriptions by lintian's rules, in less time."""
    templates = sorted((PROJECT / "debian").rglob("control.j2"))
    assert templates
    for path in templates:
        for line in path.read_text().splitlines():
            if re.match(r"^ \S", line) and "{{" not in line:
                assert len(line) <= 80, f"{path}: {line}"


@pytest.mark.parametrize(
    "planted", ["../precious", "/{0}/precious", "link", "pipe", "away/precious"]
)
def test_a_root_names_no_file_of_the_host_as_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("of the host")
    name = planted.format(tmp_path)
    usual = FakeBuilder()

    def enter(
        root: Root, argv: Sequence[Arg], *, binds: Sequence[sandbox.Bind], **options: object
    ) -> Completed:
        done = usual(root, argv, binds=binds, **options)  # type: ignore[arg-type]
        work = binds[0].source
        (work / "link").symlink_to(precious)
        (work / "away").symlink_to(tmp_path)
        os.mkfifo(work / "pipe")
        (changes,) = work.glob("*.changes")
        changes.write_text(changes.read_text() + f" {'0' * 64} 11 {name}\n")
        return done

    with pytest.raises(BuildError, match="not a file next to it") as caught:
        build(tmp_path, enter, monkeypatch)
    assert caught.value.found == name
    assert precious.read_text() == "of the host"
    assert not (tmp_path / "debs").exists()


def test_a_signed_kernel_and_module_take_the_place_of_the_built_ones(tmp_path: Path) -> None:
    built = fake_kernel.kernel(tmp_path)
    signed = tmp_path / "signed"
    fake_kernel.write(signed / "vmlinuz", "signed kernel\n")
    fake_kernel.write(signed / "modules/kernel/fs/ext4/ext4.ko", "signed module\n")
    deb.stage_image(built, tmp_path / "image", signed=signed)
    deb.stage_image(built, tmp_path / "plain")
    image, plain = (
        tmp_path / name / f"boot/vmlinuz-{built.release}" for name in ("image", "plain")
    )
    module = tmp_path / f"image/lib/modules/{built.release}/kernel/fs/ext4/ext4.ko"
    assert (image.read_text(), module.read_text()) == ("signed kernel\n", "signed module\n")
    assert plain.read_bytes() == deb.image(built).read_bytes()
    ours, theirs = (fs.sha256_tree(tmp_path / name / "lib") for name in ("image", "plain"))
    assert ours != theirs
    assert sorted(p.name for p in (tmp_path / "image").rglob("*")) == sorted(
        p.name for p in (tmp_path / "plain").rglob("*")
    )

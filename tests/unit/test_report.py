"""The report on a kernel: its exports, failing hunks, options that are gone, and news."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kbuild.core import suites
from kbuild.core.errors import InfrastructureError, UserError
from kbuild.core.model import Settings, Target
from kbuild.kernel import hunks, kconfig, quilt, symvers
from kbuild.report import kernels
from kbuild.report import text as report_text
from kbuild.report.kernels import (
    Backend,
    Fix,
    GoneOptions,
    KernelReport,
    Lacking,
    News,
    SeriesVerdict,
)
from kbuild.ship import manifest
from kbuild.ship.manifest import Manifest
from tests.unit import fake_kernel, signed_archive, toy, toy_elf
from tests.unit.signed_archive import Server, SignedArchive, Waits

FUNCTION = """\
void put_files_struct(struct files_struct *files)
{
	if (files)
		close_files(files);
}
"""
CHANGELOG = """\
linux (6.1.192-2) bookworm-security; urgency=high

  * ext4: fix NULL folio dereference in mballoc (Closes: #1154101)

 -- A B <a@example.org>  Mon, 16 Nov 2026 11:17:40 +0100

linux (6.1.192-1) bookworm-security; urgency=high

  * New upstream stable update:
    https://example.org/ChangeLog-6.1.191
    - io_uring/io-wq: don't lose the signal that ends work (CVE-2026-99228)
    - smb: client: fix OOB read/write from unvalidated DataOffset in
      coalesce_t2() (CVE-2026-89633, CVE-2026-89634)
    - nothing of interest

  [ A B ]
  * io-wq: again (CVE-2026-99228)

 -- A B <a@example.org>  Sun, 15 Nov 2026 11:17:40 +0100

linux (6.1.187-1) bookworm-security; urgency=high

  * old (CVE-2025-1111)

 -- A B <a@example.org>  Sun, 15 Mar 2026 11:17:40 +0100
"""


@pytest.fixture
def distro(tmp_path: Path) -> toy.ToyDistro:
    return toy.make(tmp_path)


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def exported(distro: toy.ToyDistro) -> dict[str, symvers.ExportedSymbol]:
    return symvers.read(distro.headers / "usr/src" / f"linux-headers-{toy.RELEASE}/Module.symvers")


def test_a_backend_works_if_all_it_needs_is_exported(distro: toy.ToyDistro) -> None:
    stock = kernels.judge_backend(
        "stock", {"open", "exit_files"}, exported(distro), distro.pristine
    )
    assert (stock.works, stock.needs, stock.lacking) == (True, 2, ())


def test_a_missing_symbol_is_named_with_its_place(distro: toy.ToyDistro) -> None:
    needed = {"open", "put_files_struct", "get_files_struct"}
    found = kernels.judge_backend("export", needed, exported(distro), distro.pristine)
    assert not found.works
    assert found.lacking == (
        Lacking("get_files_struct", None),
        Lacking("put_files_struct", "fs/file.c:8"),
    )


def test_a_declaration_is_no_definition() -> None:
    lines = ["void f(int a,", "       int b);", "", "static int g(void)", "{", "\tf(1, 2);", "}"]
    assert hunks.function_span(lines, "f") is None
    assert hunks.function_span(lines, "g") == (3, 6)


def test_the_series_of_the_range_applies(distro: toy.ToyDistro) -> None:
    (verdict,) = kernels.judge_series(distro.patches, distro.base, distro.pristine)
    assert (verdict.series, verdict.chosen, verdict.applies) == ("5.11", True, True)


def test_where_no_series_is_for_a_kernel_each_is_tried(distro: toy.ToyDistro) -> None:
    rewrite(distro.patches / "5.11/range", ">=5.11,<8", ">=7")
    (verdict,) = kernels.judge_series(distro.patches, distro.base, distro.pristine)
    assert (verdict.chosen, verdict.applies) == (False, True)


def test_a_series_for_other_kernels_is_not_tried_where_one_is_for_this(
    distro: toy.ToyDistro,
) -> None:
    for name in ("series", "export.patch"):
        toy.write(distro.patches / "5.10" / name, (distro.patches / "5.11" / name).read_text())
    toy.write(distro.patches / "5.10/range", "<5.11\n")
    (verdict,) = kernels.judge_series(distro.patches, distro.base, distro.pristine)
    assert verdict.series == "5.11"


def test_a_failing_hunk_names_its_function_and_what_changed(distro: toy.ToyDistro) -> None:
    rewrite(distro.pristine / "fs/file.c", "\tif (files)\n", "\tif (files && !files->dead)\n")
    (verdict,) = kernels.judge_series(distro.patches, distro.base, distro.pristine)
    assert not verdict.applies
    (hunk,) = verdict.hunks
    assert (hunk.patch, hunk.file, hunk.line) == ("export.patch", "fs/file.c", 5)
    assert "put_files_struct() is at line 8" in hunk.functions
    assert "close_files() is at line 3" in hunk.functions
    assert "-\tif (files)" in hunk.change
    assert "+\tif (files && !files->dead)" in hunk.change
    # Only that line differs: what stands around it is shown, not called new.
    assert [line for line in hunk.change if line[0] in "+-"] == [
        "-\tif (files)",
        "+\tif (files && !files->dead)",
    ]


def test_the_change_is_shown_from_the_last_built_source(
    distro: toy.ToyDistro, tmp_path: Path
) -> None:
    older = tmp_path / "older"
    toy.write(older / "fs/file.c", toy.FILE_C)
    rewrite(distro.pristine / "fs/file.c", FUNCTION, "")
    verdict = kernels.judge_series(
        distro.patches, distro.base, distro.pristine, ("6.1.187-1", older)
    )
    (hunk,) = verdict[0].hunks
    assert hunk.since == "6.1.187-1"
    assert "put_files_struct() is gone from it" in hunk.functions
    assert [line[1:] for line in hunk.change] == FUNCTION.splitlines()


def test_a_file_that_is_gone_is_named(distro: toy.ToyDistro) -> None:
    (distro.pristine / "fs/file.c").unlink()
    (verdict,) = kernels.judge_series(distro.patches, distro.base, distro.pristine)
    assert not verdict.applies
    assert "fs/file.c" in (verdict.why or "")


def test_a_patch_that_applies_in_the_wrong_place_says_so(distro: toy.ToyDistro) -> None:
    path = distro.patches / "5.11/export.patch"
    rewrite(path, "+EXPORT_SYMBOL_GPL(put_files_struct);\n", "+EXPORT_SYMBOL_GPL(close_files);\n")
    (verdict,) = kernels.judge_series(distro.patches, distro.base, distro.pristine)
    assert not verdict.applies
    assert verdict.hunks == ()
    assert "does not follow its own function" in (verdict.why or "")


def test_hunks_after_one_that_applied_are_tried_on_its_result(distro: toy.ToyDistro) -> None:
    second = (
        "Description: d\nForwarded: no\nLast-Update: 2026-01-01\nX-Exports: put_files_struct\n---\n"
        "--- a/fs/file.c\n+++ b/fs/file.c\n@@ -12,2 +12,3 @@\n"
        " EXPORT_SYMBOL_GPL(get_files_struct);\n+/* more */\n \n"
    )
    toy.write(distro.patches / "5.11/second.patch", second)
    toy.write(distro.patches / "5.11/series", "export.patch\nsecond.patch\n")
    series = quilt.read_series(distro.patches / "5.11")
    assert kernels.failing_hunks(series, distro.pristine) == ()


def test_options_are_found_by_following_source(tmp_path: Path) -> None:
    toy.write(tmp_path / "Kconfig", 'mainmenu "L"\nsource "arch/$(SRCARCH)/Kconfig"\nsource "b"\n')
    toy.write(tmp_path / "arch/x86/Kconfig", "config\tX86\n\tbool\n\thelp\n\t  config of it\n")
    toy.write(tmp_path / "arch/arm/Kconfig", "config ARM\n")
    toy.write(tmp_path / "b", "if X86\n  menuconfig NET\nendif\nsource missing/Kconfig\n")
    assert set(kconfig.definitions(tmp_path)) == {"X86", "NET"}
    toy.write(tmp_path / "lab.config", "CONFIG_NET=y\n# CONFIG_ARM is not set\n")
    (gone,) = kernels.gone_options([tmp_path / "lab.config"], kconfig.definitions(tmp_path))
    assert gone == GoneOptions("lab.config", ("ARM",), 2)


def test_an_option_that_a_fragment_can_do_without_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "lab.config"
    toy.write(
        path,
        "# [where it exists]\nCONFIG_OLD=y\n"
        "# [where it exists, else CONFIG_NEW]\nCONFIG_RENAMED=y\n"
        "# [where it exists, else CONFIG_GONE_TOO]\nCONFIG_LOST=y\n"
        "CONFIG_MISSED=y\nCONFIG_NET=y\n",
    )
    (gone,) = kernels.gone_options([path], frozenset({"NET", "NEW"}))
    assert gone.foreseen == ("OLD", "RENAMED")
    assert gone.options == ("LOST", "MISSED")
    text = report_text.render([replace(one_report(), options=(gone,))], terminal=False)
    assert "options gone: 2;" in text
    assert "allows: CONFIG_OLD, CONFIG_RENAMED" in text


def write_changelog(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as stream:
        stream.write(CHANGELOG)
    return path


def test_news_are_what_is_newer_than_the_last_build(tmp_path: Path) -> None:
    found = kernels.news(write_changelog(tmp_path / "changelog.gz"), "6.1.187-1")
    assert found.versions == ("6.1.192-2", "6.1.192-1")
    assert found.cves == ("CVE-2026-89633", "CVE-2026-89634", "CVE-2026-99228")
    assert [fix.cves for fix in found.fixes] == [
        ("CVE-2026-99228",),
        ("CVE-2026-89633", "CVE-2026-89634"),
        ("CVE-2026-99228",),
    ]
    assert found.fixes[1].text.startswith("smb: client: fix OOB read/write")
    assert "DataOffset in coalesce_t2() (" in found.fixes[1].text
    assert found.fixes[2].text == "io-wq: again (CVE-2026-99228)"


@pytest.mark.parametrize(
    ("since", "versions"),
    [
        # 7.3.4-1 is the later version, and all of it was built.
        ("7.3.4-1~bpo13+1", ["7.3.5-1~bpo13+1", "7.3.5-1"]),
        ("7.3.5-1~bpo13+1", []),
        ("7.3.3-1~bpo13+1", ["7.3.5-1~bpo13+1", "7.3.5-1", "7.3.4-1"]),
    ],
)
def test_a_backport_has_what_it_was_made_of(
    tmp_path: Path, since: str, versions: list[str]
) -> None:
    path = tmp_path / "changelog.gz"
    named = ("7.3.5-1~bpo13+1", "7.3.5-1", "7.3.4-1", "7.3.3-1")
    tail = "\n -- A B <a@example.org>  Mon, 16 Nov 2026 11:17:40 +0100\n\n"
    with gzip.open(path, "wt") as stream:
        for name in named:
            stream.write(f"linux ({name}) unstable; urgency=low\n\n  * x (CVE-2026-1111)\n{tail}")
    assert list(kernels.news(path, since).versions) == versions


def test_without_a_build_the_newest_entry_is_the_news(tmp_path: Path) -> None:
    found = kernels.news(write_changelog(tmp_path / "changelog.gz"), None)
    assert (found.versions, found.fixes) == (("6.1.192-2",), ())


def test_nothing_is_new_when_the_newest_was_built(tmp_path: Path) -> None:
    found = kernels.news(write_changelog(tmp_path / "changelog.gz"), "6.1.192-2")
    assert (found.versions, found.fixes) == ((), ())


def record(settings: Settings, where: str, version: str, flavour: str, tmp_path: Path) -> None:
    built = fake_kernel.kernel(tmp_path / where)
    described = manifest.describe(settings, [built], [], {})
    (kernel,) = described.kernels
    changed = replace(kernel, base_version=version, flavour=flavour)
    mine: Manifest = replace(described, kernels=(changed,))
    manifest.write(settings.build / "bookworm" / where / manifest.RECORD, mine)


def test_the_last_build_is_the_newest_of_the_flavour_or_of_the_suite(tmp_path: Path) -> None:
    settings = fake_kernel.settings(tmp_path)
    base = fake_kernel.base()
    assert kernels.last_built(settings, base) is None
    record(settings, "lab", "6.1.190-1", "lab", tmp_path)
    record(settings, "amd64", "6.1.99-1", "amd64", tmp_path)
    last = kernels.last_built(settings, base)
    assert last is not None
    assert last.base_version == "6.1.190-1"
    record(settings, "cloud", "6.1.80-1", "cloud-amd64", tmp_path)
    last = kernels.last_built(settings, base)
    assert last is not None
    assert last.base_version == "6.1.80-1"


def one_report() -> KernelReport:
    return KernelReport(
        suite="bookworm",
        flavour="cloud-amd64",
        release=toy.RELEASE,
        version="6.1.192-2",
        backends=(
            Backend("stock", 39, ()),
            Backend("export", 41, (Lacking("get_files_struct", None),)),
        ),
        series=(SeriesVerdict("5.11", ">=5.11,<8", True, True, None),),
        options=(GoneOptions("lab.config", ("BASE_FULL",), 89),),
        news=News("6.1.187-1", ("6.1.192-1",), (Fix("6.1.192-1", "x", ("CVE-2026-1111",)),)),
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_the_text_has_everything(terminal: bool) -> None:
    failed = KernelReport("trixie", "amd64", error=UserError("no such thing", hint="look"))
    text = report_text.render([one_report(), failed], terminal=terminal)
    for words in (
        "get_files_struct does not exist",
        "CONFIG_BASE_FULL",
        "series 5.11 (>=5.11,<8): applies",
        "since 6.1.187-1, which was built last: 1 version(s), 1 CVEs",
        "no such thing",
        "look",
    ):
        assert words in text
    assert ("\x1b[" in text) is terminal


def test_piped_output_has_a_line_for_each_fact() -> None:
    lines = report_text.render([one_report()], terminal=False).splitlines()
    assert lines[0] == f"bookworm {toy.RELEASE} 6.1.192-2"
    assert lines[1].startswith("  stock: works; export: lacks 1; series: 5.11 applies;")


def test_json_is_plain(tmp_path: Path) -> None:
    failed = KernelReport("trixie", "amd64", error=UserError("no such thing"))
    plain = json.loads(json.dumps(report_text.to_json([one_report(), failed])))
    assert plain[0]["backends"][1]["lacking"] == [{"name": "get_files_struct", "place": None}]
    assert plain[0]["answer"] == one_report().answer
    assert plain[1]["error"] == {"kind": "usage", "what": "no such thing"}


@pytest.mark.parametrize(
    ("stock", "export", "words"),
    [
        (Backend("stock", 1, ()), Backend("export", 1, ()), "no: both"),
        (Backend("stock", 1, (Lacking("a", None),)), Backend("export", 1, ()), "no: export works"),
        (
            Backend("stock", 1, (Lacking("a", None),)),
            Backend("export", 1, (Lacking("a", None),)),
            "yes: no backend",
        ),
        (Backend("stock", 0, (), "no root"), Backend("export", 0, (), "no root"), "not known"),
    ],
)
def test_the_answer_follows_from_the_backends(stock: Backend, export: Backend, words: str) -> None:
    assert replace(one_report(), backends=(stock, export)).answer.startswith(words)


def test_the_exit_status_is_that_of_the_first_failure() -> None:
    failed = KernelReport("trixie", "amd64", error=UserError("no"))
    assert kernels.exit_status([one_report()]) == 0
    assert kernels.exit_status([one_report(), failed]) == 2


def test_an_unknown_name_is_the_users_error(tmp_path: Path) -> None:
    settings, target = fake_kernel.settings(tmp_path), Target("bookworm", "cloud-amd64")
    with pytest.raises(UserError, match="'sid'"):
        kernels.run(settings, target, suite="sid")
    with pytest.raises(UserError, match="'huge'"):
        kernels.run(settings, target, flavour="huge")


# Reports on an archive with one kernel, whose tools compile nothing.

DIST = "bookworm"
# Writes a root without packages, or none at all.
MMDEBSTRAP = """#!/bin/sh
cat > /dev/null
test -e {bin}/no-root && echo "E: no room for a root" && exit 1
while [ $# -gt 2 ]; do shift; done
mkdir -p "$1/var/lib/dpkg"
touch "$1/var/lib/dpkg/status"
"""
MAKE = """#!/bin/sh
echo made >> {bin}/made
for word; do
    case "$word" in M=*) cp {bin}/module.ko "${{word#M=}}/cplayground.ko" ;; esac
done
"""
# The machine's own sources are left out.
APT = """#!/bin/sh
[ "$1" = indextargets ] || exec {apt} "$@"
"""


@dataclass
class Reported:
    """A checkout, its archive's server, and the programs that stand in for a root's."""

    settings: Settings
    server: Server
    archive: SignedArchive
    programs: Path
    headers: Path  # what the package of Debian's headers holds

    def run(self, flavour: str = "cloud-amd64") -> tuple[KernelReport, ...]:
        network = Waits(attempts=1).network
        target = Target(DIST, "cloud-amd64")
        return kernels.run(self.settings, target, suite=DIST, flavour=flavour, network=network)

    def publish(self, *, changelog_in: str = f"linux-headers-{toy.RELEASE}") -> None:
        """Put the kernel into the archive."""
        version, kbuild = "6.1.192-2", self.headers.with_name("kbuild")
        write_changelog(
            (self.headers if "headers" in changelog_in else kbuild)
            / f"usr/share/doc/{changelog_in}/changelog.Debian.gz"
        )
        image, headers = f"linux-image-{toy.RELEASE}", f"linux-headers-{toy.RELEASE}"
        one = self.archive
        one.stanzas.clear()
        one.add_tree(DIST, "linux-source-6.1", version, self.headers.with_name("source"))
        one.add(DIST, image, version)
        one.add(DIST, "linux-image-cloud-amd64", version, depends=f"{image} (= {version})")
        one.add_tree(DIST, headers, version, self.headers, depends="linux-kbuild-6.1")
        one.add_tree(DIST, "linux-kbuild-6.1", version, kbuild)
        for dist in (DIST, "bookworm-security"):
            one.publish(dist)


@pytest.fixture
def reported(
    distro: toy.ToyDistro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reported]:
    row = replace(signed_archive.suite(signed_archive.key()), pockets=())
    monkeypatch.setitem(suites.SUITES, DIST, row)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    programs = tmp_path / "bin"
    for name, text in (("mmdebstrap", MMDEBSTRAP), ("make", MAKE), ("apt-get", APT)):
        script = text.format(bin=programs, apt=shutil.which("apt-get"))
        fake_kernel.write(programs / name, script, mode=0o755)
    (programs / "module.ko").write_bytes(toy_elf.module({}, ["open"]))
    monkeypatch.setenv("PATH", f"{programs}:{toy.FAKE_TOOLS}:{os.environ['PATH']}")
    project = tmp_path / "project"
    toy.write(project / "kmod/a.c", "int a;\n")
    toy.write(project / "fragments/lab.config", "CONFIG_NET=y\n")
    distro.patches.rename(project / "patches")
    toy.write(distro.pristine / "Kconfig", "config NET\n")
    (distro.headers / "usr/src/linux-headers-6.1.0-56-common").mkdir()
    tarball = distro.headers.with_name("source") / "usr/src/linux-source-6.1.tar.xz"
    tarball.parent.mkdir(parents=True)
    with tarfile.open(tarball, "w:xz", preset=0) as packed:
        packed.add(distro.pristine, "linux-source-6.1")
    (tmp_path / "kbuild/usr/lib").mkdir(parents=True)
    archive = SignedArchive(tmp_path / "archive", signed_archive.key())
    with signed_archive.serve(archive.root) as server:
        settings = replace(signed_archive.settings(tmp_path, server.url), project=project)
        yield Reported(settings, server, archive, programs, distro.headers)


def test_a_report_says_what_each_backend_lacks_and_fetches_no_image(reported: Reported) -> None:
    reported.publish()
    (found,) = reported.run()
    assert found.error is None
    stock, export = found.backends
    assert (stock.works, stock.needs) == (True, 1)
    assert (export.works, export.needs) == (False, 3)
    assert [one.name for one in export.lacking] == ["get_files_struct", "put_files_struct"]
    assert found.series[0].applies
    assert found.options == (GoneOptions("lab.config", (), 1),)
    assert found.news is not None
    assert found.news.versions == ("6.1.192-2",)
    asked = [Path(one.path).name for one in reported.server.asked(".deb")]
    assert sorted(name.partition("_")[0] for name in asked) == [
        f"linux-headers-{toy.RELEASE}",
        "linux-kbuild-6.1",
        "linux-source-6.1",
    ]


def test_the_module_is_compiled_again_when_it_changed(reported: Reported) -> None:
    reported.publish()
    first = reported.run()
    assert reported.run() == first
    made = reported.programs / "made"
    assert made.read_text().count("made") == 1
    toy.write(reported.settings.project / "kmod/a.c", "int b;\n")
    assert reported.run() == first
    assert made.read_text().count("made") == 2


def test_the_changelog_may_lie_in_what_the_headers_need(reported: Reported) -> None:
    # Linux 7's headers have a link to the documentation of linux-base-*.
    reported.publish(changelog_in="linux-kbuild-6.1")
    (found,) = reported.run()
    assert found.news is not None
    assert found.news.versions == ("6.1.192-2",)


def test_a_kernel_that_fails_does_not_end_the_report(reported: Reported) -> None:
    (reported.programs / "no-root").touch()
    reported.publish()
    found = reported.run("all")
    assert [one.flavour for one in found if one.error is None] == ["cloud-amd64"]
    (ours, *others) = sorted(found, key=lambda one: one.flavour != "cloud-amd64")
    # Nothing was compiled, and the report does not pretend that it was.
    assert "no room for a root" in (ours.backends[0].unknown or "")
    assert ours.answer == "not known"
    assert ours.series[0].applies
    assert others
    assert kernels.exit_status(found) == InfrastructureError.exit_status
    assert "no package linux-image-amd64" in report_text.render(found, terminal=False)


def test_a_defect_of_ours_is_reported_as_one(
    reported: Reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object) -> object:
        raise KeyError("Depends")

    reported.publish()
    monkeypatch.setattr(kconfig, "definitions", defect)
    found = reported.run()
    assert kernels.exit_status(found) == 70
    assert "KeyError: 'Depends'" in report_text.render(found, terminal=False)

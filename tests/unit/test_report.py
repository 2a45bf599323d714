"""The report says of a kernel what it exports, which hunk fails, what is gone, what is new."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kbuild.core import fs
from kbuild.core.errors import BuildError, InfrastructureError, UserError
from kbuild.core.model import Root, Settings, Target
from kbuild.fetch import download, roots, source, unpack
from kbuild.kernel import hunks, kconfig, module, quilt, symvers
from kbuild.pipeline import stages
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
from tests.unit import fake_kernel, toy

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


def test_what_a_backend_lacks_is_named_with_its_place(distro: toy.ToyDistro) -> None:
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


def test_a_report_fetches_all_but_the_image(
    distro: toy.ToyDistro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offer(name: str) -> object:
        return SimpleNamespace(wanted=name, urls=())

    resolved = SimpleNamespace(
        source=offer("source"),
        image=offer("image"),
        headers=offer("headers"),
        support=(offer("common"), offer("kbuild")),
    )
    fetched: list[str] = []
    monkeypatch.setattr(source, "resolve", lambda *_, **__: resolved)
    monkeypatch.setattr(source, "base", lambda *_: distro.base)
    monkeypatch.setattr(download, "fetch", lambda _, wanted, *__: fetched.append(wanted))
    settings = fake_kernel.settings(tmp_path)
    kernels.fetch(settings, Target("bookworm", "cloud-amd64"), download.Network())
    assert fetched == ["source", "headers", "common", "kbuild"]


def test_the_backend_export_needs_what_the_series_exports(
    distro: toy.ToyDistro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    symbols = distro.headers / f"usr/src/linux-headers-{toy.RELEASE}/Module.symvers"
    monkeypatch.setattr(stages, "debian_headers", lambda *_: SimpleNamespace(symvers=symbols))
    monkeypatch.setattr(kernels, "_needed", lambda *_: frozenset({"open"}))
    settings = fake_kernel.settings(tmp_path)
    stock, export = kernels._backends(
        settings, distro.base, distro.pristine, ["get_files_struct", "put_files_struct"]
    )
    assert (stock.works, stock.needs) == (True, 1)
    assert (export.works, export.needs) == (False, 3)
    assert [one.name for one in export.lacking] == ["get_files_struct", "put_files_struct"]


def test_the_module_is_compiled_again_when_it_changed(
    distro: toy.ToyDistro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Path] = []

    def compile_unchecked(*_: object, out: Path, **__: object) -> Path:
        compiled.append(out)
        toy.write(out / f"{module.NAME}.ko", "")
        return out / f"{module.NAME}.ko"

    needed = frozenset({"open"})
    monkeypatch.setattr(module, "compile_unchecked", compile_unchecked)
    monkeypatch.setattr(module, "read", lambda _: SimpleNamespace(undefined=needed))
    monkeypatch.setattr(roots, "compile_root", lambda *_: Root("bookworm", tmp_path, "d"))
    settings = replace(fake_kernel.settings(tmp_path), project=tmp_path)
    (distro.headers / "usr/src/linux-headers-6.1.0-56-common").mkdir()
    headers = module.debian(distro.headers, toy.RELEASE)
    toy.write(tmp_path / "kmod/a.c", "int a;\n")
    for _ in range(2):
        assert kernels._needed(settings, distro.base, headers) == needed
    assert len(compiled) == 1
    toy.write(tmp_path / "kmod/a.c", "int b;\n")
    kernels._needed(settings, distro.base, headers)
    assert len(compiled) == 2


def test_the_changelog_may_lie_in_what_the_headers_need(
    distro: toy.ToyDistro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Linux 7's headers have a link to the documentation of linux-base-*.
    other = fake_kernel.verified("linux-base-7.3")
    base = replace(distro.base, support=(other,))
    monkeypatch.setattr(unpack, "unpack_deb", lambda _, file: tmp_path / file.name)
    with pytest.raises(BuildError, match="has a changelog"):
        kernels._changelog(fake_kernel.settings(tmp_path), base)
    place = tmp_path / other.name / "usr/share/doc" / other.name / "changelog.Debian.gz"
    write_changelog(place)
    assert kernels._changelog(fake_kernel.settings(tmp_path), base) == place


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


def test_what_changed_is_taken_from_the_last_built_source(
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


def test_a_file_that_is_gone_is_said(distro: toy.ToyDistro) -> None:
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


def test_one_kernel_is_put_together_and_another_that_fails_does_not_end_it(
    distro: toy.ToyDistro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.write(distro.pristine / "Kconfig", "config NET\n")
    toy.write(tmp_path / "fragments/lab.config", "CONFIG_NET=y\n")
    name = distro.base.headers.name
    write_changelog(distro.headers / "usr/share/doc" / name / "changelog.Debian.gz")
    common = distro.headers / "usr/src/linux-headers-6.1.0-56-common"
    common.mkdir(parents=True)
    settings = replace(fake_kernel.settings(tmp_path), project=tmp_path, offline=True)

    def fetch(settings: Settings, target: Target, network: object) -> object:
        if target.flavour == "amd64":
            raise InfrastructureError("the mirror is away")
        return distro.base

    monkeypatch.setattr(kernels, "fetch", fetch)
    monkeypatch.setattr(unpack, "unpack", lambda *_: distro.pristine)
    monkeypatch.setattr(unpack, "unpack_deb", lambda *_: distro.headers)
    monkeypatch.setattr(unpack, "extract", lambda deb, into: fs.write_atomic(into / "x", str(deb)))
    monkeypatch.setattr(
        stages,
        "debian_headers",
        lambda *_: module.debian(distro.headers, toy.RELEASE),
    )

    def no_root(*_: object) -> object:
        raise InfrastructureError("the compile root of bookworm is not in the cache")

    monkeypatch.setattr(roots, "compile_root", no_root)
    found = kernels.run(settings, Target("bookworm", "cloud-amd64"), suite="bookworm")
    assert [one.error is None for one in found] == [True, False]

    def defect(*_: object) -> object:
        raise KeyError("Depends")

    with monkeypatch.context() as broken:
        broken.setattr(kconfig, "definitions", defect)
        (unseen, _) = kernels.run(settings, Target("bookworm", "cloud-amd64"), suite="bookworm")
    assert kernels.exit_status([unseen]) == 70
    assert "KeyError: 'Depends'" in report_text.render([unseen], terminal=False)
    ours = found[0]
    assert ours.series[0].applies
    assert ours.options == (GoneOptions("lab.config", (), 1),)
    assert ours.news is not None
    assert ours.news.versions == ("6.1.192-2",)
    # Nothing was compiled, and the report does not pretend that it was.
    assert "not in the cache" in (ours.backends[0].unknown or "")
    assert ours.answer == "not known"
    assert kernels.exit_status(found) == InfrastructureError.exit_status
    text = report_text.render(found, terminal=False)
    assert "the mirror is away" in text

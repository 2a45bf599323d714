"""Render reports as text, tables or JSON."""

from __future__ import annotations

import dataclasses
import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from kbuild.report.kernels import Backend, KernelReport, News, SeriesVerdict

_SHOWN_CVES = 8
_SHOWN_LINES = 40


def to_json(reports: Iterable[KernelReport]) -> list[dict[str, object]]:
    """Return the reports as plain values."""
    plain = []
    for one in reports:
        values = dataclasses.asdict(dataclasses.replace(one, error=None))
        if one.error is not None:
            values["error"] = {"kind": one.error.kind, "what": str(one.error)}
        else:
            values["answer"] = one.answer
        plain.append(values)
    return plain


def render(reports: Sequence[KernelReport], *, terminal: bool) -> str:
    """Return the reports as text: tables as wide as the terminal, or plain lines."""
    return _tables(reports) if terminal else "\n".join(_lines(reports)) + "\n"


def _columns(one: KernelReport) -> tuple[str, str, str, str, str, str]:
    """Return a kernel's six cells of the table, in the order of _HEADS."""
    assert one.news is not None
    stock, export = (
        "?" if each.unknown else "works" if each.works else f"lacks {len(each.lacking)}"
        for each in one.backends
    )
    series = ", ".join(
        f"{each.series} {'applies' if each.applies else 'does not apply'}"
        f"{'' if each.chosen else ' (not for it)'}"
        for each in one.series
    )
    gone = sum(len(each.options) for each in one.options)
    newer = f"{len(one.news.versions)} newer" if one.news.since else "never built"
    return (
        stock,
        export,
        series or "none",
        str(gone) if gone else "none",
        newer,
        str(len(one.news.cves)),
    )


_HEADS = ("stock", "export", "series", "options gone", "versions", "CVEs")


def details(one: KernelReport) -> Iterator[str]:
    """Yield the lines below the table, each indented below the line that it belongs to."""
    if one.error is not None:
        yield from f"{one.error.kind} error: {one.error}".splitlines()
        return
    assert one.news is not None
    yield f"is the patch needed? {one.answer}"
    for backend in one.backends:
        yield from _backend_lines(backend)
    if not any(each.chosen for each in one.series):
        yield f"series: none is for Linux {one.version}"
    for verdict in one.series:
        yield from _series_lines(verdict)
    for gone in one.options:
        if gone.options:
            yield f"{gone.fragment}: {len(gone.options)} of {gone.count} options are gone"
            yield "  " + ", ".join(f"CONFIG_{name}" for name in gone.options)
        if gone.foreseen:
            names = ", ".join(f"CONFIG_{name}" for name in gone.foreseen)
            yield f"{gone.fragment}: gone, as the fragment allows: {names}"
    yield from _news_lines(one.news)


def _backend_lines(backend: Backend) -> Iterator[str]:
    if backend.unknown is not None:
        yield f"backend {backend.name}: not known: {backend.unknown}"
        return
    says = "works" if backend.works else "does not work"
    have = backend.needs - len(backend.lacking)
    yield f"backend {backend.name}: {says} unpatched; {have} of {backend.needs} symbols exported"
    for symbol in backend.lacking:
        where = f"is at {symbol.place}, not exported" if symbol.place else "does not exist"
        yield f"  {symbol.name} {where}"


def _series_lines(verdict: SeriesVerdict) -> Iterator[str]:
    says = "applies with the declared effect" if verdict.applies else "does not apply"
    yield f"series {verdict.series} ({verdict.range}): {says}"
    if verdict.why and not verdict.hunks:
        yield from (f"  {line}" for line in verdict.why.splitlines())
    for hunk in verdict.hunks:
        yield f"  {hunk.patch}: the hunk for {hunk.file}:{hunk.line} does not apply: {hunk.reason}"
        if hunk.functions:
            yield f"    {'; '.join(hunk.functions)}"
        yield (
            f"    changes there since {hunk.since}:"
            if hunk.change
            else ("    no similar lines in the file")
        )
        yield from (f"    {line}" for line in hunk.change[:_SHOWN_LINES])
        if len(hunk.change) > _SHOWN_LINES:
            yield f"    and {len(hunk.change) - _SHOWN_LINES} more lines"


def _news_lines(found: News) -> Iterator[str]:
    what = (
        f"since {found.since}, which was built last"
        if found.since
        else f"in {found.versions[0]} (nothing of this suite was built here yet)"
    )
    if not found.versions:
        yield f"changelog: nothing {what}"
        return
    yield (
        f"changelog: {what}: {len(found.versions)} version(s), {len(found.cves)} CVEs"
        f" in {len(found.fixes)} items"
    )
    for fix in found.fixes[:_SHOWN_CVES]:
        yield f"  {fix.version}: {fix.text}"
    if len(found.fixes) > _SHOWN_CVES:
        yield f"  and {len(found.fixes) - _SHOWN_CVES} more items; --json has them all"


def _name(one: KernelReport) -> str:
    return f"{one.suite} {one.release or one.flavour} {one.version}".strip()


def _lines(reports: Iterable[KernelReport]) -> Iterator[str]:
    for one in reports:
        yield _name(one)
        if one.error is None:
            words = zip(_HEADS, _columns(one), strict=True)
            yield "  " + "; ".join(f"{head}: {value}" for head, value in words)
        yield from (f"  {line}" for line in details(one))


def _tables(reports: Sequence[KernelReport]) -> str:
    text = io.StringIO()
    width = shutil.get_terminal_size((120, 24)).columns
    console = Console(
        file=text, width=width, highlight=False, markup=False, emoji=False, force_terminal=True
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("suite", "kernel", "version", *_HEADS):
        table.add_column(head, overflow="fold")
    for one in reports:
        said = ("not known: " + one.error.what,) if one.error else _columns(one)
        table.add_row(one.suite, one.release or one.flavour, one.version, *said)
    console.print(table)
    for one in reports:
        console.print()
        console.print(_name(one), style="bold")
        for line in details(one):
            inner = line.lstrip(" ")
            console.print(Padding(inner, (0, 0, 0, 2 + len(line) - len(inner))), style=_style(line))
    return text.getvalue()


def _style(line: str) -> str | None:
    styles: tuple[tuple[Callable[[str], bool], str], ...] = (
        (lambda text: text.startswith("    +"), "green"),
        (lambda text: text.startswith("    -"), "red"),
        (lambda text: text.startswith("is the patch needed?"), "bold"),
    )
    return next((style for test, style in styles if test(line)), None)

"""Measure how plainly this project is written: ``python tests/prose.py [--show WHAT] [PATH ...]``.

Counts the sentences of documents, docstrings and comments that begin with a word that often
hides the subject, and those that are long.  Questions may begin with any word.  Code, headings
and URLs are not prose.  A table's cell is a sentence if it has five words or more.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
OPENINGS = ("What", "Of", "Whether", "Whoever", "Which")
LONG, TOO_LONG = 25, 35  # words
_SKIPPED = {".git", ".venv", "build", "__pycache__"}
# Places that a full stop or a question mark ends a sentence at: not after an abbreviation.
_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bcf)(?<!\bvs)(?<=[.!?])[)\"'*_]*\s+(?=[^a-z\s])")
_ITEM = re.compile(r"\s*(?:[-*+]|\d+\.)\s+")
_DIRECTIVE = re.compile(r"SPDX|shellcheck|noqa|type: ignore|ruff:|fmt:|pragma|!")


@dataclass(frozen=True)
class Sentence:
    """A sentence, and the file and line at which its paragraph begins."""

    path: Path
    line: int
    text: str

    @property
    def words(self) -> int:
        """The number of words; code, a link's text and a path count as they are read."""
        return sum(1 for word in self.text.split() if re.search(r"\w", word))

    @property
    def hides_its_subject(self) -> bool:
        """True if the first word is one of OPENINGS, in a sentence that is no question."""
        first = re.match(r"\W*(\w+)", self.text)
        return bool(first and first[1] in OPENINGS and not self.text.rstrip(")\"'*_").endswith("?"))


Paragraph = tuple[int, str]  # its first line, its text


def markdown(text: str) -> Iterator[Paragraph]:
    """Yield the paragraphs and list items of a Markdown document."""
    yield from _document(text, cells=False)


def cells(text: str) -> Iterator[Paragraph]:
    """Yield the cells of a Markdown document's tables that are long enough to be sentences."""
    yield from _document(text, cells=True)


def _document(text: str, *, cells: bool) -> Iterator[Paragraph]:
    # The same number of lines, so that places stay right.
    text = re.sub(r"(?ms)^( *)(```|~~~).*?^ *\2", lambda code: "\n" * code[0].count("\n"), text)
    text = re.sub(r"(?s)<!--.*?-->", lambda note: "\n" * note[0].count("\n"), text)
    lines = [(number, _plain(line)) for number, line in enumerate(text.splitlines(), 1)]
    pending: list[Paragraph] = []
    for number, line in [*lines, (len(lines) + 1, "")]:
        row = line.strip().startswith("|")
        item = _ITEM.match(line)
        if pending and (row or item or not line.strip() or line.startswith("#")):
            if not cells:
                yield pending[0][0], " ".join(part for _, part in pending)
            pending = []
        if row:
            for cell in line.strip(" |").split(" | ") if cells else ():
                if len(re.findall(r"[^\W\d_]\w*", cell)) >= 5:
                    yield number, cell.strip()
        elif line.strip() and not line.startswith(("#", "    ")):
            pending.append((number, line[item.end() :] if item else line.strip()))


def _plain(line: str) -> str:
    """Return a line as it is read: code as one word, links as their text."""
    line = re.sub(r"``.*?``|`[^`]*`", "`code`", line)
    line = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", line)
    return re.sub(r"\*\*|https?://\S+", "", line)


def docstrings(source: str) -> Iterator[Paragraph]:
    """Yield the paragraphs of the docstrings of a Python module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield from _paragraphs(node.body[0].lineno, text)


def python_comments(source: str) -> Iterator[Paragraph]:
    """Yield the comments of a Python module; lines below one another are one comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = [(*token.start, token.string) for token in tokens if token.type == tokenize.COMMENT]
    yield from _joined(found)


def shell_comments(source: str) -> Iterator[Paragraph]:
    """Yield the comments of a shell script that have a line of their own."""
    lines = enumerate(source.splitlines(), 1)
    yield from _joined(
        [(number, line.index("#"), line) for number, line in lines if line.lstrip()[:1] == "#"]
    )


def c_comments(source: str) -> Iterator[Paragraph]:
    """Yield the paragraphs of the comments of a C file."""
    for found in re.finditer(r'(?s)"(?:\\.|[^"\\\n])*"|/\*(.*?)\*/|//([^\n]*)', source):
        text = found[1] or found[2] or ""
        yield from _paragraphs(
            source.count("\n", 0, found.start()) + 1, re.sub(r"(?m)^\s*\*+ ?", "", text)
        )


def _joined(comments: Sequence[tuple[int, int, str]]) -> Iterator[Paragraph]:
    numbered = enumerate(comments)
    for _, run in groupby(numbered, key=lambda each: (each[1][0] - each[0], each[1][1])):
        lines = [comment for _, comment in run]
        text = "\n".join(line.lstrip().lstrip("#").removeprefix(" ") for _, _, line in lines)
        yield from _paragraphs(lines[0][0], text)


def _paragraphs(line: int, text: str) -> Iterator[Paragraph]:
    for part in re.split(r"\n\s*\n", text):
        kept = [_plain(each) for each in part.splitlines() if not _DIRECTIVE.match(each.strip())]
        whole = " ".join(each.strip() for each in kept).strip()
        if whole:
            yield line, whole


def sentences(paragraph: str) -> list[str]:
    """Split a paragraph into its sentences; pieces without two words are none."""
    return [one for one in _END.split(paragraph) if len(re.findall(r"[^\W\d_]+", one)) > 1]


READERS: dict[str, list[tuple[str, Callable[[str], Iterator[Paragraph]]]]] = {
    ".md": [("documents", markdown), ("table cells", cells)],
    ".py": [("docstrings", docstrings), ("Python comments", python_comments)],
    ".c": [("C comments", c_comments)],
    ".h": [("C comments", c_comments)],
    ".sh": [("shell comments", shell_comments)],
}


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files to read: those named, and in directories those of known kinds."""
    for path in paths:
        if path.is_file():
            yield path
        else:
            yield from sorted(
                each
                for each in path.rglob("*")
                if each.suffix in READERS and not _SKIPPED & set(each.relative_to(path).parts)
            )


def measure(paths: Iterable[Path]) -> dict[str, list[Sentence]]:
    """Return all sentences of some files and directories, by the kind of text."""
    found: dict[str, list[Sentence]] = defaultdict(list)
    for path in files(paths):
        for kind, read in READERS.get(path.suffix, [("shell comments", shell_comments)]):
            for line, paragraph in read(path.read_text(encoding="utf-8")):
                found[kind] += [Sentence(path, line, one) for one in sentences(paragraph)]
    return dict(found)


def table(found: dict[str, list[Sentence]]) -> str:
    """Render the shares as a table of text, one row for each kind."""
    columns = ("sentences", "/".join(OPENINGS), f"> {LONG} words", f"> {TOO_LONG} words")
    lines = [f"{'':<16} {columns[0]:>9}  {columns[1]:>30}  {columns[2]:>16}  {columns[3]:>16}"]
    for kind, all_of_them in found.items():
        counts = [
            sum(one.hides_its_subject for one in all_of_them),
            sum(one.words > LONG for one in all_of_them),
            sum(one.words > TOO_LONG for one in all_of_them),
        ]
        shares = [f"{count} = {100 * count / len(all_of_them):.1f} %" for count in counts]
        lines.append(
            f"{kind:<16} {len(all_of_them):>9}  {shares[0]:>30}  {shares[1]:>16}  {shares[2]:>16}"
        )
    return "\n".join(lines)


SHOWN: dict[str, Callable[[Sentence], bool]] = {
    "openings": lambda one: one.hides_its_subject,
    "long": lambda one: one.words > LONG,
    "too-long": lambda one: one.words > TOO_LONG,
}


def main() -> None:
    """Print the table, and on request the sentences with their places."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[PROJECT], metavar="PATH")
    parser.add_argument("--show", choices=SHOWN, help="print these sentences too")
    options = parser.parse_args()
    found = measure(options.paths)
    print(table(found))
    for kind, all_of_them in found.items():
        for one in all_of_them:
            if options.show and SHOWN[options.show](one):
                print(f"{one.path}:{one.line}: {kind}: {one.words} words: {one.text}")


if __name__ == "__main__":
    main()

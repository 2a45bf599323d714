"""Digest the code that decides a result.

A stage runs again when its code changes.  Docstrings, comments, log lines, texts of errors and
the layout of the source decide nothing, so the digest leaves them out.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from pathlib import Path


def digest(*sources: Path) -> str:
    """Return one SHA-256 for source files, 64 hex digits: of Python the code, else the bytes.

    The order of the files counts, their names don't: a file may be moved.
    """
    parts = (_part(path.read_bytes(), python=path.suffix == ".py") for path in sources)
    return hashlib.sha256("".join(parts).encode()).hexdigest()


@functools.cache
def _part(source: bytes, *, python: bool) -> str:
    content = json.dumps(_code(ast.parse(source))).encode() if python else source
    return hashlib.sha256(content).hexdigest()


def _code(node: object, *, raised: bool = False) -> object:
    """Return a syntax tree as JSON values; None for a part that decides nothing.

    Empty fields are left out, because newer versions of Python have more of them.
    ``ast.dump`` has no such form that is the same in each version.
    """
    match node:
        case ast.Expr(ast.Constant(str())) | ast.Expr(ast.Call(ast.Attribute(ast.Name("logger")))):
            return None
        case ast.Constant(str()) | ast.JoinedStr() if raised:
            return None
        case ast.AST():
            raised = raised or isinstance(node, ast.Raise)
            fields = {k: _code(v, raised=raised) for k, v in ast.iter_fields(node)}
            return [type(node).__name__, {k: v for k, v in fields.items() if v not in (None, [])}]
        case list():
            codes = [(one, _code(one, raised=raised)) for one in node]
            # A list may hold None of itself: an argument without a default.
            return [code for one, code in codes if one is None or code is not None]
    return None if node is None else repr(node)

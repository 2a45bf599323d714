"""Keep passwords out of everything that is shown or stored.

Errors, log lines, printed lines, JSON files and program logs pass through :func:`redact` where
they are written, so callers need not think of it.
"""

from __future__ import annotations

import re

HIDDEN = "***"

# ASCII spaces only: in a password, a no-break space is an ordinary character.
_WORD = re.compile(r"[^ \t\n\r\f\v]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# An attribute of ccache's HTTP storage.  In a JSON text it ends with the string, or at an escape.
_TOKEN = re.compile(r"(bearer-token=)[^|\s\"\\]+")


def redact(text: str) -> str:
    """Replace the user and password of each URL in ``text`` by ``***``.

    A password may contain any character but a space, so everything up to the last ``@`` of a
    word goes.  An address in a path (``https://a.example/r/1@b.example``) stays.
    """
    if "://" in text and "@" in text:
        text = _WORD.sub(lambda word: _redact_word(word[0]), text)
    return _TOKEN.sub(rf"\1{HIDDEN}", text)


def redact_url(text: str) -> str:
    """Return a URL without its user and password, however malformed it is."""
    found = _SCHEME.match(text)
    scheme = found[0] if found else ""
    credentials, at, place = text.removeprefix(scheme).rpartition("@")
    return redact(f"{scheme}{HIDDEN}@{place}" if at and credentials else text)


def redact_bytes(raw: bytes) -> bytes:
    """Redact the output of a program as :func:`redact` does, whatever its encoding."""
    if b"@" not in raw and b"bearer-token=" not in raw:
        return raw
    return redact(raw.decode(errors="surrogateescape")).encode(errors="surrogateescape")


def _redact_word(word: str) -> str:
    scheme, mark, rest = word.partition("://")
    credentials, at, place = rest.rpartition("@")
    if at and credentials and (":" in credentials or "/" not in credentials):
        return f"{scheme}{mark}{HIDDEN}@{place}"
    return word

"""Explain why Kconfig did not grant an option; runs inside a root, with that root's Python.

Usage: kconfig_reasons.py CONFIG OPTION...   in the source tree; prints a JSON object.
"""

from __future__ import annotations

import io
import json
import re
import sys
from typing import IO

import kconfiglib


class Kconfig(kconfiglib.Kconfig):
    """kconfiglib's last release, extended by later additions to Kconfig.

    Linux 6.1 writes "modules" where kconfiglib 14.1 knows "option modules".  7.x marks options
    that only carry an old configuration over as "transitional".
    """

    def _open(self, filename: str, mode: str) -> IO[str]:
        stream = super()._open(filename, mode)
        if mode != "r":
            return stream
        with stream:
            text = re.sub(r"(?m)^(\s+)modules$", r"\1option modules", stream.read())
            return io.StringIO(re.sub(r"(?m)^\s+transitional$", "", text))


def reason(kconf: kconfiglib.Kconfig, name: str) -> str:
    """Explain one option by its definition and the values of its dependencies."""
    symbol = kconf.syms.get(name)
    if symbol is None or not symbol.nodes:
        return "this kernel has no such option"
    visible = kconfiglib.expr_value(symbol.direct_dep)
    if visible and symbol.visibility == 0 and any(node.prompt for node in symbol.nodes):
        prompts = [node.prompt[1] for node in symbol.nodes if node.prompt]
        return "it cannot be chosen without " + " or ".join(
            kconfiglib.expr_str(condition, with_value) for condition in prompts
        )
    if visible == 0:
        return "it depends on " + kconfiglib.expr_str(symbol.direct_dep, with_value)
    if kconfiglib.expr_value(symbol.rev_dep) > 0:
        return "it is selected by " + kconfiglib.expr_str(symbol.rev_dep, with_value)
    if not any(node.prompt for node in symbol.nodes):
        return "it has no prompt: only its default or a 'select' sets it"
    if symbol.choice is not None:
        chosen = symbol.choice.selection
        return f"its choice has {chosen.name if chosen else 'nothing'} selected"
    return f"its value became {symbol.str_value!r}"


def with_value(item: kconfiglib.Symbol) -> str:
    """Format a symbol of an expression with its value."""
    text: str = kconfiglib.standard_sc_expr_str(item)
    if isinstance(item, kconfiglib.Symbol) and not item.is_constant:
        return f"{text} (={item.str_value})"
    return text


def main(config: str, names: list[str]) -> None:
    """Print the reasons for ``names``, given the final ``config``."""
    kconf = Kconfig("Kconfig", warn=False)
    kconf.load_config(config)
    json.dump({name: reason(kconf, name) for name in names}, sys.stdout, indent=1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

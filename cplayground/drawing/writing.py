"""Write SVG and HTML: elements with their attributes, and text that is in a font's tables."""

from __future__ import annotations

from html import escape

from cplayground.drawing.text import Font, clean, is_known, width


def number(value: float) -> str:
    """Return a coordinate with at most one digit after the point."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def element(name: str, *inside: str, **attributes: object) -> str:
    """Return an element.  ``inside`` is markup; ``class_`` and ``stroke_width`` lose their "_"."""
    written = [name]
    for key, value in attributes.items():
        if value is None or value == "":
            continue
        text = number(value) if isinstance(value, float) else str(value)
        written.append(f'{key.rstrip("_").replace("_", "-")}="{escape(clean(text))}"')
    start = " ".join(written)
    content = "".join(inside)
    return f"<{start}>{content}</{name}>" if content else f"<{start}/>"


def words(text: str) -> str:
    """Return text as markup."""
    return escape(clean(text), quote=False)


def title(*lines: str) -> str:
    """Return what a browser shows while the pointer is on an element."""
    return element("title", "\n".join(words(one) for one in lines if one))


def line(x: float, y: float, text: str, font: Font, *classes: str, anchor: str = "") -> str:
    """Return one line of text, whose baseline begins, or with an anchor ends, at a point.

    A text with characters whose width is a guess is squeezed into what was reserved for it.
    """
    named = [*classes, *(["mono"] if font.family == "mono" else []), *(["bold"] * font.bold)]
    guessed = None if is_known(text) else width(text, font)
    return element(
        "text",
        words(text),
        x=x,
        y=y,
        font_size=font.size,
        class_=" ".join(named),
        text_anchor=anchor,
        textLength=guessed,
        lengthAdjust="spacingAndGlyphs" if guessed else None,
    )


def rectangle(
    x: float, y: float, wide: float, tall: float, *classes: str, radius: float = 0
) -> str:
    """Return a rectangle."""
    return element(
        "rect",
        x=x,
        y=y,
        width=wide,
        height=tall,
        rx=float(radius) if radius else None,
        class_=" ".join(classes),
    )

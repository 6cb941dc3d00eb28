"""What the pictures of the tools are drawn with: plain SVG, readable on any page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

WIDTH, LABEL, BAR, ROW = 760, 190, 440, 26
#: What it is about, and what it is compared with.
OURS, OTHERS = "#2a9d5c", "#7a9cc6"
_QUIET = "#666"


def document(height: float, drawn: Iterable[str]) -> str:
    """A picture of `WIDTH` and this height, on white."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def title(y: float, text: str) -> str:
    """A heading at the left."""
    return f'<text x="10" y="{y}" font-weight="bold">{escape(text)}</text>'


def note(x: float, y: float, text: str, anchor: str = "start") -> str:
    """A remark."""
    return f'<text x="{x}" y="{y}" fill="{_QUIET}" text-anchor="{anchor}">{escape(text)}</text>'


def bar(y: float, label: str, share: float, shown: str, fill: str) -> list[str]:
    """One bar in a row of its own: its label, a `share` of the longest, and what it stands for."""
    width = round(BAR * share, 1)
    return [
        f'<text x="{LABEL - 8}" y="{y}" text-anchor="end">{escape(label)}</text>',
        f'<rect x="{LABEL}" y="{y - 13}" width="{width}" height="17" fill="{fill}"/>',
        f'<text x="{LABEL + width + 6}" y="{y}">{escape(shown)}</text>',
    ]

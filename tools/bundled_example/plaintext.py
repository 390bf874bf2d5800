"""Plain text out of HTML and out of files of unknown encoding."""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser

_BLOCKS = frozenset(
    {"p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "dl", "dt", "dd", "table", "tr", "pre"}
    | {"blockquote", "section", "article", "main", "hr", "header", "footer"}
)
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
)
_SILENT = frozenset(["script", "style", "head", "nav", "svg", "button"])


def normalise(text: str) -> str:
    """NFC, unix newlines, no trailing blanks, at most one empty line in a row, one newline at the end."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    text = text.replace("\u00a0", " ").replace("\u00ad", "").replace("\u200b", "").replace("\ufeff", "")
    text = re.sub(r"[ \t]+\n", "\n", text + "\n")
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def decode_bytes(raw: bytes) -> str:
    """UTF-8 where it is UTF-8, Latin-1 otherwise."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


class _Text(HTMLParser):
    def __init__(self, skip_classes: frozenset[str], only: str | None) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.stack: list[tuple[str, bool]] = []
        self.skip_classes = skip_classes
        self.only = only
        self.pre = 0

    @property
    def hidden(self) -> bool:
        outside = self.only is not None and all(tag != self.only for tag, _ in self.stack)
        return outside or any(silent for _, silent in self.stack)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS or tag == "br":
            self.parts.append("\n" if tag in ("br", "li", "tr", "dd", "dt") or self.pre else "\n\n")
        if tag == "li" and not self.hidden:
            self.parts.append("- ")
        if tag in ("td", "th"):
            self.parts.append("  ")
        if tag in _VOID:
            return
        classes = frozenset((dict(attrs).get("class") or "").split())
        if tag in ("p", "li") and self.stack and self.stack[-1][0] == tag:
            self.stack.pop()
        self.stack.append((tag, tag in _SILENT or bool(classes & self.skip_classes)))
        self.pre += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        depth = next((i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i][0] == tag), None)
        if depth is None:
            return
        self.pre -= sum(name == "pre" for name, _ in self.stack[depth:])
        del self.stack[depth:]
        if tag in _BLOCKS:
            self.parts.append("\n" if tag in ("li", "tr", "dd", "dt") else "\n\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data if self.pre else re.sub(r"\s+", " ", data))


def html_to_text(html: str, *, skip_classes: tuple[str, ...] = (), only: str | None = None) -> str:
    """The readable text of a page: blocks on their own lines, `pre` kept as it is.

    `skip_classes` are CSS classes whose elements are left out; `only` names the one element to keep.
    """
    parser = _Text(frozenset(skip_classes), only)
    parser.feed(html)
    parser.close()
    text = re.sub(r"(?m)^ (?! )", "", "".join(parser.parts))
    text = re.sub(r"\n- \s*\n+", "\n- ", text)
    return normalise(text)

"""Plain text out of man pages: a small stripper for the man(7) macros of the Linux and Tcl pages."""

from __future__ import annotations

import re

from plaintext import normalise

_GLYPHS = {
    "-": "-", "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "bu": "•", "em": "—", "en": "–",
    "ti": "~", "ha": "^", "rs": "\\", "co": "©", "mu": "×", "<=": "<=", ">=": ">=", "!=": "!=", "->": "->", "+-": "±",
    "ga": "`", "aa": "´", "ae": "æ", "ss": "ß", "de": "°", "sc": "§", "mc": "µ", "**": "*", "pl": "+", "eq": "=",
}  # fmt: skip
_WORDS = frozenset({"B", "I", "SM", "SB", "UR", "MT", "OP", "AP"})
_JOINED = frozenset({"BR", "RB", "BI", "IB", "IR", "RI"})
_PARAGRAPH = frozenset({"PP", "LP", "P", "TP", "IP", "HP", "sp", "RS", "RE", "TS", "TE"})
_BREAK = frozenset({"br", "nf", "fi", "EX", "EE"})
_FILLED = {"nf": False, "EX": False, "CS": False, "fi": True, "EE": True, "CE": True}


def _inline(text: str) -> str:
    text = text.split('\\"')[0].rstrip() if '\\"' in text else text
    text = re.sub(r"\\f(\[[^\]]*\]|\([A-Z]{2}|.)", "", text)
    text = re.sub(r"\\s([-+]?\d|\[[^\]]*\])", "", text)
    text = re.sub(r"\\[hvwkoLlDb]'[^']*'", "", text)
    text = re.sub(r"\\\*\(lq|\\\*\(rq", '"', text)
    text = re.sub(r"\\\*(\[[^\]]*\]|\(..|.)", "", text)
    text = re.sub(r"\\\((..)", lambda m: _GLYPHS.get(m[1], ""), text)
    text = re.sub(r"\\\[([^\]]*)\]", lambda m: _GLYPHS.get(m[1], ""), text)
    text = re.sub(r"\\([ ~0])", " ", text)
    text = re.sub(r"\\[&|^%/,:)c]", "", text)
    return text.replace("\\-", "-").replace("\\e", "\\").replace("\\.", ".").replace("\\'", "'").replace("\\`", "`")


def _arguments(rest: str) -> list[str]:
    found = re.findall(r'"((?:[^"]|"")*)"?|((?:\\ |\S)+)', rest)
    return [_inline((quoted or bare).replace('""', '"')) for quoted, bare in found]


class _Page:
    """The state of a page: whether lines are filled, whether the next one is a tag, whether a table is open."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.filled, self.tag_next, self.table = True, False, False

    def text(self, text: str) -> None:
        alone = self.tag_next or not self.filled or self.table or not text.strip()
        self.out.append(text + ("\n" if alone else " "))
        self.tag_next = False

    def line(self, line: str) -> None:
        if self.table and re.search(r"^[lcrnLCRN| ]+[.;]?$|^T[{}]$|^[_=]$|;$", line):
            return
        self.text(_inline(line).replace("\t", "  ").removeprefix("T}"))

    def request(self, name: str, rest: str) -> None:
        self.table = {"TS": True, "TE": False}.get(name, self.table)
        self.filled = _FILLED.get(name, self.filled)
        if name in ("SH", "SS"):
            self.out.append("\n\n" + " ".join(_arguments(rest)) + "\n")
        elif name in _WORDS:
            self.text(" ".join(_arguments(rest)))
        elif name in _JOINED:
            self.text("".join(_arguments(rest)))
        elif name in ("IP", "HP") and rest:
            self.out.append("\n\n" + (_arguments(rest) or [""])[0] + "\n")
        else:
            self.tag_next = self.tag_next or name in ("TP", "TQ")
            if name in _PARAGRAPH:
                self.out.append("\n\n")
            elif name in _BREAK:
                self.out.append("\n")


def roff_to_text(source: str) -> str:
    """A man page as plain text: fonts dropped, filled paragraphs on one line, unknown requests left out."""
    page, defining = _Page(), False
    for line in source.splitlines():
        if defining:
            defining = not re.match(r"\.\.\s*$", line)
        elif line.startswith(("'\\\"", '.\\"', "'\"", "...")) or line.strip() in (".", "'"):
            continue
        elif match := re.match(r"[.']\s*([A-Za-z]{1,3})\b\s*(.*)$", line):
            defining = match[1] in ("de", "ig", "am")
            if not defining:
                page.request(match[1], match[2])
        else:
            page.line(line)
    return normalise(re.sub(r"(?m)^ (?=\S)| (?=[,.;:] )", "", "".join(page.out)))

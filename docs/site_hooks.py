"""What the site needs beyond Markdown: the commands' own help, and links out of docs/, which lead nowhere on it."""

from __future__ import annotations

import argparse
import posixpath
import re
from typing import Any

MARK = "<!-- commands -->"
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)[^)]*\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    if MARK in markdown:
        markdown = markdown.replace(MARK, commands())
    folder = posixpath.dirname(page.file.src_uri)

    def name_alone(link: re.Match[str]) -> str:
        """The text of a link that leaves docs/: the repository's other files are no part of the site."""
        outside = posixpath.normpath(posixpath.join(folder, link[2])).startswith("..")
        return f"`{link[1].strip('`')}`" if outside else link[0]

    return _LINK.sub(name_alone, markdown)


def commands() -> str:
    """Every command's help, as its own parser gives it, in Markdown."""
    from saekernels.cli.entry import build_parser
    from saekernels.cli.options.arguments import HelpFormatter

    parts = []
    for parser in _leaves(build_parser()):
        parser.formatter_class = lambda prog: HelpFormatter(prog, width=100)
        parts.append(f"## {parser.prog}\n\n```text\n{parser.format_help().strip()}\n```\n")
    return "\n".join(parts)


def _leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found += _leaves(child)
    return found or [parser]

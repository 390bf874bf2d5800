"""The documents of each domain, out of unpacked Debian packages and the standard library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from plaintext import html_to_text
from roff import roff_to_text
from sources import (
    Source,
    chunks,
    database_docs,
    man_pages,
    prose,
    python_docs,
    python_source,
    read_text,
    rust_books,
)

Folders = dict[str, Path]

# Package -> licence, as its copyright file has it.
LICENCES = {
    "anarchism": "GPL-2", "debian-reference-de": "GPL-2+", "debian-reference-es": "GPL-2+",
    "debian-reference-fr": "GPL-2+", "debian-reference-it": "GPL-2+", "fortunes": "BSD and quotations",
    "fortunes-min": "BSD and quotations", "git": "GPL-2", "golang-1.19-src": "BSD-3-Clause", "libeigen3-dev": "MPL-2.0",
    "manpages-de": "stated in each page", "manpages-es": "stated in each page", "manpages-fr": "stated in each page",
    "node-lodash": "MIT", "perl-modules-5.36": "GPL-1+ OR Artistic-1.0", "postgresql-doc-15": "PostgreSQL",
    "python-django-doc": "BSD-3-Clause", "python3-django": "BSD-3-Clause", "ruby-licensee": "verbatim copies",
    "sqlite3-doc": "public-domain",
}  # fmt: skip
PACKAGES = (
    *LICENCES, "bible-kjv", "bible-kjv-text", "dict-devil", "dict-jargon", "manpages", "manpages-dev", "python3.11-doc",
    "rust-doc", "tcl8.6-doc",
)  # fmt: skip
# Collections that hold much of what is out of date, in bad taste or a drawing are left out.
FORTUNES = (
    "art", "education", "fortunes", "humorists", "kids", "law", "literature", "medicine", "people", "riddles",
    "science", "songs-poems", "startrek", "tao", "wisdom", "work",
)  # fmt: skip
# What stands around a page's text, as classes of its elements.
AROUND = ("headerlink", "nav", "navfooter", "navheader", "nosearch", "sphinxsidebar", "toc")
# The bundled example's domains, under the names that they have here.
RENAMED = {
    "python_source": "python_code", "python_docs": "documentation", "database_docs": "documentation",
    "rust_books": "documentation", "man_pages": "man_pages", "prose": "prose",
}  # fmt: skip


def bundled(folders: Folders) -> Iterator[Source]:
    """What the bundled example was trained on, but its licences; the Bible is a domain of its own."""
    for read in (python_source, python_docs, man_pages, database_docs, rust_books, prose):
        for source in read(folders):
            domain = "bible" if source.package == "bible-kjv-text" else RENAMED[source.domain]
            yield replace(source, domain=domain)


def essays(folders: Folders) -> Iterator[Source]:
    yield from _pages(folders, "prose", "anarchism", "usr/share/doc/anarchism/html/*.html")


def quotations(folders: Folders) -> Iterator[Source]:
    for package in ("fortunes", "fortunes-min"):
        root = folders[package] / "usr/share/games/fortunes"
        for name in FORTUNES:
            if (root / name).exists():
                entries = [entry.strip("\n") for entry in re.split(r"(?m)^%\n", read_text(root / name))]
                for number, chunk in enumerate(chunks(entries)):
                    yield _source(chunk, "quotations", package, f"{name}/{number:03d}")


def translations(folders: Folders) -> Iterator[Source]:
    for language in ("de", "es", "fr"):
        package = f"manpages-{language}"
        for path in sorted((folders[package] / f"usr/share/man/{language}").rglob("*.gz")):
            text = "" if path.is_symlink() else roff_to_text(read_text(path))
            if text.strip() and ".\\}" not in text:  # otherwise a page with requests that roff.py does not read
                yield _source(text, "languages", package, f"{path.parent.name}/{path.stem}")
    for language in ("de", "es", "fr", "it"):
        pattern = f"usr/share/debian-reference/ch*.{language}.html"
        yield from _pages(folders, "languages", f"debian-reference-{language}", pattern)


def code(folders: Folders) -> Iterator[Source]:
    skip = re.compile(r"/(testdata|vendor|locale)/|_test\.go$|/z[a-z]*_[^/]*\.go$|\.min\.js$")
    for domain, package, root, suffix in (
        ("python_code", "python3-django", "usr/lib/python3/dist-packages/django", ".py"),
        ("other_code", "golang-1.19-src", "usr/share/go-1.19/src", ".go"),
        ("other_code", "libeigen3-dev", "usr/include/eigen3", ".h"),
        ("other_code", "perl-modules-5.36", "usr/share/perl/5.36.0", ".pm"),
        ("other_code", "node-lodash", "usr/share/nodejs/lodash", ".js"),
    ):
        top = folders[package] / root
        for path in sorted(top.rglob(f"*{suffix}")):
            if path.is_file() and not path.is_symlink() and not skip.search(path.as_posix()):
                yield _source(read_text(path), domain, package, path.relative_to(top).as_posix())


def release_notes(folders: Folders) -> Iterator[Source]:
    for path in sorted((folders["git"] / "usr/share/doc/git/RelNotes").iterdir()):
        yield _source(read_text(path), "release_notes", "git", path.name)
    for package, pattern in (
        ("postgresql-doc-15", "postgresql-doc-15/html/release-*.html"),
        ("sqlite3-doc", "sqlite3/releaselog/*.html"),
        ("python-django-doc", "python-django-doc/html/releases/*.html"),
    ):
        yield from _pages(folders, "release_notes", package, f"usr/share/doc/{pattern}")


def licences(folders: Folders) -> Iterator[Source]:
    """Debian's common licences, the copyright file of every package that is read here, and GitHub's list of them."""
    for path in sorted(Path("/usr/share/common-licenses").iterdir()):
        if not path.is_symlink():
            yield Source(read_text(path), "licences", f"base-files/{path.name}", "base-files", "verbatim copies")
    for package, folder in sorted(folders.items()):
        path = folder / f"usr/share/doc/{package}/copyright"
        if path.exists():  # otherwise a link to another package's
            yield Source(read_text(path), "licences", f"{package}/copyright", package, "verbatim copies")
    for path in sorted(folders["ruby-licensee"].rglob("_licenses/*.txt")):
        yield _source(read_text(path).split("\n---\n", 1)[1], "licences", "ruby-licensee", path.name)


READERS = (bundled, essays, quotations, translations, code, release_notes, licences)


def _source(text: str, domain: str, package: str, name: str) -> Source:
    return Source(text, domain, f"{package}/{name}", package, LICENCES[package])


def _pages(folders: Folders, domain: str, package: str, pattern: str) -> Iterator[Source]:
    for path in sorted(folders[package].glob(pattern)):
        text = html_to_text(read_text(path), skip_classes=AROUND)
        yield _source(text, domain, package, path.name.removesuffix(".html"))

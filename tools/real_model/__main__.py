"""A small real model and text to train and evaluate SAEs of it on: SmolLM2-135M-Instruct, and documents by domain.

    python tools/real_model --work WORK

Writes WORK/SmolLM2-135M-Instruct, WORK/train/DOMAIN.jsonl, WORK/heldout/DOMAIN.jsonl (text, domain, source, package,
licence), WORK/passages/DOMAIN.jsonl, a passage of each held-out document for measurements of many documents and few
tokens, and WORK/SOURCES.json; downloads lie in WORK/cache. What is there already is kept, but the text, which is made
again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "bundled_example"))

from transformers import AutoTokenizer

from readers import PACKAGES, READERS
from sides import Documents, Sizes, passage, split
from smollm2 import cross_entropy, sha256, write_model
from sources import Source, fetch, installed_versions, versions
from wikitext import COMMIT, articles, fetch_wikitext

MODEL = "SmolLM2-135M-Instruct"
GPL = Path("/usr/share/common-licenses/GPL-3")
CE_TOKENS, HIGHEST_CE = 300, 3.5


def documents(folders: dict[str, Path], wikitext: dict[str, Path]) -> Iterator[Source]:
    for read in READERS:
        yield from read(folders)
    for part, path in wikitext.items():
        yield from articles(path.read_text(encoding="utf-8"), part)


def write(folder: Path, chosen: Documents) -> None:
    """One jsonl file a domain, and no others; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.jsonl"):
        if path.stem not in chosen:
            path.unlink()
    for domain, sources in chosen.items():
        part = folder / f"{domain}.jsonl.part"
        with open(part, "w", encoding="utf-8") as file:
            for one in sources:
                record = {"text": one.text, "domain": domain, "source": one.name, "package": one.package,
                          "licence": one.licence}  # fmt: skip
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        os.replace(part, folder / f"{domain}.jsonl")


def table(work: Path, sides: dict[str, Documents], count: Callable[[str], int]) -> list[dict[str, Any]]:
    """A row for each file: side, domain, documents, tokens, packages, sha256."""
    return [
        {"side": side, "domain": domain, "documents": len(sources), "tokens": sum(count(one.text) for one in sources),
         "packages": sorted({one.package for one in sources}), "sha256": sha256(work / side / f"{domain}.jsonl")}
        for side, chosen in sides.items() for domain, sources in chosen.items()
    ]  # fmt: skip


def said(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'side':8s} {'domain':14s} {'documents':>9s} {'tokens':>9s}  sha256"]
    lines += [
        f"{row['side']:8s} {row['domain']:14s} {row['documents']:9,d} {row['tokens']:9,d}  {row['sha256']}"
        for row in rows
    ]
    for side in dict.fromkeys(row["side"] for row in rows):
        ours = [row for row in rows if row["side"] == side]
        count, tokens = (sum(row[key] for row in ours) for key in ("documents", "tokens"))
        lines.append(f"{side:8s} {'in all':14s} {count:9,d} {tokens:9,d}")
    return "\n".join(lines)


def used(sides: dict[str, Documents], found: dict[str, str]) -> list[dict[str, str]]:
    """Package, version, licence and side of everything that a document came from."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    rows = {
        (one.package, one.licence, side)
        for side, chosen in sides.items() for sources in chosen.values() for one in sources
    }  # fmt: skip
    return [
        {"package": package, "licence": licence, "side": side,
         "version": COMMIT if package.startswith("wikitext-2") else found.get(package, python)}
        for package, licence, side in sorted(rows)
    ]  # fmt: skip


def counter(tokenizer: Any) -> Callable[[str], int]:
    """How many tokens a text has; each text is tokenised once."""
    sizes: dict[str, int] = {}

    def count(text: str) -> int:
        if text not in sizes:
            sizes[text] = len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
        return sizes[text]

    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the folder to write into")
    work = parser.parse_args().work
    cache = work / "cache"
    model = write_model(cache, work / MODEL)
    ce = cross_entropy(work / MODEL, GPL.read_text(), CE_TOKENS)
    if not ce < HIGHEST_CE:
        sys.exit(f"{work / 'model'} has a CE of {ce:.3f} on {CE_TOKENS} tokens of {GPL}; need less than {HIGHEST_CE}")
    print(f"{model['weights']}: CE {ce:.3f} on the first {CE_TOKENS} tokens of {GPL}", flush=True)
    count = counter(AutoTokenizer.from_pretrained(work / MODEL))
    folders = fetch(cache, PACKAGES)
    sizes = Sizes()
    train, heldout = split(documents(folders, fetch_wikitext(cache)), count, sizes)
    passages = {domain: [passage(one, sizes.passage) for one in own] for domain, own in heldout.items()}
    sides = {"train": train, "heldout": heldout, "passages": passages}
    for side, chosen in sides.items():
        write(work / side, chosen)
    rows = table(work, sides, count)
    sources = used(sides, {**installed_versions(), **versions(cache)})
    record = {"model": {**model, "ce": ce, "ce_tokens": CE_TOKENS, "ce_text": str(GPL)}, "files": rows,
              "sources": sources}  # fmt: skip
    (work / "SOURCES.json").write_text(json.dumps(record, indent=1) + "\n")
    print(said(rows))


if __name__ == "__main__":
    main()

"""Stage 2b: choose the evaluation set that is shipped, out of the held-out documents.

    python tools/bundled_example/evalset.py --work WORK [--per-domain 40000]

Only documents whose licence lets us ship them; of each, the beginning (whole lines, at most `--longest` characters), so
that many documents are in and none dominates. Writes WORK/eval.jsonl.gz (text, domain, source), and
WORK/eval.npy with WORK/eval_documents.json as `tokenizer.py` does for the whole held-out part.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer

from corpus import read_documents
from tokenizer import encode, save_tokens


def beginning(text: str, longest: int) -> str:
    """The first whole lines of `text`, at most `longest` characters; one over-long line is cut at a space."""
    if len(text) <= longest:
        return text
    cut = text.rfind("\n", 0, longest)
    return text[: cut + 1] if cut > longest // 2 else text[:longest].rsplit(" ", 1)[0] + "\n"


def choose(documents: Iterable[dict[str, str]], sizes: dict[str, int], per_domain: int) -> list[dict[str, str]]:
    """Documents in their (hashed) order until their domain has `per_domain` tokens; `sizes`: source -> tokens.

    The domains are dealt out evenly, so that the first N tokens of the set are a small copy of the whole.
    """
    taken: dict[str, int] = {}
    chosen = []
    for document in documents:
        domain = document["domain"]
        if taken.get(domain, 0) < per_domain:
            chosen.append((taken.get(domain, 0), domain, document))
            taken[domain] = taken.get(domain, 0) + sizes[document["source"]]
    return [document for _, _, document in sorted(chosen, key=lambda entry: entry[:2])]


def write(path: Path, documents: Iterable[dict[str, str]]) -> None:
    """jsonl.gz with text, domain and source, without a time stamp."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        for document in documents:
            record = {key: document[key] for key in ("text", "domain", "source")}
            packed.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
    os.replace(part, path)


def run(work: Path, per_domain: int, longest: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    held = [
        {**document, "text": beginning(document["text"], longest)}
        for document in read_documents(work / "heldout.jsonl.gz") if document["shippable"]
    ]  # fmt: skip
    tokens = encode(tokenizer, [document["text"] for document in held], "evaluation tokens")
    by_source = {document["source"]: ids for document, ids in zip(held, tokens, strict=True)}
    chosen = choose(held, {source: len(ids) for source, ids in by_source.items()}, per_domain)
    write(work / "eval.jsonl.gz", chosen)
    save_tokens(work, "eval", chosen, [by_source[document["source"]] for document in chosen])
    for domain in sorted({document["domain"] for document in chosen}):
        sizes = [len(by_source[d["source"]]) for d in chosen if d["domain"] == domain]
        print(f"{domain:16s} {len(sizes):4d} documents {sum(sizes):8,d} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--per-domain", type=int, default=40_000, help="tokens of each domain")
    parser.add_argument("--longest", type=int, default=8_000, help="characters of a document")
    args = parser.parse_args()
    run(args.work, args.per_domain, args.longest)


if __name__ == "__main__":
    main()

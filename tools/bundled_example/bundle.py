"""Stage 7: put the finished model, SAEs, transcoders and evaluation set into the package.

    python tools/bundled_example/bundle.py --work WORK --out saekernels/example

Weights are stored as float16 (the configs ask for float32 at load time), the SAEs in the SAELens format, the
transcoders as train_clt.py wrote them. Writes SOURCES.md, with the licence texts beside it, and stops if the whole is
larger than `--limit` MiB.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekernels
from corpus import read_documents

TRANSCODERS = ("clt", "plt")
PIECES = ("model", "saes", *TRANSCODERS, "data", "licences", "SOURCES.md")


INTRODUCTION = """\
# Sources of the bundled example

The model, the SAEs and the transcoders were trained on the documents counted under *trained on*; the text of none of
them is in this package. The documents counted under *shipped* are held out of training. Their text is in
data/eval.jsonl.gz: plain text, normalised to NFC, markup removed, passages that occur in another held-out document left
out, and only the beginning of a long document. The licence texts are in licences/.

| domain | source | licence | trained on (documents) | shipped (documents) |
|---|---|---|---:|---:|
"""
LICENCES = """
## Licence texts

- PSF-2.0: licences/PSF-2.0.txt (Python source and documentation, (c) Python Software Foundation)
- PostgreSQL: licences/PostgreSQL.txt
- MIT OR Apache-2.0: used under MIT, licences/rust-MIT.txt, with licences/rust-COPYRIGHT.txt
- TCL: licences/TCL.txt
- Linux-man-pages-copyleft, BSD-3-Clause: licences/man-pages.txt
- public-domain: SQLite documentation, The Jargon File 4.4.7, The Devil's Dictionary, King James Bible
- verbatim copies: licence and copyright statements of Debian packages, which may be copied as they are

## Shipped documents

"""


def halve(path: Path) -> None:
    """Rewrite a safetensors file with float16 tensors."""
    tensors = {name: value.to(torch.float16).contiguous() for name, value in load_file(path).items()}
    if not all(torch.isfinite(value).all() for value in tensors.values()):
        raise ValueError(f"{path}: a weight does not fit into float16")
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write_model(work: Path, out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    model.save_pretrained(out)
    halve(out / "model.safetensors")
    AutoTokenizer.from_pretrained(work / "tokenizer").save_pretrained(out)
    # The name of the class that every version of transformers knows, and nothing about where it was loaded from.
    config = json.loads((out / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def write_saes(work: Path, out: Path) -> None:
    context = json.loads((work / "model" / "config.json").read_text())["max_position_embeddings"]
    for folder in sorted((work / "saes").glob("layer_*")):
        layer = int(folder.name.removeprefix("layer_"))
        metadata = {
            "model_name": "saekernels-example",
            "hook_name": f"blocks.{layer}.hook_resid_post",
            "hf_hook_name": f"model.layers.{layer}",
            "prepend_bos": True,
            "context_size": context,
            "sae_lens_version": "6.0.0",
        }
        saekernels.save(saekernels.load(folder), out / folder.name, metadata=metadata)
        halve(out / folder.name / "sae_weights.safetensors")


def _version(package: str, packages: dict[str, str]) -> str:
    return f"{package} {packages[package]}" if package in packages else package


def sources_page(work: Path) -> str:
    """SOURCES.md: what was trained on, what is shipped word for word, under which licence, with the notices."""
    packages = json.loads((work / "packages.json").read_text())
    held = {document["source"]: document for document in read_documents(work / "heldout.jsonl.gz")}
    with gzip.open(work / "eval.jsonl.gz", "rt", encoding="utf-8") as lines:
        shipped = [held[json.loads(line)["source"]] for line in lines]
    trained: Counter[tuple[str, str, str]] = Counter()
    for document in read_documents(work / "train.jsonl.gz"):
        package = "Debian copyright files" if document["domain"] == "licences" else document["package"]
        trained[document["domain"], package, document["licence"]] += 1
    counts = Counter(
        (d["domain"], "Debian copyright files" if d["domain"] == "licences" else d["package"], d["licence"])
        for d in shipped
    )
    rows = [
        f"| {domain} | {_version(package, packages)} | {licence} | {trained[key]} | {counts[key]} |"
        for key in sorted(trained.keys() | counts.keys())
        for domain, package, licence in [key]
    ]
    lines_out = [*INTRODUCTION.splitlines(), *rows, *LICENCES.splitlines()]
    by_domain = defaultdict(list)
    for document in shipped:
        notice = f": {document['notice']}" if document.get("notice") else ""
        version = f" ({_version(document['package'], packages)})" if document["domain"] == "licences" else ""
        by_domain[document["domain"]].append(f"- {document['source']}{version}, {document['licence']}{notice}")
    for domain, entries in sorted(by_domain.items()):
        lines_out += [f"### {domain}", "", *sorted(entries), ""]
    return "\n".join(lines_out)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def run(work: Path, out: Path, limit: float) -> float:
    """Write the pieces into `out`; returns the size in MiB of all that lies there."""
    fresh = work / "bundle.part"
    shutil.rmtree(fresh, ignore_errors=True)
    for folder in ("model", "saes", "data"):
        (fresh / folder).mkdir(parents=True)
    write_model(work, fresh / "model")
    write_saes(work, fresh / "saes")
    for name in TRANSCODERS:
        shutil.copytree(work / name, fresh / name)
    shutil.copyfile(work / "eval.jsonl.gz", fresh / "data" / "eval.jsonl.gz")
    shutil.copytree(work / "licences", fresh / "licences")
    (fresh / "SOURCES.md").write_text(sources_page(work), encoding="utf-8")
    mebibytes = size(fresh) / 2**20
    if mebibytes > limit:
        raise ValueError(f"the bundle has {mebibytes:.1f} MiB, more than {limit}: it stays in {fresh}")
    out.mkdir(parents=True, exist_ok=True)
    for piece in PIECES:
        target = out / piece
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        shutil.move(fresh / piece, target)
    fresh.rmdir()
    return mebibytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=17.0, help="MiB")
    args = parser.parse_args()
    print(f"{args.out}: {run(args.work, args.out, args.limit):.2f} MiB")


if __name__ == "__main__":
    main()

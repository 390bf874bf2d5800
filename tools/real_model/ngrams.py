"""Far simpler models on the text of an evaluation: n-gram models of what the SAEs were trained on.

    python tools/real_model/ngrams.py --model SmolLM2-135M-Instruct --train 'train/*.jsonl' --data passages \\
        --report sites.json --json ngrams.json

Counts the tokens of --train, then predicts those that `saekernels eval` counted for --report, --tokens of its documents
in its windows: an n-gram model, too, sees only what stands before a token in its window. Writes the mean loss of each
order per document, and how much more the model loses with all SAEs in place, paired by document. Order 0 is a guess of
all tokens alike; the others are interpolated modified Kneser-Ney (`tools/bundled_example/ngram.py`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "bundled_example"))

from transformers import AutoConfig

from ngram import KneserNey
from saekernels.cli.options.arguments import Parser, at_least
from saekernels.cli.options.models import ModelNames, load_tokenizer
from saekernels.errors import InputError
from saekernels.eval import Document, load_documents
from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from saekernels.eval.text.windows import Tokens, Window, chosen
from saekernels.files.atomic import write_whole
from saekernels.files.checked import check_writable, read_json

SAMPLES = 2000


def window_losses(model: KneserNey, window: Window) -> np.ndarray:
    """[counted] float64: -ln P of each token of the window that counts, from the tokens before it in the window."""
    ids = window.ids.astype(np.uint64)
    history = np.zeros(len(ids) - 1, np.uint64)
    for back in range(min(model.order - 1, len(ids) - 1), 0, -1):
        # [S-1]: the history of the prediction at t has token t + 1 - back where there is one.
        history = history << model.bits
        history[back - 1 :] |= ids[: len(ids) - back]
    known = np.arange(1, len(ids))
    return -np.log(model.probability(history, known, ids[1:]))[window.counted]


def losses(models: Sequence[KneserNey], documents: Sequence[Sequence[Window]]) -> list[list[float]]:
    """Mean loss of each document in nats, for each model."""
    return [[float(np.concatenate([window_losses(model, one) for one in own]).mean()) for own in documents]
            for model in models]  # fmt: skip


def stream(tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """All tokens of the texts, with the tokenizer's EOS between two texts."""
    parts: list[int] = []
    for text in texts:
        parts += [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], tokenizer.eos_token_id]
    return np.asarray(parts, np.int64)


def paired(spliced: Sequence[float], other: Sequence[float], counts: Sequence[int], seed: int) -> dict[str, Any]:
    """How much larger the mean of the first is, a token, with the 95 % interval over documents."""
    tokens = np.asarray(counts, np.float64)
    rows = np.column_stack([tokens, (np.asarray(spliced) - np.asarray(other)) * tokens])
    drawn = resample_totals(rows, SAMPLES, (seed, 17))
    value = float(rows[:, 1].sum() / tokens.sum())
    return {"value": value, "ci95": percentiles(drawn[:, 1] / drawn[:, 0])}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record: of each order its loss, and that of all SAEs beside it."""
    report = _report(arguments.report)
    table, seed = report["documents_table"], report["seed"]
    tokenizer = load_tokenizer(ModelNames(arguments.model))
    vocabulary = AutoConfig.from_pretrained(arguments.model).vocab_size
    most = 64 // max(1, (vocabulary - 1).bit_length())
    if arguments.orders > most:
        raise InputError(f"--orders: got {arguments.orders}, need at most {most} for {vocabulary:,} tokens")
    trained = [document.text for document in _documents("--train", arguments.train, seed)]
    cutter = Tokens(tokenizer, report["context"], rows=vocabulary)
    parts = list(chosen(_documents("--data", arguments.data, seed), cutter, arguments.tokens, seed))
    own = [windows for _, windows in parts]
    counts = [sum(int(window.counted.sum()) for window in windows) for windows in own]
    ids = [hashlib.sha256(document.content()).hexdigest()[:16] for document, _ in parts]
    if counts != table["tokens"] or ids != table["ids"]:
        raise InputError(
            f"--report: it has {sum(table['tokens']):,} tokens of {len(table['tokens'])} documents, the text of --data "
            f"and --tokens {sum(counts):,} of {len(counts)}: need the same tokens of the same documents"
        )
    tokens = stream(tokenizer, trained)
    made: list[dict[str, Any]] = []
    for order in range(arguments.orders + 1):
        model = KneserNey(tokens if order else tokens[:0], order, vocabulary)
        (found,) = losses([model], own)
        loss = float(np.average(found, weights=counts))
        joint = paired(table["spliced"]["all"], found, counts, seed)
        size = len(model.levels[-1].keys) if order else 0
        made.append({"order": order, "ngrams": size, "loss": loss, "all_minus": joint, "documents": found})
        print(f"order {order}: {loss:.3f} nats per token", flush=True)
    return {"train_tokens": len(tokens), "vocabulary": vocabulary, "tokens": sum(counts), "models": made}


def _report(path: str) -> dict[str, Any]:
    """A report of `saekernels eval` that has the run of all sites."""
    try:
        report = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"--report: cannot read {path}: {error}") from error
    if not isinstance(report, dict) or "all" not in report.get("documents_table", {}).get("spliced", {}):
        raise InputError(f"--report: got {path}, need a report of `saekernels eval` of several sites together")
    return report


def _documents(option: str, paths: Sequence[str], seed: int) -> Sequence[Document]:
    try:
        return load_documents(paths, seed=seed)
    except InputError as error:
        raise InputError(f"{option}: {error}") from error


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, help="its directory, for the tokenizer and the vocabulary")
    parser.add_argument("--train", nargs="+", required=True, help="text to count, as --data of `saekernels eval`")
    parser.add_argument("--data", nargs="+", required=True, help="that of the report")
    parser.add_argument("--tokens", type=at_least(1), help="those of the report's command; without: all")
    parser.add_argument("--report", required=True, help="a record of `saekernels eval`")
    parser.add_argument("--orders", type=at_least(1), default=4, help="up to this order")
    parser.add_argument("--json", metavar="PATH", required=True, help="write the figures")
    arguments = parser.parse_args(argv)
    try:
        check_writable(arguments.json)
        found = measure(arguments)
    except (InputError, ValueError) as error:
        parser.error(str(error))
    found["command"] = shlex.join(["python", "tools/real_model/ngrams.py", *argv])
    write_whole(arguments.json, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])

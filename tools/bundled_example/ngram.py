"""An interpolated modified Kneser-Ney n-gram model over token ids, as the yardstick for the language model.

    python tools/bundled_example/ngram.py --work WORK [--order 5]

Counts every training token, then compares the n-gram with the trained language model on the evaluation set, at the same
positions and with the same window boundaries (both see only the tokens since the start of the window). Writes
WORK/ngram.json: nats per token and bits per byte, by domain and as a whole.

The model (Chen and Goodman 1998, section 3 of the extended report): at the top order raw counts, below it the number of
different left neighbours; three discounts an order from the counts of counts, Y = n1 / (n1 + 2 n2),
D1 = 1 - 2 Y n2/n1, D2 = 2 - 3 Y n3/n2, D3+ = 3 - 4 Y n4/n3; every order interpolates with the next shorter one and
the shortest with the uniform distribution.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from progress import bar
from windows import BOS_ID, HeldOut, held_out

KEY = 64  # bits of a key, all tokens of an n-gram together


@dataclass(frozen=True)
class Level:
    """One order: sorted n-gram keys with their discounted counts, and per history the total count and freed mass."""

    keys: np.ndarray
    discounted: np.ndarray
    histories: np.ndarray
    total: np.ndarray
    freed: np.ndarray


def discounts(counts: np.ndarray) -> np.ndarray:
    """[4] float64: the discount of counts 0, 1, 2 and 3 or more; 0.75 where the counts of counts do not give one."""
    n1, n2, n3, n4 = (int((counts == n).sum()) for n in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:
        return np.array([0.0, 0.75, 0.75, 0.75])
    y = n1 / (n1 + 2 * n2)
    found = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.clip(found, 0.0, [0.0, 1.0, 2.0, 3.0])


def level(keys: np.ndarray, counts: np.ndarray, bits: np.uint64) -> Level:
    """Build an order from its sorted unique keys, `bits` a token, and their (raw or continuation) counts."""
    discount = discounts(counts)[np.minimum(counts, 3)]
    histories, first = np.unique(keys >> bits, return_index=True)
    total = np.add.reduceat(counts, first).astype(np.float64)
    return Level(keys, counts - discount, histories, total, np.add.reduceat(discount, first))


def lookup(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place, found) of each wanted key in sorted keys; place is valid also where found is False."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return place, keys[place] == wanted


class KneserNey:
    """`order`-gram model of a stream of tokens < `vocab`, whose n-grams fit 64 bits: order 5 of 4,096, 4 of 65,536."""

    def __init__(self, stream: np.ndarray, order: int, vocab: int) -> None:
        bits = max(1, (vocab - 1).bit_length())
        if order < 0 or order * bits > KEY:
            raise ValueError(f"order {order} and vocab {vocab}: need an order of 0 to {KEY // bits}")
        if len(stream) < order:
            raise ValueError(f"stream: {len(stream)} tokens, fewer than the order {order}")
        self.order, self.vocab, self.bits = order, vocab, np.uint64(bits)
        self.levels: list[Level] = []
        if order == 0:
            return  # all tokens alike
        key = np.zeros(len(stream) - order + 1, np.uint64)
        for offset in range(order):
            key = (key << self.bits) | stream[offset : len(key) + offset].astype(np.uint64)
        keys, counts = np.unique(key, return_counts=True)
        levels = [level(keys, counts, self.bits)]
        for n in range(order - 1, 0, -1):
            suffix = keys & np.uint64((1 << (bits * n)) - 1)
            keys, counts = np.unique(suffix, return_counts=True)
            levels.append(level(keys, counts, self.bits))
        self.levels = levels[::-1]

    def probability(self, history: np.ndarray, known: np.ndarray, token: np.ndarray) -> np.ndarray:
        """[n] float64: P(token | the last min(known, order - 1) tokens of history).

        history: [n] uint64, earlier tokens in higher bits (any more tokens than needed are ignored); known: [n] how
        many tokens of it are real; token: [n].
        """
        token = token.astype(np.uint64)
        result = np.full(len(token), 1.0 / self.vocab)
        for n, at in enumerate(self.levels):
            seen = history & np.uint64((1 << (int(self.bits) * n)) - 1)
            place, found = lookup(at.histories, seen)
            found &= known >= n
            rows, where = np.flatnonzero(found), place[found]
            spot, exact = lookup(at.keys, (seen[rows] << self.bits) | token[rows])
            hit = np.where(exact, at.discounted[spot], 0.0)
            result[rows] = (hit + at.freed[where] * result[rows]) / at.total[where]
        return result


def window_nats(model: KneserNey, windows: HeldOut) -> np.ndarray:
    """[n, context - 1] float64: -ln P of each next token, from the text tokens since the start of its window."""
    ids = windows.ids.astype(np.uint64)
    history, out = np.zeros(len(ids), np.uint64), []
    for t in range(ids.shape[1] - 1):
        if t > 0:
            history = (history << model.bits) | ids[:, t]
        out.append(-np.log(model.probability(history, np.full(len(ids), t), ids[:, t + 1])))
    return np.stack(out, 1)


def model_nats(folder: Path, windows: HeldOut, batch: int = 8) -> np.ndarray:
    """[n, context - 1] float64: -ln P of each next token under the language model in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    out = []
    with torch.no_grad(), bar() as progress:
        task = progress.add_task("language model", total=len(windows.ids), note="")
        for start in range(0, len(windows.ids), batch):
            ids = torch.from_numpy(windows.ids[start : start + batch])
            logits = model(input_ids=ids).logits[:, :-1]
            nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            out.append(nats.double().numpy())
            progress.advance(task, len(ids))
    return np.concatenate(out)


def token_bytes(tokenizer: Path, vocab: int) -> np.ndarray:
    """[vocab] int64: the bytes that each token of a byte-level BPE stands for (0 for special tokens)."""
    content = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    lengths = np.zeros(vocab, np.int64)
    for token, number in content["model"]["vocab"].items():
        lengths[number] = len(token)
    lengths[[added["id"] for added in content["added_tokens"]]] = 0
    return lengths


def table(nats: dict[str, np.ndarray], windows: HeldOut, lengths: np.ndarray) -> dict[str, dict[str, float]]:
    """Domain (and "all") -> tokens, bytes, and for every model nats per token and bits per byte."""
    counted, sizes = windows.counted(), lengths[windows.ids[:, 1:]]
    rows = {}
    for name in [*np.unique(windows.domain), "all"]:
        chosen = counted & ((windows.domain == name) | (name == "all"))[:, None]
        row = {"tokens": int(chosen.sum()), "bytes": int(sizes[chosen].sum())}
        for label, values in nats.items():
            total = float(values[chosen].sum())
            row[f"{label}_nats"] = round(total / row["tokens"], 4)
            row[f"{label}_bits_per_byte"] = round(total / math.log(2) / row["bytes"], 4)
        rows[str(name)] = row
    return rows


def run(work: Path, order: int, context: int, subset: str = "eval") -> dict[str, dict[str, float]]:
    tokens = np.load(work / "train.npy")
    lengths = token_bytes(work / "tokenizer", int(tokens.max()) + 1)
    windows = held_out(work, context, subset)
    model = KneserNey(tokens[tokens != BOS_ID], order, len(lengths))
    rows = table({
        f"{order}gram": window_nats(model, windows), "model": model_nats(work / "model", windows),
    }, windows, lengths)  # fmt: skip
    part = work / "ngram.json.part"
    part.write_text(json.dumps(rows, indent=1) + "\n")
    part.replace(work / "ngram.json")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--context", type=int, default=256)
    args = parser.parse_args()
    for name, row in run(args.work, args.order, args.context).items():
        print(name, row)


if __name__ == "__main__":
    main()

"""Stage 2: train the demo's byte-level BPE tokenizer on the training documents.

    python tools/bundled_example/tokenizer.py --work WORK [--vocab 4096]

Writes WORK/tokenizer (a PreTrainedTokenizerFast that loads with AutoTokenizer), unless it is there, and the token files
that the next stages read: WORK/train.npy and WORK/heldout.npy, uint16, documents one after another as <bos> text <eos>,
with WORK/heldout_documents.json saying where each held-out document starts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from corpus import read_documents
from progress import bar

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"


def train(texts: Iterable[str], vocab: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocab` tokens that puts <bos> before every text; it round-trips any UTF-8 text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[BOS, EOS, PAD], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=context,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str], label: str) -> list[np.ndarray]:
    """Each text as <bos> tokens <eos>, uint16."""
    fast, eos, out = tokenizer.backend_tokenizer, tokenizer.eos_token_id, []
    with bar() as progress:
        task = progress.add_task(label, total=len(texts), note="")
        for start in range(0, len(texts), 64):
            batch = fast.encode_batch(texts[start : start + 64])
            out += [np.array([*encoding.ids, eos], dtype=np.uint16) for encoding in batch]
            progress.advance(task, len(batch))
    return out


def save_array(path: Path, array: np.ndarray) -> None:
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        np.save(file, array)
    part.replace(path)


def save_tokens(work: Path, name: str, documents: list[dict[str, str]], tokens: list[np.ndarray]) -> None:
    """WORK/<name>.npy, and WORK/<name>_documents.json with source, domain, start, tokens and bytes of each."""
    starts = np.cumsum([0, *map(len, tokens)])
    index = [
        {"source": document["source"], "domain": document["domain"], "start": int(start), "tokens": len(ids),
         "bytes": len(document["text"].encode())}
        for document, ids, start in zip(documents, tokens, starts, strict=False)
    ]  # fmt: skip
    (work / f"{name}_documents.json").write_text(json.dumps(index) + "\n")
    save_array(work / f"{name}.npy", np.concatenate(tokens))


def run(work: Path, vocab: int, context: int) -> None:
    train_texts = [document["text"] for document in read_documents(work / "train.jsonl.gz")]
    if not (work / "tokenizer").exists():
        train(train_texts, vocab, context).save_pretrained(work / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    held = list(read_documents(work / "heldout.jsonl.gz"))
    tokens = encode(tokenizer, [document["text"] for document in held], "held-out tokens")
    save_tokens(work, "heldout", held, tokens)
    held_count = sum(map(len, tokens))
    tokens = encode(tokenizer, train_texts, "training tokens")
    save_array(work / "train.npy", np.concatenate(tokens))
    print(f"{vocab} tokens in the vocabulary, {sum(map(len, tokens)):,d} training and {held_count:,d} held-out tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--context", type=int, default=256)
    args = parser.parse_args()
    run(args.work, args.vocab, args.context)


if __name__ == "__main__":
    main()

"""Tokenizers in GGUF files: the ids of the tokenizers that their fields name, and what is refused."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import tiny_lm
from checkpoints import llama, write_gguf
from cli import arguments, fails
from saekernels.cli.options.gguf_splits import SPLITS
from saekernels.cli.options.gguf_tokenizer import honour_fields
from saekernels.cli.options.models import ModelNames, load_tokenizer
from saekernels.errors import InputError

pytestmark = pytest.mark.skipif(not transformers.utils.is_gguf_available(), reason="the package gguf is not installed")
TEXTS = (
    "In 1234567 houses,   12 of them'S red:\n\n\n  x² = 3.14159, ½ (see §12); don't SAY so!!  \r\n\t¡Año 2024!   ",
    "  def HelloWorld(a, b):\n        return {'k': a[10], \"v\": b**2}  # 日本語、テスト 2000年 мир ٣٤٥ "
    "cafe\u0301 ‘q’ … $5+<=>^~|`",
)
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
GPT_2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)


def isolated(*regexes: str) -> list[Any]:
    return [pre_tokenizers.Split(Regex(one), "isolated") for one in regexes]


# As the published tokenizer.json has them: pre-tokenizer, normalizer, ignore_merges.
PUBLISHED = {
    "gpt-2": ([GPT_2], None, False),
    "olmo": ([GPT_2], normalizers.NFC(), False),
    "smollm": ([DIGITS, GPT_2], None, False),
    "starcoder": ([DIGITS, GPT_2], None, False),
    "refact": ([DIGITS, GPT_2], None, False),
    "command-r": ([DIGITS, GPT_2], normalizers.NFC(), False),
    "falcon": (
        [pre_tokenizers.Punctuation("contiguous"), GPT_2, pre_tokenizers.Digits(False), *isolated("[0-9][0-9][0-9]")],
        None,
        False,
    ),
    "llama-bpe": ([*isolated(LLAMA_3), BYTES], None, True),
    "dbrx": ([*isolated(LLAMA_3), BYTES], None, False),
    "qwen2": ([*isolated(QWEN_2), BYTES], normalizers.NFC(), False),
    "deepseek-coder": (
        [*isolated(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"), DIGITS, BYTES],
        None,
        False,
    ),
    "bloom": ([*isolated(r" ?[^(\s|[.,!?…。，、।۔،])]+"), BYTES], None, False),
    "default": (
        [*isolated(r"[\p{P}\$\+<=>\^~\|]+", GPT_2_REGEX), pre_tokenizers.Digits(False), *isolated("[0-9]{3}"), BYTES],
        None,
        False,
    ),
}


@functools.cache
def merged() -> Tokenizer:
    """BPE whose tokens cross words, digits and lines, so that every other split gives other ids."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = BYTES, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([text[start:] for text in TEXTS for start in range(0, len(text), 5)] * 2, trainer)
    return bpe


def loaded(folder: Path, backend: Tokenizer | None = None, **fields: Any) -> Any:
    path = write_gguf(folder / "t.gguf", llama(), backend=backend or merged(), **fields)
    return load_tokenizer(ModelNames(str(path)))


def ids(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("pre", PUBLISHED)
def test_ids_are_those_of_the_tokenizer_that_the_file_names(pre: str, tmp_path: Path) -> None:
    steps, normalizer, whole = PUBLISHED[pre]
    want = Tokenizer.from_str(merged().to_str())
    plain = [want.encode(text, add_special_tokens=False).ids for text in TEXTS]
    want.pre_tokenizer, want.normalizer = pre_tokenizers.Sequence(steps), normalizer
    want.model.ignore_merges = whole
    direct = [want.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert ids(loaded(tmp_path, pre=pre)) == direct
    assert direct != plain


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("tekken", "HelloWorld 123's", ["Hello", "World", " ", "1", "2", "3", "'s"]),
        ("gpt-4o", "HelloWorld's 1234/\n", ["Hello", "World's", " ", "123", "4", "/\n"]),
        ("qwen35", "का 12", ["का", " ", "1", "2"]),
        ("deepseek-v3", "a(b c日本1234 !\n", ["a", "(b", " c", "日本", "123", "4", " !\n"]),
        ("viking", "is it 12, x", ["is", " it", " ", "1", "2", ",", " x"]),
    ],
)
def test_pieces_of_splits_that_are_told_by_words(pre: str, text: str, pieces: list[str]) -> None:
    backend = Tokenizer(models.BPE())
    SPLITS[pre].install(backend)
    found = [text[start:end] for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert found == pieces


def test_every_known_split_gives_back_every_byte() -> None:
    backend = Tokenizer.from_str(merged().to_str())
    for name, splits in SPLITS.items():
        splits.install(backend)
        for text in TEXTS:
            whole = backend.decode(backend.encode(text).ids)
            assert whole == (text if splits.nfc is False else normalizers.NFC().normalize_str(text)), name


def test_digits_stand_alone_for_the_tokenizer_that_says_so(tmp_path: Path) -> None:
    """As SmolLM2's: without its split, two blanks in front of a digit are two tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<bos>", "<eos>", "<pad>", *alphabet, "ĠĠ", "12", "Ġ1"]
    backend = Tokenizer(
        models.BPE({token: at for at, token in enumerate(tokens)}, [("Ġ", "Ġ"), ("1", "2"), ("Ġ", "1")])
    )
    backend.add_special_tokens(tokens[:3])
    assert loaded(tmp_path, backend, add_bos_token=False).tokenize("a  12") == ["a", "Ġ", "Ġ", "12"]
    assert loaded(tmp_path, backend, pre="smollm", add_bos_token=False).tokenize("a  12") == ["a", "ĠĠ", "1", "2"]


def test_a_word_that_is_a_token_is_that_token_where_llama_3_has_it_so(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<bos>", "<eos>", "<pad>", *alphabet, "no", "word"]
    backend = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, [("n", "o")]))
    backend.add_special_tokens(tokens[:3])
    assert loaded(tmp_path, backend, pre="llama-bpe").tokenize("word") == ["word"]
    assert loaded(tmp_path, backend, pre="dbrx").tokenize("word") == list("word")


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({"pre": "gpt-2", "add_bos_token": None}, ([], [])),
        ({"pre": "llama-bpe", "add_bos_token": None}, ([0], [])),
        ({"pre": "llama-bpe", "add_bos_token": False}, ([], [])),
        ({"pre": "smollm", "add_bos_token": True, "add_eos_token": True}, ([0], [1])),
        ({"pre": "smollm", "add_bos_token": False, "add_eos_token": True}, ([], [1])),
    ],
)
def test_tokens_at_the_ends_are_those_that_the_file_says(
    fields: dict[str, Any], ends: tuple[list[int], list[int]], tmp_path: Path
) -> None:
    tokenizer = loaded(tmp_path, **fields)
    inner = tokenizer("light", add_special_tokens=False)["input_ids"]
    assert tokenizer("light")["input_ids"] == [*ends[0], *inner, *ends[1]]


@pytest.mark.parametrize(("prefix", "first"), [(None, "▁a"), (True, "▁a"), (False, "a")])
def test_sentencepiece_puts_a_blank_in_front_unless_the_file_says_no(
    prefix: bool | None, first: str, tmp_path: Path
) -> None:
    tokens = ["<unk>", "<bos>", "<eos>", "<pad>", "▁", "a", "b", "▁a", "▁b"]
    backend = Tokenizer(models.BPE({one: at for at, one in enumerate(tokens)}, [("▁", "a"), ("▁", "b")]))
    backend.add_special_tokens(tokens[:4])
    own = {"model": "llama", "pre": "default", "unknown_token_id": 0, "add_space_prefix": prefix}
    tokenizer = loaded(tmp_path, backend, scores=[-float(at) for at in range(9)], **own)
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab b")["input_ids"]) == ["<bos>", first, "b", "▁b"]


NEED = "; need --tokenizer with the tokenizer that the model was trained with\n"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"pre": "kimi-k2"},
            "says 'tokenizer.ggml.pre' is 'kimi-k2': how its text is split into words is not known",
        ),
        ({"pre": None}, "does not say 'tokenizer.ggml.pre': how its text is split into words is not known"),
        (
            {"model": "llama", "pre": "llama-bpe", "scores": [0.0] * 500},
            "says 'tokenizer.ggml.pre' is 'llama-bpe': how a tokenizer of the kind 'llama' splits text so is not known",
        ),
        ({"add_sep_token": True}, "says 'tokenizer.ggml.add_sep_token' is True: transformers' loader adds none"),
        (
            {"bos_token_id": None},
            "does not say 'tokenizer.ggml.bos_token_id': texts begin or end with that token",
        ),
    ],
)
def test_what_a_file_says_and_cannot_be_done_is_refused_by_name(
    fields: dict[str, Any], said: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_gguf(tmp_path / "t.gguf", llama(vocab_size=500), backend=merged(), **fields)
    capsys.readouterr()
    assert fails(capsys, arguments(files, model=[path])) == f"saekernels eval: error: --model: {path} {said}{NEED}"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"model": "t5"},
            "says 'tokenizer.ggml.model' is 't5': transformers' loader reads too little of such a tokenizer",
        ),
        (
            {"model": "gemma4", "pre": "gemma4", "add_space_prefix": True},
            "says 'tokenizer.ggml.add_space_prefix' is True: transformers' loader puts no blank in front",
        ),
        ({"bos_token_id": 7}, "says 'tokenizer.ggml.bos_token_id' is 7: transformers' loader takes 0"),
        ({"eos_token_id": 0}, "says 'tokenizer.ggml.eos_token_id' is 0: transformers' loader takes 1"),
    ],
)
def test_a_loader_that_reads_a_field_otherwise_is_told(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    """The loader's part is played by a tokenizer of its class, so that the test hangs on no version of it."""
    path = write_gguf(tmp_path / "t.gguf", llama(), **fields)
    with pytest.raises(InputError, match=f"^--model: {re.escape(f'{path} {said}{NEED}'.rstrip())}$"):
        honour_fields(copy.deepcopy(tiny_lm.tokenizer()), str(path))


def test_the_bos_of_a_file_that_says_so_is_put_in_front_by_gemma_4(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tiny_lm.tokenizer(bos=False))
    for said, first in ((True, [0]), (False, [])):
        path = write_gguf(tmp_path / "t.gguf", llama(), model="gemma4", pre="gemma4", add_bos_token=said)
        honour_fields(tokenizer, str(path))
        inner = tokenizer("light", add_special_tokens=False)["input_ids"]
        assert tokenizer("light")["input_ids"] == [*first, *inner]


def test_the_refusal_names_the_option_that_the_file_was_given_to_and_its_way_out_helps(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_gguf(tmp_path / "t.gguf", llama(), backend=merged(), pre="kimi-k2")
    capsys.readouterr()
    assert fails(capsys, [*arguments(files), "--tokenizer", str(path)]).startswith(
        f"saekernels eval: error: --tokenizer: {path} says 'tokenizer.ggml.pre' is 'kimi-k2': "
    )
    way_out = load_tokenizer(ModelNames(str(path), tokenizer=str(files["model"])))
    assert way_out("light")["input_ids"] == load_tokenizer(ModelNames(str(files["model"])))("light")["input_ids"]

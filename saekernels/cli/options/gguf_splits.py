"""How byte-level tokenizers split text before they merge, by the names that GGUF files have for it.

The names are those of `tokenizer.ggml.pre`. The rules are those of the published tokenizers that the names stand for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Splits:
    """regexes: each splits what those before it left, one piece a match and one for what lies between two.

    of_bytes: the same, once every byte is a letter of its own. nfc: composed before it is split. whole: a piece that is
    a token is that token, whatever its merges are. bos: whether one is put in front where the file does not say.
    """

    regexes: tuple[str, ...]
    of_bytes: tuple[str, ...] = ()
    nfc: bool = False
    whole: bool = False
    bos: bool = False

    def install(self, backend: Any) -> None:
        """Make a `tokenizers.Tokenizer` of byte-level BPE split so."""
        from tokenizers import Regex, normalizers, pre_tokenizers

        first, last = (
            [pre_tokenizers.Split(Regex(one), behavior="isolated") for one in some]
            for some in (self.regexes, self.of_bytes)
        )
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*first, spell, *last])
        backend.normalizer = normalizers.NFC() if self.nfc else None
        backend.model.ignore_merges = self.whole


_DIGIT, _DIGITS, _THREE = r"\p{N}", r"\p{N}+", "[0-9][0-9][0-9]"
_SPACE = r"|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+" + _SPACE
_APOSTROPHE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# Of cl100k and its heirs: a word takes one sign in front of it, blanks end with the line.
_WORDS = _APOSTROPHE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + _SPACE
_MARKED = _APOSTROPHE + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+" + _SPACE
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# Words that are cut where small letters turn into capitals; %s: what may follow a word, and runs of digits.
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
    r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+" + _SPACE
)
_BLOOM = r" ?[^\s(|.,!?…。，、।۔،)]+"
_DEEPSEEK_3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+" + _SPACE
)

_GPT2_SPLITS = Splits((_GPT2,))
_DIGITS_APART = Splits((_DIGIT, _GPT2))
_LLAMA_3 = Splits((_WORDS % r"\p{N}{1,3}",), whole=True, bos=True)
_QWEN_2 = Splits((_WORDS % _DIGIT,), nfc=True)
_NEOX = replace(_GPT2_SPLITS, nfc=True)
_GPT_4O = Splits((_CASED % (_APOSTROPHE + "?", _APOSTROPHE + "?", r"\p{N}{1,3}"),))

_KINDS = {
    # What a converter writes that knows no better; no published tokenizer, but the format's own rule.
    "default": Splits((r"[\p{P}$+<=>^~|]+", _GPT2, _DIGITS, _THREE)),
    "gpt-2 phi-2 jais exaone4 trillion granite-docling": _GPT2_SPLITS,
    "olmo mpt": _NEOX,
    "smollm starcoder refact codeshell exaone minerva-7b": _DIGITS_APART,
    "command-r": replace(_DIGITS_APART, nfc=True),
    "falcon": Splits((r"[\p{P}$+<=>^~|`]+", _GPT2), of_bytes=(_DIGITS, _THREE)),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 lfm2": _LLAMA_3,
    "dbrx smaug-bpe": replace(_LLAMA_3, whole=False, bos=False),
    "qwen2 megrez": _QWEN_2,
    "deepseek-r1-qwen stablelm2": replace(_QWEN_2, nfc=False),
    "qwen35": Splits((_MARKED,), nfc=True),
    "tekken": Splits((_CASED % ("", "", _DIGIT),), whole=True, bos=True),
    "gpt-4o llama4 minimax-m2": _GPT_4O,
    "deepseek-coder": Splits((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT)),
    "deepseek-v3": Splits((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK_3)),
    "bloom gpt3-finnish poro-chat": Splits((_BLOOM,)),
    "viking": Splits((_BLOOM, _DIGIT)),
}
SPLITS = {name: splits for names, splits in _KINDS.items() for name in names.split()}

"""A tiny language model with its own tokenizer, SAEs and documents, made on the spot, for the evaluator's tests."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saekernels.eval import Document
from saekernels.eval.text.slice_choice import choose_slices
from saekernels.eval.text.slice_counts import Minimum, Sample
from saekernels.eval.text.slices import LEVELS, Slices, alternate, levels_of
from saekernels.eval.text.windows import Tokens, Window, chosen
from saekernels.sae.activations import JumpReLU, TopK
from saekernels.sae.module import SAE

PARAGRAPH = (
    "The old lighthouse keeper wrote down the weather every evening, and the café owner read it every morning. "
    "Some days said only: wind from the north, 7 °C, two ships. Other days filled three pages with gulls, naïve "
    "tourists, and the price of coal. Nobody asked why he did it — he was simply the one who kept the light. "
)
CODE = "def keep(light):\n    while light.on:\n        log(light.read(), unit='lx')\n    return sum(log) / len(log)\n"
SITES = ("model.layers.0", "model.layers.1")
WIDTH = 32


@functools.cache
def tokenizer(bos: bool = True) -> Any:
    """A byte-level BPE of 320 tokens; with `bos` it puts <bos> in front, as Llama's does."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<bos>", "<eos>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([PARAGRAPH, CODE], trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def model(seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """A random Llama of two layers; its weights are large enough that every layer matters."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 320,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 24,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **config})).eval()


@functools.cache
def trained_model() -> LlamaForCausalLM:
    """The model after a short training on the texts, so that ablations hurt. Do not change it."""
    made = model(initializer_range=0.1).train()
    ids = [tokenizer()(text)["input_ids"] for text in (PARAGRAPH, CODE)]
    windows = torch.tensor([one[i : i + 24] for one in ids for i in range(len(one) - 24)])
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    torch.manual_seed(0)
    for _ in range(60):
        batch = windows[torch.randint(len(windows), (16,))]
        optimizer.zero_grad()
        made(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return made.eval().requires_grad_(False)


@torch.no_grad()
def sae(seed: int = 0, jump: bool = False) -> SAE:
    """A random SAE of 64 latents, top-8 or JumpReLU, that keeps part of its input."""
    torch.manual_seed(100 + seed)
    made = SAE(WIDTH, 64, JumpReLU() if jump else TopK(8))
    made.W_enc.copy_(torch.randn(64, WIDTH) / WIDTH**0.5)
    made.W_dec.copy_(made.W_enc + 0.05 * torch.randn(64, WIDTH))
    made.b_enc.copy_(0.1 * torch.randn(64))
    made.b_dec.copy_(0.1 * torch.randn(WIDTH))
    if jump:
        made.threshold.copy_(0.3 * torch.rand(64))
    return made.eval()


def saes() -> dict[str, SAE]:
    return {SITES[0]: sae(0), SITES[1]: sae(1, jump=True)}


def documents() -> list[Document]:
    """Texts of several lengths in two domains; one too short to count, one with a special token inside."""
    words = PARAGRAPH.split(" ")
    prose = [" ".join(words[i : i + 3 + 5 * i]) for i in range(7)]
    return [
        *(Document(text, "prose", f"prose {i}") for i, text in enumerate(prose)),
        *(Document(CODE[i * 7 :] * (1 + i % 2), "code", f"code {i}") for i in range(4)),
        Document("light on<eos>log off, said the keeper", "code", "with a special token"),
        Document("e", "prose", "too short"),
    ]


def few_documents() -> list[Document]:
    """Two of each domain, where every pass is dear."""
    return documents()[5:9]


def save(directory: Path) -> dict[str, Path]:
    """The model, its tokenizer and its SAEs (SAELens format) as files; the paths by name, SAEs by site."""
    from safetensors.torch import save_file

    paths = {"model": directory / "model"}
    model().save_pretrained(paths["model"])
    tokenizer().save_pretrained(paths["model"])
    for number, site in enumerate(SITES):
        made = sae(number)
        paths[site] = directory / f"sae_{number}"
        paths[site].mkdir()
        tensors = {"W_enc": made.W_enc.T, "W_dec": made.W_dec, "b_enc": made.b_enc, "b_dec": made.b_dec}
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, paths[site] / "sae_weights.safetensors")
        (paths[site] / "cfg.json").write_text(
            '{"architecture": "topk", "d_in": 32, "d_sae": 64, "k": 8, "dtype": "float32", "device": "cpu", '
            '"apply_b_dec_to_input": true, "normalize_activations": "none", "reshape_activations": "none", '
            '"rescale_acts_by_decoder_norm": false, "metadata": {}}'
        )
    return paths


@functools.cache
def texts() -> tuple[Document, ...]:
    """Six texts of prose and four of code, like one another within a domain: for slices."""
    words = PARAGRAPH.split(" ")
    prose = [Document(" ".join(words[i : i + 30]), "prose", str(i)) for i in range(6)]
    code = [Document(CODE.replace("light", f"light{'s' * i}") * 2, "code", str(i)) for i in range(4)]
    return (*prose, *code)


def tokens() -> Tokens:
    return Tokens(tokenizer(), 24)


@functools.cache
def slices() -> Slices:
    return choose_slices(sample(texts()), tokens(), Minimum(0, 1), "code", r"while .*", None)[0]


def sample(documents: Sequence[Document]) -> list[tuple[Document, list[Window]]]:
    return list(chosen(iter(documents), tokens(), None, 0))


def counted(text: Sample, where: Slices, cut: Tokens | None = None) -> tuple[int, int, int, int]:
    """Positions to fit on, predictions measured inside and outside, documents measured in: one after another."""
    inner = LEVELS.index(where.levels[0])
    half = alternate([document.domain for document, _ in text])
    fitted = inside = outside = 0
    owners = set()
    for number, (document, windows) in enumerate(text):
        for window, level in zip(windows, levels_of(document, windows, where, cut or tokens()), strict=True):
            for i in range(len(window.ids)):
                within, predicts = level[i] <= inner, i + 1 < len(window.ids) and bool(window.counted[i])
                fitted += int(half[number] and within and not window.special[i])
                inside += int(not half[number] and within and predicts)
                outside += int(not half[number] and not within and predicts)
                if not half[number] and within and predicts:
                    owners.add(number)
    return fitted, inside, outside, len(owners)

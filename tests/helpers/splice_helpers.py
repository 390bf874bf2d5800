"""Tiny models, SAEs and plain-torch oracles for the splice tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saekernels.eval import Document
from saekernels.sae.activations import ReLU, TopK
from saekernels.sae.module import SAE

WIDTH, VOCAB = 16, 50


def tiny_model(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A causal LM with 3 layers, width 16 and loud random weights, so that a splice moves the logits."""
    import transformers as hf

    common = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    configs: dict[str, Callable[[], hf.PretrainedConfig]] = {
        "llama": lambda: hf.LlamaConfig(**common, **sizes, num_key_value_heads=2),
        "gpt2": lambda: hf.GPT2Config(**common, n_embd=WIDTH, n_layer=3, n_head=2, n_positions=64),
        "neox": lambda: hf.GPTNeoXConfig(**common, **sizes),
        "gemma2": lambda: hf.Gemma2Config(**common, **sizes, num_key_value_heads=2, head_dim=8, sliding_window=32),
    }
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(configs[kind](), attn_implementation="eager").to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    return model


def tokens(batch: int = 2, length: int = 7, seed: int = 1) -> Tensor:
    """Token ids [batch, length] at or above 3, after a first column of 0 (bos)."""
    ids = torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 0
    return ids


def make_sae(
    d_in: int = WIDTH, d_out: int | None = None, *, seed: int = 0, k: int | None = None, skip: bool = False
) -> SAE:
    """A ReLU (or top-k) SAE with random weights and biases."""
    pre_bias = "b_dec" if d_out is None else "none"
    sae = SAE(d_in, 40, ReLU() if k is None else TopK(k), d_out=d_out, pre_bias=pre_bias, skip=skip)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return sae


def dense(sae: SAE, x: Tensor) -> Tensor:
    """What a ReLU or top-k SAE gives for x [..., d_in], with every latent written out."""
    pre = (x if sae.pre_bias is None else x - sae.pre_bias) @ sae.W_enc.T + sae.b_enc
    if isinstance(sae.activation, TopK):
        kept = pre.topk(sae.activation.k, dim=-1)
        pre = torch.zeros_like(pre).scatter(-1, kept.indices, kept.values)
    out = pre.relu() @ sae.W_dec + sae.b_dec
    return out if sae.W_skip is None else out + x @ sae.W_skip.T


def llama_from_layers(model: nn.Module, ids: Tensor, after: dict[int, Callable[[Tensor], Tensor]]) -> Tensor:
    """Llama's logits, layer by layer by hand, each hidden state after layer i sent through ``after[i]``."""
    base = model.model
    hidden = base.embed_tokens(ids)
    positions = torch.arange(ids.shape[1])[None]
    rotary = base.rotary_emb(hidden, position_ids=positions)
    causal = torch.full((ids.shape[1], ids.shape[1]), torch.finfo(hidden.dtype).min, dtype=hidden.dtype).triu(1)
    for number, layer in enumerate(base.layers):
        hidden = layer(hidden, attention_mask=causal[None, None], position_ids=positions, position_embeddings=rotary)
        hidden = after.get(number, lambda h: h)(hidden)
    return model.lm_head(base.norm(hidden))


@contextmanager
def patched_forward(module: nn.Module, wrap: Callable[..., object]) -> Iterator[None]:
    """``module.forward(...)`` replaced by ``wrap(old_forward, ...)``: the oracle that uses no hook."""
    old = module.forward
    module.forward = lambda *args, **kwargs: wrap(old, *args, **kwargs)
    try:
        yield
    finally:
        del module.forward


def count_hooks(model: nn.Module) -> int:
    """Forward and pre-forward hooks on all modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def token_documents(vocabulary: int, count: int = 4) -> list[Document]:
    """Documents of random ids from 3 on."""
    rng = np.random.default_rng(0)
    return [Document("", ids=tuple(int(i) for i in rng.integers(3, vocabulary, n))) for n in rng.integers(5, 40, count)]


@torch.no_grad()
def own_losses(
    run: Callable[[Tensor], Tensor], module: nn.Module, sae: nn.Module, documents: list[Document], context: int
) -> tuple[float, float]:
    """Mean next-token cross-entropy, clean and with the SAE in the place of the module's output; every window alone.

    run: ids [1, S] -> logits [1, S, V].
    """

    def put(_: Any, args: Any, output: Any) -> Any:
        return (sae(output[0]), *output[1:]) if isinstance(output, tuple) else sae(output)

    def loss(ids: Tensor) -> Tensor:
        return F.cross_entropy(run(ids)[0, :-1].double(), ids[0, 1:], reduction="sum")

    clean, spliced, count = 0.0, 0.0, 0
    for document in documents:
        for start in range(0, len(document.ids or ()), context):
            ids = torch.tensor([document.ids[start : start + context]])  # type: ignore[index]
            if ids.shape[1] < 2:
                continue
            count += ids.shape[1] - 1
            clean += float(loss(ids))
            handle = module.register_forward_hook(put)
            spliced += float(loss(ids))
            handle.remove()
    return clean / count, spliced / count

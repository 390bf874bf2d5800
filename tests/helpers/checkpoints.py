"""Checkpoints of models in the shapes that people have them in: GGUF files, PEFT adapters, a cache of the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

import tiny_lm


def llama(**config: Any) -> Any:
    """The tiny Llama, of fewer key and value heads and another rotary base than are the defaults of any loader."""
    rope = {"rope_type": "default", "rope_theta": 50_000.0}
    return tiny_lm.model(**{"num_key_value_heads": 2, "intermediate_size": 64, "rope_parameters": rope, **config})


def write_gguf(
    path: Path,
    model: Any,
    /,
    kind: str = "F32",
    further: dict[str, Any] | None = None,
    said: str | None = None,
    backend: Tokenizer | None = None,
    **fields: Any,
) -> Path:
    """The Llama and a tokenizer as llama.cpp writes them; matrices in the quantisation `kind`.

    further: tensors by name, beside those of the model. said: the quantisation that the header names in its place.
    backend: of BPE, in place of the tests' tokenizer. fields: other values of `tokenizer.ggml.NAME`; None for no such.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{said or kind}"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_tokenizer(writer, backend or tiny_lm.tokenizer().backend_tokenizer, fields)
    for name, value in model.state_dict().items():
        data = _as_llama_cpp(name, value, config).numpy()
        if data.ndim == 2 and kind != "F32":
            own = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(_gguf_name(name), gguf.quants.quantize(data, own), raw_dtype=own)
        else:
            writer.add_tensor(_gguf_name(name), data)
    for name, value in (further or {}).items():
        writer.add_tensor(name, np.asarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dequantised(model: Any, kind: str) -> Any:
    """The same Llama with the values that its matrices have in the quantisation `kind`."""
    import gguf

    made, own = type(model)(model.config).eval(), gguf.GGMLQuantizationType[kind]
    weights = {
        name: torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(value.numpy(), own), own))
        if value.ndim == 2
        else value
        for name, value in model.state_dict().items()
    }
    made.load_state_dict(weights)
    return made


def _add_tokenizer(writer: Any, backend: Tokenizer, changed: dict[str, Any]) -> None:
    ids, merges = backend.get_vocab(), json.loads(backend.to_str())["model"]["merges"]
    special = {str(token) for token in backend.get_added_tokens_decoder().values()}
    tokens = sorted(ids, key=ids.__getitem__)
    fields = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3 if token in special else 1 for token in tokens],
        "merges": [one if isinstance(one, str) else " ".join(one) for one in merges],
        "bos_token_id": ids["<bos>"],
        "eos_token_id": ids["<eos>"],
        "padding_token_id": ids["<pad>"],
        "add_bos_token": True,
        **changed,
    }
    adds = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
    for name, value in fields.items():
        if value is not None:
            adds[type(value)](f"tokenizer.ggml.{name}", value)


def _as_llama_cpp(name: str, value: Tensor, config: Any) -> Tensor:
    """Rotary halves of each head of queries and keys side by side, where transformers has one after the other."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[part] for part in heads if f".{part}." in name), None)
    if count is None:
        return value.contiguous()
    width = value.shape[0] // count // 2
    return value.reshape(count, 2, width, -1).transpose(1, 2).reshape(value.shape).contiguous()


def _gguf_name(name: str) -> str:
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers.": "blk.",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def write_adapter(folder: Path, model: Any, seed: int = 0, **options: Any) -> Any:
    """A LoRA of random weights over `model`, which is changed, saved in the folder; peft's model around both."""
    import peft

    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"], **options})
    wrapped = peft.get_peft_model(model, config).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    wrapped.save_pretrained(folder)
    return wrapped


def write_hub_cache(cache: Path, repository: str, revisions: dict[str, Path]) -> None:
    """A cache as huggingface_hub keeps it: a repository whose branches or tags hold those folders' files."""
    root = cache / f"models--{repository.replace('/', '--')}"
    for number, (revision, folder) in enumerate(revisions.items(), 1):
        commit = f"{number:x}" * 40
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / revision).write_text(commit)
        shutil.copytree(folder, root / "snapshots" / commit)

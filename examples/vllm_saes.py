"""SAEs in vLLM's workers, before it compiles and captures CUDA graphs: a plugin, and what it saw by collective_rpc.

    [project.entry-points."vllm.general_plugins"]            # in the pyproject.toml of a package with this file
    saekernels = "vllm_saes:register"

    SAEKERNELS_VLLM='{"model.layers.6": "saes/layer_6"}' VLLM_DISABLE_COMPILE_CACHE=1 vllm serve MODEL \\
        --worker-extension-cls vllm_saes.SeenCodes

For Llama's class; another model needs its own two lines in `register`. vLLM's decoder layers return (hidden_states,
residual), whose sum is the residual stream [tokens, d]. The sum is what the SAE reads and replaces, in an op that
neither torch.compile nor a CUDA graph looks into. TopK SAEs alone: others ask the device how many codes there are.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor, nn

import saekernels as sk

SITES: dict[str, Any] = {}
SEEN: dict[str, tuple[Tensor, Tensor]] = {}  # of the last pass at each site: values and indices, [most tokens, k]


@torch.library.custom_op("saekernels_vllm::put_in", mutates_args=())
def put_in(stream: Tensor, site: str) -> Tensor:
    """The reconstruction of stream [T, d] at a site; its codes go to SEEN, at the addresses that a graph knows."""
    sae = SITES[site]
    out, codes = sae.forward_with_codes(stream.to(sae.W_dec.dtype))
    for kept, new in zip(SEEN[site], (codes.values, codes.indices), strict=True):
        kept[: len(new)].copy_(new)
    return out.to(stream.dtype)


@put_in.register_fake
def _(stream: Tensor, site: str) -> Tensor:
    return torch.empty_like(stream)


def attach(model: nn.Module, sites: dict[str, str], most_tokens: int, device: torch.device | str) -> None:
    """Hook the SAEs into the layers that are in this process; they stay outside the model's own modules."""
    for site, path in sites.items():
        layer = model.get_submodule(site)
        if type(layer).__name__ == "PPMissingLayer":  # another process of a pipeline has it
            continue
        SITES[site] = sae = sk.load(path, device=device)
        if not isinstance(sae.activation, sk.TopK | sk.AbsTopK):
            raise ValueError(f"{site}: needs a TopK SAE, got {sae.architecture}, which cannot be captured")
        shape = (most_tokens, sae.activation.k)
        SEEN[site] = (torch.zeros(shape, device=device), torch.zeros(shape, device=device, dtype=torch.int32))

        def hook(module: nn.Module, args: Any, out: tuple[Tensor, Tensor], site: str = site) -> tuple[Tensor, Tensor]:
            return torch.ops.saekernels_vllm.put_in(out[0] + out[1], site), torch.zeros_like(out[1])

        layer.register_forward_hook(hook)


class SeenCodes:
    """vLLM's worker extension: llm.collective_rpc("seen_codes", args=(tokens,)) asks every worker."""

    def seen_codes(self, tokens: int) -> dict[str, tuple[list[list[float]], list[list[int]]]]:
        """Site -> (values, indices) of the first so many tokens of the last pass."""
        return {site: (values[:tokens].tolist(), indices[:tokens].tolist()) for site, (values, indices) in SEEN.items()}


def register() -> None:
    """The plugin: Llama's class with the SAEs in. vLLM calls it in each of its processes, perhaps more than once."""
    from vllm import ModelRegistry  # type: ignore[import-not-found]

    # By name, as vLLM asks for: the class is imported where it is used, not in the process that forks the workers.
    ModelRegistry.register_model("LlamaForCausalLM", f"{__name__}:LlamaWithSAEs")


def __getattr__(name: str) -> Any:
    if name != "LlamaWithSAEs":
        raise AttributeError(name)
    from vllm.model_executor.models.llama import LlamaForCausalLM  # type: ignore[import-not-found]

    class LlamaWithSAEs(LlamaForCausalLM):  # type: ignore[misc]
        def __init__(self, *, vllm_config: Any, prefix: str = "", **options: Any) -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix, **options)
            most = vllm_config.scheduler_config.max_num_batched_tokens
            attach(self, json.loads(os.environ["SAEKERNELS_VLLM"]), most, vllm_config.device_config.device)

    return LlamaWithSAEs

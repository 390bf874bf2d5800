"""State dicts of plain autoencoders: W_enc [d, F], W_dec [F, d], b_enc, b_dec, as lessons and papers' code save them.

The tensors do not say what is selected, nor whether b_dec is taken from the input. A config says it, inside the file,
beside it or given to `load`; so do names that one program alone writes: ARENA's ToySAE, Neel Nanda's
1L-Sparse-Autoencoder, Bart Bussmann's BatchTopK. Otherwise the file is refused: a default would be a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saekernels.formats.checkpoint import Checkpoint, build, of_thresholds
from saekernels.formats.config import Config, boolean, integer, read_json, told
from saekernels.formats.files import FormatError, Tensors
from saekernels.formats.looking import is_looking
from saekernels.formats.pickles import tensors_of
from saekernels.formats.readers import state_dict_maths as maths
from saekernels.sae.activations import ReLU, Scale
from saekernels.sae.metadata import Metadata

NAME = "state dict"
FILES = "a .pt, .pth or .safetensors file with W_enc, W_dec (+ cfg.json)"
CONFIGS = ("cfg.json", "config.json")
# torch.nn.Linear keeps [out, in]: rows of the encoder are latents, columns of the decoder.
_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "decoder.bias": "b_dec"}
_LOGS = ("log_theta", "log_threshold", "jumprelu.log_threshold")
_TOY_MODEL = ("model.W", "model.b_final")
_STATISTICS = ("num_batches_not_active", "n_forward_passes_since_fired")
# How the weights came about, and where they were computed.
_WITHOUT_EFFECT = """
    seed batch_size buffer_mult lr num_tokens l1_coeff beta1 beta2 dict_mult seq_len enc_dtype remove_rare_dir
    model_batch_size buffer_size buffer_batches max_grad_norm dtype device num_batches_in_buffer l1_warmup_frac
    wandb_project perf_log_freq checkpoint_freq top_k_aux aux_penalty n_batches_to_dead bandwidth softmax_aux_penalty
    pool_size quantile quantile_lr name sparsity_coeff ste_epsilon group_sizes weight_normalize_eps n_inst
    reinit resample_scheme b_dec_init
""".split()  # noqa: SIM905


def claims(found: Mapping[str, Any]) -> bool:
    """Whether a file's tensors are of this format."""
    return "W_enc" in found or "W_gate" in found or {"encoder.weight", "decoder.weight"} <= set(found)


def has_config(path: Path) -> bool:
    """Whether a config of this format, and of no other, lies beside a file."""
    return any((path.parent / name).is_file() for name in (f"{path.stem}_cfg.json", "cfg.json"))


def latents_are_rows(found: Mapping[str, Any]) -> bool | None:
    """Which way W_enc lies, by the biases beside it: None where it is square, or where no bias tells."""
    W_enc = found.get("W_enc", found.get("W_gate"))
    if not isinstance(W_enc, Tensor) or W_enc.dim() not in (2, 3):
        return None
    rows, columns = W_enc.shape[-2:]
    ours = next((found[n] for n in ("b_enc", "b_gate") if isinstance(found.get(n), Tensor)), None)
    latents = ours.shape[-1] if ours is not None and ours.dim() else None
    if rows == columns or (latents is not None and latents not in (rows, columns)):
        return None
    if latents is None and isinstance(b_dec := found.get("b_dec"), Tensor) and b_dec.dim():
        return None if b_dec.shape[-1] not in (rows, columns) else b_dec.shape[-1] == columns
    return None if latents is None else latents == rows


def read(
    path: Path,
    found: Mapping[str, Any],
    input_scale: float | None = None,
    k: int | None = None,
    *,
    inside: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """The SAE of a file's tensors. Square matrices are taken as [d, F] and [F, d]: the caller has seen to it.

    inside: the config that the file holds. given: what the caller of `load` says. Both, and a config beside the file,
    have to agree.
    """
    config = _config(path, inside or {}, given or {})
    linear = "W_enc" not in found and "encoder.weight" in found
    renamed = {_LINEAR.get(name, name) if linear else name: value for name, value in found.items()}
    own = "_W_dec" in found or "W_gate" in found or "weight_normalize_eps" in config
    toy = own or all(name in found for name in _TOY_MODEL)
    tensors = _one_instance(path, renamed, linear)
    tensors.drop(*_STATISTICS, *(_TOY_MODEL if toy else ()))
    rows = linear or latents_are_rows(renamed) is True
    state = _matrices(tensors, config, "W_gate" if "W_gate" in renamed else "W_enc", rows, linear, toy)
    bias = _vectors(tensors, state)
    tensors.done("k", "threshold")
    said = maths.of(config, tensors, state, toy, k, bias)
    tensors.done()
    if toy:
        _normalise(path, config, state, isinstance(said.activation, ReLU), "W_dec" in renamed)
    for names, size in ((("d_in", "act_size"), state["W_enc"].shape[1]), (("d_sae", "dict_size"), len(state["W_enc"]))):
        for name in names:
            if name in config and integer(config, name, config.path) != size:
                raise FormatError(f"{config.path}: {name!r} is {config[name]}, but {path.name} has {size}")
    if input_scale is not None and said.normalization is not None:
        raise FormatError(f"input_scale: got {input_scale}, but {config.path} normalises every input by itself")
    normalization = said.normalization if input_scale is None else Scale(input_scale)
    metadata = _metadata(config)
    return build(path, state, said.activation, metadata, pre_bias=said.pre_bias, normalization=normalization)


def _normalise(path: Path, config: Config, state: dict[str, Tensor], plain: bool, named: bool) -> None:
    """ToySAE's decoder has rows of norm 1 at every use; its subclasses' does not in all versions.

    plain: ToySAE itself. named: the decoder is `W_dec`, which subclasses use as it is.
    """
    eps = config.get("weight_normalize_eps", 1e-8)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise FormatError(f"{config.path}: 'weight_normalize_eps' is {eps!r:.40}, need a number from 0 to 1")
    if is_looking() if plain else named:
        return
    norms = state["W_dec"].norm(dim=1, keepdim=True)
    if plain:
        state["W_dec"] = state["W_dec"] / (norms + eps)
    elif bool((norms - 1).abs().max() > 1e-3):
        raise FormatError(
            f"{path}: its decoder's rows are not of norm 1, and versions of its class differ in making them so; "
            "save the rows that are used as W_dec"
        )


def _config(path: Path, inside: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
    """What the file, the config beside it and the caller say; FormatError where two of them differ."""
    names = (f"{path.stem}_cfg.json", f"{path.stem}.json", *CONFIGS)
    there = [one for name in names if (one := path.parent / name).is_file()]
    fields: dict[str, Any] = {}
    place = there[0] if there else path
    for source in (*map(read_json, there), inside, given):
        for name, value in source.items():
            if name in fields and fields[name] != value:
                raise FormatError(f"{place}: {name!r} is {fields[name]!r:.40}, but elsewhere {value!r:.40}")
            fields[name] = value
    return Config(place, fields)


def _one_instance(path: Path, found: Mapping[str, Any], linear: bool) -> Tensors:
    """The tensors without a dimension of instances, which ARENA's ToySAE has, but no torch.nn.Linear."""
    W_enc, W_dec = found.get("W_enc", found.get("W_gate")), found.get("W_dec")
    if not isinstance(W_enc, Tensor) or W_enc.dim() != 3:
        return tensors_of(path, found)
    if linear or (isinstance(W_dec, Tensor) and (W_dec.dim() != 3 or len(W_dec) != len(W_enc))):
        both = {"encoder": W_enc, "decoder": W_dec}
        shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in both.items() if isinstance(one, Tensor))
        raise FormatError(
            f"{path}: a crosscoder, which reads and writes several activations, no single SAE: {shapes}; "
            "saekernels.load_crosscoder may read it"
        )
    if len(W_enc) != 1:
        raise FormatError(
            f"{path}: {len(W_enc)} SAEs in one file (W_enc is {list(W_enc.shape)}), need one; keep instance i with "
            "{name: value[i : i + 1] for name, value in state_dict.items()}"
        )
    own = {n: value for n, value in found.items() if isinstance(value, Tensor) and n not in _TOY_MODEL}
    return tensors_of(path, {name: value[0] if value.dim() else value for name, value in own.items()})


def _matrices(tensors: Tensors, config: Config, encoder: str, rows: bool, linear: bool, toy: bool) -> dict[str, Tensor]:
    """Both matrices with latents as rows. rows: the encoder has them so. linear: the decoder is of torch.nn.Linear."""
    first, second = tensors.shape(encoder)
    W_enc = tensors.take(encoder, first, second)
    W_enc = W_enc if rows else W_enc.T
    decoder = "_W_dec" if "_W_dec" in tensors else "W_dec"
    if boolean(config, "tied_weights", config.path, toy and decoder not in tensors):
        tensors.drop(decoder)
        return {"W_enc": W_enc, "W_dec": W_enc}
    shape = tensors.shape(decoder)
    if rows and not linear and shape[0] == shape[1]:
        raise FormatError(f"{tensors.path}: {decoder!r} has shape {list(shape)}, which does not tell the latents' side")
    W_dec = tensors.take(decoder, *shape)
    return {"W_enc": W_enc, "W_dec": W_dec.T if linear or shape[0] != len(W_enc) else W_dec}


def _vectors(tensors: Tensors, state: dict[str, Tensor]) -> bool:
    """Biases and thresholds, into the state; a bias that is not there is 0. Whether there is one of the decoder."""
    n_latents, d_in = state["W_enc"].shape
    d_out = state["W_dec"].shape[1]
    bias = "b_dec_out" if "b_dec_out" in tensors else "b_dec"
    there = bias in tensors
    state["b_dec"] = tensors.take(bias, d_out) if bias in tensors else state["W_dec"].new_zeros(d_out)
    if "b_dec" in tensors:  # of a transcoder that takes one bias from its input and gives another
        state["b_pre"] = tensors.take("b_dec", d_in)
    for name in ("b_gate", "b_mag", "r_mag", "threshold"):
        if name in tensors and tensors.size(name) != 1:
            state[name] = tensors.take(name, n_latents)
    for name in _LOGS:
        if name in tensors:
            state["threshold"] = tensors.take(name, n_latents).to(of_thresholds(state)).exp()
    if "b_enc" in tensors:
        state["b_enc"] = tensors.take("b_enc", n_latents)
    elif "b_gate" not in state:
        state["b_enc"] = state["W_enc"].new_zeros(n_latents)
    return there


def _metadata(config: Config) -> Metadata:
    """What a config says of the model."""

    def known(*names: str) -> Any:
        return next((value for name in names if (value := told(config, name, str)) is not None), None)

    hook = known("hook_name", "hook_point", "act_name")
    other = config.kept("site", "layer", "hook_layer", "d_mlp")
    named = {"model": known("model_name"), "dataset": known("dataset_path"), "reads": hook}
    writes = known("hook_name_out") or hook
    return Metadata(NAME, writes=writes, ignored=config.unknown(_WITHOUT_EFFECT), other=other, **named)

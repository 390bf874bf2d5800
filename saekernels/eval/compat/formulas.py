"""SAELens', SAEBench's and dictionary_learning's metrics on given batches of tokens.

Their rules are kept, right or wrong, and named where they are wrong (docs/compat.md): what is masked, what is ablated,
what is averaged over what. Versions: SAELens 6.54.12, SAEBench 0.6.0, dictionary_learning 0.1.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from saekernels.eval.constant import ConstantRun, find_constant
from saekernels.eval.errors import InputError
from saekernels.eval.head import Head, find_head
from saekernels.eval.plan import Run, site_of
from saekernels.eval.reuse import CLEAN, LayerReuse, check_reuse, find_reuse
from saekernels.sae import SAE
from saekernels.splice import splice

from .activity import Activity
from .clean import CleanStream, Figures

Peer = Literal["saelens", "saebench", "dictionary_learning"]
PEERS: tuple[Peer, ...] = ("saelens", "saebench", "dictionary_learning")


@dataclass
class PeerMetrics:
    """One SAE's metrics under a peer's names; featurewise: lists of F numbers, where the peer has them."""

    peer: str
    entry: str
    metrics: dict[str, dict[str, float]]
    featurewise: dict[str, list[float]] = field(default_factory=dict)


class _Losses:
    """Sums of what is averaged over tokens, and of what is averaged over batches."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.batch: dict[str, list[float]] = {}

    def add(self, name: str, values: Tensor, kept: Tensor) -> None:
        chosen = values[kept].double()
        self.sums[name] = self.sums.get(name, 0.0) + float(chosen.sum())
        self.counts[name] = self.counts.get(name, 0) + len(chosen)
        self.batch.setdefault(name, []).append(float(chosen.mean()))

    def mean(self, name: str) -> float:
        return self.sums[name] / max(1, self.counts[name])


def peer_metrics(
    peer: Peer,
    model: Any,
    saes: Mapping[str, SAE],
    batches: Iterable[Tensor],
    *,
    ignore: Sequence[int] = (),
    keep_ignored: bool = True,
    pad: int | None = None,
) -> list[PeerMetrics]:
    """The metrics that `peer` would report for each SAE, on these batches of token ids [B, S].

    Args:
        peer: "saelens", "saebench" or "dictionary_learning".
        model: a `transformers` causal LM or a TransformerLens HookedTransformer.
        saes: site -> SAE (or "SITE#LABEL"); each reads and replaces the same activation, as the peers assume.
        batches: token ids, int64 [B, S], no padding in SAELens and SAEBench; gone through once.
        ignore: special token ids. SAELens and SAEBench leave their positions out of the metrics; dictionary_learning
            has no such rule.
        keep_ignored: whether `ignore` positions keep their activation in the splice: SAELens always; SAEBench only
            with `exclude_special_tokens_from_reconstruction`; dictionary_learning never.
        pad: the padding id that dictionary_learning leaves out as a *target*; None for none.

    Raises InputError for an unknown peer, a transcoder (whose splice the peers get wrong), or no batches.
    """
    if peer not in PEERS:
        raise InputError(f"peer: got {peer!r}, need one of {', '.join(PEERS)}")
    for entry, sae in saes.items():
        if "@" in entry or sae.d_in != sae.d_out:
            raise InputError(f"saes: {entry!r} is no SAE of one activation; {peer} evaluates transcoders wrongly")
    keep_ignored = keep_ignored and peer != "dictionary_learning"
    with torch.inference_mode():
        engine = _Engine(model, find_head(model), saes, list(ignore), keep_ignored)
        for batch in batches:
            engine.add(batch, pad if peer == "dictionary_learning" else None, peer == "dictionary_learning")
    if engine.losses is None:
        raise InputError("batches: no tokens were given")
    return [_FORMULAS[peer](entry, sae, engine.losses[entry], engine.activity[entry]) for entry, sae in saes.items()]


class _Engine:
    """Clean, spliced and zero-ablated runs of every SAE on a batch, and what the formulas need of them."""

    def __init__(self, model: Any, head: Head, saes: Mapping[str, SAE], ignore: list[int], keep: bool) -> None:
        self.model, self.head, self.saes, self.keep = model, head, dict(saes), keep
        self.device = next(model.parameters()).device
        self.ignore = torch.tensor(ignore, dtype=torch.int64)
        self.activity = {entry: Activity(sae.n_latents) for entry, sae in saes.items()}
        self.losses: dict[str, _Losses] | None = None
        self.runs = {entry: Run("sae", (entry,)) for entry in saes}
        self.reuse: LayerReuse | None = None
        self.constant: dict[tuple[str, int], ConstantRun | None] = {}

    def add(self, ids: Tensor, pad: int | None, every_position: bool) -> None:
        """One batch, ids [B, S]."""
        ids = ids.to(self.device)
        if self.reuse is None:
            self._find_reuse(ids[:1, :16])
        assert self.reuse is not None
        self.losses = self.losses or {entry: _Losses() for entry in self.saes}
        kept = ~torch.isin(ids, self.ignore.to(ids.device)) if not every_position else torch.ones_like(ids).bool()
        targets = torch.cat([ids[:, 1:], ids[:, :1]], dim=1).reshape(-1)
        predictions = kept.clone() if not every_position else ids.roll(-1, 1) != (-1 if pad is None else pad)
        predictions[:, -1] = False
        everything = torch.arange(ids.numel())
        with self.reuse.recording(CLEAN):
            clean = CleanStream(self.head, self.head.hidden(ids, everything), targets, 2 * len(self.saes))
        kept_flat, counted = kept.reshape(-1), predictions.reshape(-1)
        spliced = clean.against([self._spliced(entry, ids, kept) for entry in self.saes])
        for entry, (ce, kl) in zip(self.saes, spliced, strict=True):
            zero_ce, zero_kl = self._zero(entry, ids, clean)
            losses = self.losses[entry]
            for name, values, mask in (
                ("clean", clean.ce, counted), ("sae", ce, counted), ("zero", zero_ce, counted),
                ("kl", kl, kept_flat), ("zero_kl", zero_kl, kept_flat),
            ):  # fmt: skip
                losses.add(name, values, mask)
        self.reuse.forget()

    def _find_reuse(self, ids: Tensor) -> None:
        def spliced(run: Run, entries: tuple[str, ...]) -> Tensor:
            with splice(self.model, {site_of(entry): self.saes[entry] for entry in entries}):
                return self.head.body(ids)

        runs = list(self.runs.values())
        self.reuse = check_reuse(find_reuse(self.model, runs), runs, lambda: self.head.body(ids), spliced)

    def _spliced(self, entry: str, ids: Tensor, kept: Tensor) -> Tensor:
        sae, site = self.saes[entry], site_of(entry)
        assert self.reuse is not None

        def replace(x: Tensor, y: Tensor) -> Tensor:
            # As the peers do: decode(encode(x)), which leaves a skip connection out.
            codes = sae.encode(x.to(sae.W_dec))
            x_hat = sae.decode(codes).to(x)
            shape = (*ids.shape, -1)
            self.activity[entry].add(x.reshape(shape), x_hat.reshape(shape), codes, kept)
            return x_hat

        untouched = ~kept if self.keep else None
        with (
            self.reuse.resuming(self.runs[entry]),
            splice(self.model, {site: replace}, replace="function", untouched=untouched),
        ):
            return self.head.hidden(ids, torch.arange(ids.numel()))

    def _zero(self, entry: str, ids: Tensor, clean: CleanStream) -> Figures:
        """Zeros everywhere, special positions included, as the peers ablate."""
        site, length = site_of(entry), ids.shape[1]
        assert self.reuse is not None

        def body(tokens: Tensor) -> Tensor:
            with splice(self.model, {site: None}, replace="zero"):
                return self.head.body(tokens.to(self.device))

        if (site, length) not in self.constant:
            words = torch.arange(self.head.weight.shape[0])
            self.constant[site, length] = find_constant(
                body, self.head, [], length, words[~torch.isin(words, self.ignore)]
            )
        constant = self.constant[site, length]
        if constant is not None:
            return clean.against_constant(constant, torch.arange(length).repeat(len(ids)))
        with self.reuse.resuming(self.runs[entry]), splice(self.model, {site: None}, replace="zero"):
            return clean.against([self.head.hidden(ids, torch.arange(ids.numel()))])[0]


def _saelens(entry: str, sae: SAE, losses: _Losses, seen: Activity) -> PeerMetrics:
    zero, spliced, clean = (losses.mean(name) for name in ("zero", "sae", "clean"))
    kl, zero_kl = losses.mean("kl"), losses.mean("zero_kl")
    mean = torch.as_tensor(seen.sum_x) / max(1, seen.tokens)
    variance = seen.mean("square") - float(mean.square().sum())
    metrics = {
        "model_behavior_preservation": {
            "kl_div_score": (zero_kl - kl) / zero_kl, "kl_div_with_ablation": zero_kl, "kl_div_with_sae": kl,
        },
        "model_performance_preservation": {
            "ce_loss_score": (zero - spliced) / (zero - clean), "ce_loss_with_ablation": zero,
            "ce_loss_with_sae": spliced, "ce_loss_without_sae": clean,
        },
        "reconstruction_quality": {
            "explained_variance": 1 - seen.mean("residual") / variance,
            "explained_variance_legacy": seen.mean("legacy"), "mse": seen.mean("residual"),
            "cossim": seen.mean("cosine"),
        },
        "shrinkage": {
            "l2_norm_in": seen.mean("norm_in"), "l2_norm_out": seen.mean("norm_out"), "l2_ratio": seen.mean("ratio"),
            "relative_reconstruction_bias": seen.batch_mean("bias"),
        },
        "sparsity": {"l0": seen.mean("l0"), "l1": seen.mean("l1")},
    }  # fmt: skip
    return PeerMetrics("saelens", entry, metrics, _featurewise(sae, seen.fires, seen.prompts, seen.tokens))


def _saebench(entry: str, sae: SAE, losses: _Losses, seen: Activity) -> PeerMetrics:
    found = _saelens(entry, sae, losses, seen)
    # E[x^2] where E[x] is meant, squared dimension by dimension and averaged by accident of torch.cat (SAEBench 0.6).
    squares = torch.cat([one[0] for one in seen.saebench_variance]).mean()
    total = sum(one[1] for one in seen.saebench_variance) / max(1, seen.batches) - float(squares) ** 2
    residual = sum(one[2] for one in seen.saebench_variance) / max(1, seen.batches)
    found.metrics["reconstruction_quality"]["explained_variance"] = 1 - residual / total
    # Divided by the batch's tokens once more than a mean is.
    found.metrics["reconstruction_quality"]["mse"] = seen.batch_means["residual_over_tokens"] / max(1, seen.tokens)
    found.metrics["sparsity"]["l1"] = seen.mean("signed_l1")
    featurewise = _featurewise(sae, seen.positive_fires, seen.positive_prompts, seen.tokens)
    return PeerMetrics("saebench", entry, found.metrics, featurewise)


def _dictionary_learning(entry: str, sae: SAE, losses: _Losses, seen: Activity) -> PeerMetrics:
    batch = {name: losses.batch[name] for name in ("clean", "sae", "zero")}
    recovered = [(s - z) / (c - z) for c, s, z in zip(batch["clean"], batch["sae"], batch["zero"], strict=True)]
    mean = {name: sum(values) / len(values) for name, values in batch.items()}
    metrics = {
        "loss_original": mean["clean"], "loss_reconstructed": mean["sae"], "loss_zero": mean["zero"],
        "frac_recovered": sum(recovered) / len(recovered),
        "l2_loss": seen.mean("error_norm"), "l1_loss": seen.mean("l1"), "l0": seen.mean("l0"),
        "frac_variance_explained": seen.batch_mean("explained"), "cossim": seen.mean("cosine"),
        "l2_ratio": seen.mean("plain_ratio"), "relative_reconstruction_bias": seen.batch_mean("bias"),
        "frac_alive": float((seen.signed_sum != 0).double().mean()),
    }  # fmt: skip
    return PeerMetrics("dictionary_learning", entry, {"evaluation": metrics})


def _featurewise(sae: SAE, fires: Tensor, prompts: Tensor, tokens: int) -> dict[str, list[float]]:
    """What SAELens and SAEBench list per latent; 0 / 0 is NaN, as there."""
    encoder, decoder = getattr(sae, "W_enc", None), sae.W_dec.float()
    made = {
        "feature_density": (fires / max(1, tokens)).tolist(),
        "consistent_activation_heuristic": (fires / prompts).tolist(),
    }
    if encoder is not None:
        rows = encoder.float()
        made["encoder_norm"] = rows.norm(dim=-1).tolist()
        made["encoder_decoder_cosine_sim"] = torch.nn.functional.cosine_similarity(rows, decoder, dim=-1).tolist()
    bias = getattr(sae, "b_enc", None)
    if bias is not None:
        made["encoder_bias"] = bias.float().tolist()
    return made


_FORMULAS = {"saelens": _saelens, "saebench": _saebench, "dictionary_learning": _dictionary_learning}

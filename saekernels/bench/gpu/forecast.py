"""What the model expects of a run: each contender's time, each case's length, the targets that would be met."""

from __future__ import annotations

import math

import torch

from saekernels.bench.gpu import model
from saekernels.bench.gpu.cards import Card
from saekernels.bench.gpu.cases import Case, Settings
from saekernels.bench.gpu.clock import CALLS
from saekernels.bench.gpu.contenders import ALL_PRODUCTS, FAST, PREPARED, PRODUCTS, SCREENED, of
from saekernels.bench.gpu.targets import MEMORY_CASES, MEMORY_SHARE, MODEL, TARGETS
from saekernels.bench.measure.contenders import CHUNKED, COMPILED, OURS
from saekernels.bench.measure.shapes import Shape
from saekernels.bench.ops.decode import BAG
from saekernels.bench.ops.encode import PRODUCT, WHOLE
from saekernels.bench.ops.gather_matmul import BATCHED, INDEXED, VECTORS
from saekernels.bench.ops.sae import SAELENS, SPARSIFY
from saekernels.bench.ops.train import TORCH

# Seconds to make a case's tensors, its float64 answer and the checks; to compile with torch; for the gate, whose
# kernels Triton compiles (half a second each, some 200, or 130 for two dtypes), and the ceilings.
SETUP_SECONDS, COMPILE_SECONDS = 3.0, 20.0
START_SECONDS = {"full": 120.0, "quick": 75.0}
# torch.topk of a row reads it so many times.
TOPK_READS = 4


def milliseconds(case: Case, contender: str, card: Card) -> float | None:
    """The predicted time of a contender; None for peers, of which nothing is assumed beyond the least they must do."""
    shape, dtype = case.shape, case.dtype
    if case.op == "encode":
        found = _encode_seconds(contender, shape, dtype, card)
    elif case.op == "decode":
        ours = model.seconds(model.decode(shape, dtype, card), card)
        gathered = shape.T * shape.k * shape.d * dtype.itemsize / (card.memory * 1e9)
        found = {OURS: ours, MODEL: ours, BAG: gathered}.get(contender)
    elif case.op == "gather_matmul":
        found = _gather_matmul_seconds(contender, shape, dtype, card)
    elif case.op in ("loss", "loss_train"):
        found = _loss_seconds(case, contender, card)
    else:
        found = _sae_seconds(case, contender, card)
    return None if found is None else 1e3 * found


def _encode_seconds(contender: str, shape: Shape, dtype: torch.dtype, card: Card) -> float | None:
    precisions = {OURS: "exact", PREPARED: "exact", FAST: "fast", SCREENED: "screened"}
    if contender in precisions:
        prepared = contender in (PREPARED, SCREENED)
        return model.seconds(model.encode(shape, dtype, card, precisions[contender], prepared=prepared), card)
    product = model.product(shape, dtype, card).seconds(card)
    if contender == PRODUCT:
        return product
    if contender in (CHUNKED, WHOLE, COMPILED):
        return product + (1 + TOPK_READS) * shape.T * shape.F * dtype.itemsize / (card.memory * 1e9)
    return None


def _gather_matmul_seconds(contender: str, shape: Shape, dtype: torch.dtype, card: Card) -> float | None:
    """The others write what they gather and read it again: an entry's vectors each and its row of W, or that alone."""
    if contender == OURS:
        return model.seconds(model.gather_matmul(shape, dtype, card), card)
    gathered = {INDEXED: VECTORS + 1, BATCHED: 1}.get(contender)
    if gathered is None:
        return None
    rows = 2 * gathered * shape.T * shape.k + VECTORS * shape.T
    return rows * shape.d * dtype.itemsize / (card.memory * 1e9)


def _loss_seconds(case: Case, contender: str, card: Card) -> float | None:
    """Autograd through all logits reads and writes them about as often again."""
    both = 2 * model.product(case.shape, case.dtype, card).seconds(card)
    ours = model.seconds(model.predict(case.op, case.shape, case.dtype, card), card)
    read = 8 * 4 * case.shape.T * case.shape.F / (card.memory * 1e9)
    if case.op == "loss_train":
        return {OURS: ours, ALL_PRODUCTS: 2 * both, CHUNKED: 2 * (both + read)}.get(contender)
    return {OURS: ours, PRODUCTS: both, CHUNKED: both + read, COMPILED: both + read}.get(contender)


def _sae_seconds(case: Case, contender: str, card: Card) -> float | None:
    ours = model.seconds(model.predict(case.op, case.shape, case.dtype, card), card)
    if contender == OURS:
        return ours
    encoded = _encode_seconds(CHUNKED, case.shape, case.dtype, card) or 0.0
    if contender in (CHUNKED, SPARSIFY, TORCH):
        return encoded + (ours if case.op == "sae_train" else 0.0)
    if contender == SAELENS:
        # Dense codes [T, F] through the decoder's product as well.
        return encoded + model.product(case.shape, case.dtype, card).seconds(card)
    return None


def run_seconds(settings: Settings, card: Card) -> float:
    """How long a run takes, gate included."""
    start = START_SECONDS["quick" if settings.quick else "full"]
    return start + sum(case_seconds(case, card, settings) for case in settings.cases())


def case_seconds(case: Case, card: Card, settings: Settings) -> float:
    """How long a case takes, set-up included."""
    total = SETUP_SECONDS
    timed = 0.0
    for contender in of(case, not settings.quick).contenders:
        each = (milliseconds(case, contender.name, card) or 0.0) / 1e3
        total += 4 * each + (COMPILE_SECONDS if contender.compiles else 0.0)
        timed += CALLS * each * settings.rounds
    return total + min(timed, settings.budget)


def lines(settings: Settings, card: Card) -> list[str]:
    """The plan and its predictions, as text."""
    text = [f"predictions for {card.name}; nothing here was measured", ""]
    for case in settings.cases():
        kernels = model.predict(case.op, case.shape, case.dtype, card)
        parts = ", ".join(
            f"{kernel.name} {1e3 * kernel.seconds(card):.3g} ({kernel.bound(card)})" for kernel in kernels
        )
        free = 1e3 * model.seconds(kernels, card._replace(l2=math.inf))
        text += [f"{case}: about {case_seconds(case, card, settings):.0f} s", f"    kernels, ms (bound by): {parts}"]
        text.append(f"    {'saekernels, were L2 no bound':36}{free:9.3f} ms")
        if case.op == "encode":
            text += [_centred_line(case, card, prepared=prepared) for prepared in (False, True)]
        for contender in of(case, not settings.quick).contenders:
            predicted = milliseconds(case, contender.name, card)
            text.append(f"    {contender.name:36}" + ("-" if predicted is None else f"{predicted:9.3f} ms"))
    text += ["", f"in all about {run_seconds(settings, card):.0f} s, gate and ceilings included", ""]
    text += ["targets that these predictions would meet:"]
    return text + target_lines(settings.cases(), card)


def _centred_line(case: Case, card: Card, *, prepared: bool) -> str:
    """The encoder with a pre_bias, which no contender has."""
    kernels = model.encode(case.shape, case.dtype, card, prepared=prepared, centred=True)
    name = f"saekernels, pre_bias{', prepared' if prepared else ''}"
    return f"    {name:36}{1e3 * model.seconds(kernels, card):9.3f} ms"


def target_lines(cases: tuple[Case, ...], card: Card) -> list[str]:
    """One line per target among the cases."""
    text = []
    for target in TARGETS:
        if target.case not in cases:
            continue
        ratio = target.ratio(lambda case, contender: milliseconds(case, contender, card))
        verdict = "unknown" if ratio is None else f"{ratio:.2f}, {'met' if target.met(ratio) else 'MISSED'}"
        text.append(f"  {target.case}: {target.text()}: {verdict}")
    for case in MEMORY_CASES:
        if case in cases:
            share = model.temporaries(case.shape, case.dtype) / (2 * case.shape.T * case.shape.F)
            verdict = "met" if share <= MEMORY_SHARE else "MISSED"
            text.append(f"  {case}: memory at most {MEMORY_SHARE:.0%} of T x F in bf16: {share:.1%}, {verdict}")
    return text

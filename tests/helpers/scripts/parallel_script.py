"""What every rank of test_parallel.py does: shards against the whole SAE, each difference told by rank 0 as JSON."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

import ranks
import saekernels
from saekernels.backends import registry
from saekernels.bench.scale.predict import code_bytes, sum_bytes
from saekernels.parallel import LatentParallelSAE, agree, collectives, load, shard
from saekernels.sae.activations import (
    AbsTopK,
    BatchTopK,
    ConstantNorm,
    Gated,
    GroupMax,
    JumpReLU,
    LayerNorm,
    ReLU,
    TopK,
)
from saekernels.sae.module import SAE

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"rescale_by_decoder_norm": True},
    {"normalization": LayerNorm()},
    {"normalization": ConstantNorm(), "pre_bias": "none"},
    {"skip": True, "pre_bias": "separate", "d_out": 9},
]


def exact(dtype: torch.dtype) -> bool:
    """Whether numbers must be such that sums have no rounding: the reference backend's BLAS has no one order."""
    return dtype == torch.float64 or registry.load("cpu").available() is not None


def saes(dtype: torch.dtype) -> Any:
    """SAEs of every kind, with equal latents in different shards, infinite weights in one."""
    single = dtype == torch.float32
    for latents, option in itertools.product((37, 64) if single else (37,), OPTIONS):
        if exact(dtype) and {"normalization", "rescale_by_decoder_norm"} & option.keys():
            continue
        groups = 37 if latents == 37 else 8
        top = (TopK(4), TopK(30, relu=False), AbsTopK(30))
        for activation in (*top, ReLU(), JumpReLU(), BatchTopK(), Gated(), GroupMax(groups)):
            if option.get("rescale_by_decoder_norm") and isinstance(activation, Gated):
                continue
            torch.manual_seed(1)
            sae = SAE(16, latents, activation, **option)
            with torch.no_grad():
                for value in (*sae.parameters(), *sae.buffers()):
                    value.copy_(numbers(value.shape, dtype))
                sae.W_enc[latents - 1], sae.W_enc[latents // 2] = sae.W_enc[0], sae.W_enc[0]
                if sae.b_enc is not None:
                    sae.b_enc[latents - 1], sae.b_enc[latents // 2] = sae.b_enc[0], sae.b_enc[0]
                    sae.b_enc[3] = -torch.inf
            yield sae.to(dtype).eval()


def inputs(dtype: torch.dtype) -> list[Tensor]:
    """None, one and several rows, of which some hold zeros, NaN and infinity; two leading dimensions."""
    torch.manual_seed(2)
    empty, one, odd, several = (numbers(shape, dtype) for shape in ((0, 16), (1, 16), (9, 16), (2, 5, 16)))
    odd[3], odd[4, 2], odd[5] = torch.nan, torch.inf, 0
    return [empty, one, odd, several]


def numbers(shape: Any, dtype: torch.dtype) -> Tensor:
    drawn = torch.randn(shape)
    return ((drawn * 4).round() / 4 if exact(dtype) else drawn).to(dtype)


def same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and alike(a, b, 0.0)


def alike(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance * 30, equal_nan=True)


def compare() -> list[str]:
    """Codes to the bit, reconstructions to rounding and the same in every rank, and `decode` of the codes."""
    wrong = []
    for dtype in TOLERANCE:
        for whole in saes(dtype):
            part = shard(whole)
            outputs = []
            for x in inputs(dtype):
                (want, codes), (got, found) = whole.forward_with_codes(x), part.forward_with_codes(x)
                finite = torch.isfinite(want)
                ok = {
                    "values": same(codes.values, found.values),
                    "indices": same(codes.indices, found.indices),
                    "offsets": same(codes.offsets, found.offsets),
                    "encode": same(part.encode(x).values, found.values),
                    "out": alike(got[finite], want[finite], TOLERANCE[dtype]),
                    "decode": whole.W_skip is not None or same(part.decode(found), got),
                }
                outputs.append(got.flatten())
                wrong += [f"{name}: {dtype} {whole} {tuple(x.shape)}" for name, good in ok.items() if not good]
            wrong += [] if agreed(torch.cat(outputs)) else [f"ranks differ: {dtype} {whole}"]
    return wrong


def agreed(mine: Tensor) -> bool:
    """Whether every rank has the same bits."""
    every: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(every, mine.double().numpy(force=True).tobytes())
    return len(set(every)) == 1


def gradients() -> list[str]:
    """Of the input, which passes through every shard."""
    wrong = []
    for whole in saes(torch.float32):
        x = torch.randn(6, 16, generator=torch.Generator().manual_seed(3))
        weight = torch.randn(6, whole.d_out, generator=torch.Generator().manual_seed(4))
        found = []
        for sae in (whole, shard(whole)):
            leaf = x.clone().requires_grad_()
            (sae(leaf) * weight).sum().backward()
            found.append(leaf.grad)
        if not alike(found[0], found[1], 1e-4) or not agreed(found[1]):
            wrong.append(f"gradient: {whole}")
    return wrong


def loaded(folder: Path) -> list[str]:
    """A checkpoint cut while it is read, against one that is read whole."""
    wrong = []
    for number, activation in enumerate((TopK(5), JumpReLU(), Gated())):
        torch.manual_seed(5)
        whole = SAE(24, 50, activation)
        with torch.no_grad():
            for value in whole.parameters():
                value.copy_(torch.randn(value.shape))
        place = folder / str(number)
        if distributed.get_rank() == 0:
            saekernels.save(whole, place)
        distributed.barrier()
        for dtype in (torch.float32, torch.bfloat16):
            part, x = load(place, dtype=dtype), torch.randn(7, 24, generator=torch.Generator().manual_seed(6))
            codes = saekernels.load(place, dtype=dtype).encode(x)
            found = part.encode(x)
            rows = len(part.W_dec), 50 // distributed.get_world_size()
            if not (
                same(codes.values, found.values) and same(codes.indices, found.indices) and 0 <= rows[0] - rows[1] < 2
            ):
                wrong.append(f"load: {activation} {dtype} {rows}")
    return wrong


def traffic() -> list[str]:
    """The bytes that a rank receives are those that `saekernels plan` predicts, but for a message of a few numbers."""
    received = 0
    gather, exchange = collectives._all_gather, distributed.all_to_all_single

    def gathering(out: Tensor, mine: Tensor, **options: Any) -> None:
        nonlocal received
        received += out.nbytes - mine.nbytes
        gather(out, mine, **options)

    def exchanging(out: Tensor, mine: Tensor, **options: Any) -> None:
        nonlocal received
        received += out.nbytes * (count - 1) // count
        exchange(out, mine, **options)

    count, rows, width, k = distributed.get_world_size(), 24, 16, 6
    part = shard(SAE(width, 60, TopK(k)))
    collectives._all_gather, distributed.all_to_all_single = gathering, exchanging
    try:
        part(torch.randn(rows, width))
    finally:
        collectives._all_gather, distributed.all_to_all_single = gather, exchange
    wanted = code_bytes(rows, k, 60 // count, count) + sum_bytes(rows, width, count)
    wanted += 8 * agree.SIZE * (count - 1)
    return [] if received == wanted else [f"received {received} bytes, predicted {wanted}"]


def refusals() -> list[str]:
    """Wrong input is named, in every rank alike, whichever of them was given it."""
    wrong = []
    few, count = SAE(4, 3, ReLU()), distributed.get_world_size()
    try:
        shard(few)
        wrong.append("shard of 3 latents" if count > 3 else "")
    except ValueError as error:
        wrong.append("" if "need at least one for each rank" in str(error) else str(error))
    for activation in (TopK(2), ReLU()):
        part: LatentParallelSAE = shard(SAE(4, 8, activation))
        right = torch.randn(3, 4)
        codes = part.encode(right)
        for call, good, bad, message in (
            (part, right, torch.randn(3, 5), "x: got shape [3, 5], need [..., d_in] with d_in = 4"),
            (part, right, torch.zeros(3, 4, dtype=torch.int64), "x: got dtype int64"),
            (part.encode, right, None, "x: got NoneType, need a torch.Tensor"),
            (part, right, right.to("meta"), "x: got device meta, need cpu"),
            (part, right, right[:2], "the tokens of x: got 3 in rank 0, 2 in rank 1"),
            (part, right, right.bfloat16(), "the dtype of x: got float32 in rank 0, bfloat16 in rank 1"),
            (part.decode, codes, replace(codes, n_latents=9), "codes: got n_latents = 9, need 8"),
            (part.decode, codes, right, "codes: got Tensor, need Codes"),
        ):
            # One rank alone is wrong: all say so, and by which.
            last = distributed.get_rank() == count - 1
            if count == 1 and "in rank 1" in message:
                continue
            try:
                call(bad if last else good)
                wrong.append(f"{activation}: not refused: {message}")
            except (TypeError, ValueError) as error:
                whose = "need the same in all" if "in rank" in message else f"(in rank {count - 1})"
                right_words = str(error).startswith(message.split(",")[0]) and str(error).endswith(whose)
                wrong.append("" if right_words else f"{activation}: {error}, not {message}")
    return [one for one in wrong if one]


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    with tempfile.TemporaryDirectory() as made:
        held = [made]
        distributed.broadcast_object_list(held)
        problems = {
            "compare": compare(),
            "gradients": gradients(),
            "loaded": loaded(Path(held[0])),
            "refusals": refusals(),
            "traffic": traffic(),
        }
        distributed.barrier()
    if distributed.get_rank() == 0:
        sys.stdout.write(json.dumps(problems) + "\n")
        sys.stdout.flush()
    ranks.leave()

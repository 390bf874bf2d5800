"""What the instructions of a compiled Triton kernel are for: per score, logit, gathered element or key."""

from __future__ import annotations

import machine_code
from machine_code import Instruction
from saekernels.backends.triton.launch import Launch

TILES_OF_SCORES = ("screen_kernel", "screen_hopper_kernel", "sample_kernel", "dense_kernel")
TILES_OF_LOGITS = ("parts_kernel", "slopes_kernel")
GATHERS = ("decode_kernel", "gather_dot_kernel", "piece_kernel", "segment_outer_kernel", "segment_sum_kernel")
RANKS = ("rank_kernel", "select_kernel")


def counted(launch: Launch, architecture: int, code: list[Instruction]) -> dict[str, float | str]:
    """What a kernel's instructions are for, in the terms of its kind."""
    if launch.name in TILES_OF_SCORES:
        return _epilogue(launch, code)
    if launch.name in TILES_OF_LOGITS:
        return _of_logits(launch, code)
    if architecture >= 100:  # adds and multiplies pairs, which nothing here counts
        return {}
    if launch.name in GATHERS:
        return _gathering(launch, code)
    return _ranking(launch, code) if launch.name in RANKS else {}


def _of_logits(launch: Launch, code: list[Instruction]) -> dict[str, float | str]:
    """Instructions per logit and stream of the loss's tiles that hold no target."""
    tile, several = launch.arguments["TILE"], launch.name == "parts_kernel"
    one = machine_code.between_products(code) if several else (machine_code.epilogue(code) or [None])[0]
    logits = 2 * tile.BM.value * tile.BN.value
    return {} if one is None else {"per_logit": round(one * 32 * launch.num_warps / logits, 2)}


def _epilogue(launch: Launch, code: list[Instruction]) -> dict[str, float | str]:
    """Instructions per score of a tile where none is appended, and how many more a pack with one takes."""
    tile, found = launch.arguments.get("TILE"), machine_code.epilogue(code)
    if tile is None or found is None:
        return {}
    scores = tile.BM.value * tile.BN.value / (32 * launch.num_warps * launch.arguments.get("PARTS", 1))
    return {"per_score": round(found[0] / scores, 2)} | ({"per_hit": found[1]} if found[1] else {})


def _gathering(launch: Launch, code: list[Instruction]) -> dict[str, float | str]:
    """Instructions per element of the loop that gathers, its loads, and the kernel's stores.

    per_latent: of a thread of segment_sum, for each latent of its program, where one round serves all of them.
    """
    loop = machine_code.gathering(code)
    if loop is None:
        return {}
    body = code[loop[0] : loop[1] + 1]
    elements = max(machine_code.arithmetic(code, loop))
    found: dict[str, float | str] = {"per_element": round(len(body) / elements, 2)}
    once = machine_code.through(code, loop)
    if launch.name == "segment_sum_kernel" and once is not None:
        found["per_latent"] = round(once / launch.arguments.get("LATENTS", 1), 2)
    return found | {"loads": machine_code.moved(body, "LDG"), "stores": machine_code.moved(code, "STG")}


def _ranking(launch: Launch, code: list[Instruction]) -> dict[str, float | str]:
    """Instructions of a thread for each of its keys; a search has 31 steps, of which its loop may take several."""
    issued = machine_code.way(code, 0, machine_code.leaves(code))
    loop = next(((one.target, at) for at, one in enumerate(code) if 0 <= one.target < at), None)
    keys = launch.arguments["BLOCK"] / (32 * launch.num_warps)
    if issued is None:
        return {}
    if loop is not None:
        body = code[loop[0] : loop[1] + 1]
        steps = sum(one.name == "POPC" for one in body) / max(1, keys // 32)
        if not steps:  # bits are counted in another way
            return {}
        issued += round(31 / steps - 1) * len(body)
    return {"per_key": round(issued / keys, 1)}

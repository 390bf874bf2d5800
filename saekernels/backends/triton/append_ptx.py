"""append_ptx: the assembly with which a thread appends those of a few scores that reach their threshold.

A pack of scores costs a comparison each and one branch where none of them reaches its threshold. Behind the branch the
scores that do become a mask, and each lane takes one of its own at a time, mostly its only one: one atomic per pack
for the whole warp, whichever scores the lanes are at. What a ragged tile has too much is told apart there, so that
ragged tiles cost what whole ones do.
"""

from __future__ import annotations

import functools

# Scores of one thread that share a branch: in the layout of a matrix product two columns of two rows, twice. Three bits
# pick one of them.
PACK = 8
# What each score comes with, and LLVM's constraint for it; what is the same for all scores is one register.
OPERANDS = {
    "score": "f",
    "limit": "f",
    "row": "r",
    "column": "r",
    "rows": "r",
    "columns": "r",
    "counts": "l",
    "keys": "l",
    "capacity": "r",
}
# Where scores are compared times a factor.
SCALED_OPERANDS = OPERANDS | {"factor": "f"}

REGISTERS = """{
    .reg .pred %any0, %any1, %hit, %nan, %bit0, %bit1, %bit2;
    .reg .b32 %left, %e, %bit, %row, %column, %place, %bits, %fill, %low, %sign, %sel<6>;
    .reg .f32 %size, %score, %f<6>;
    .reg .b64 %counter, %at, %wide, %key;"""
# The key is keys.pack's, of the score that the highest bit left stands for.
APPEND = """
MORE:
    bfind.u32 %e, %left;
    shl.b32 %bit, 1, %e;
    xor.b32 %left, %left, %bit;
    and.b32 %bit, %e, 1;
    setp.ne.u32 %bit0, %bit, 0;
    and.b32 %bit, %e, 2;
    setp.ne.u32 %bit1, %bit, 0;
    and.b32 %bit, %e, 4;
    setp.ne.u32 %bit2, %bit, 0;
    {picked}
    setp.lt.u32 %hit, %row, {rows};
    setp.lt.and.u32 %hit, %column, {columns}, %hit;
    @!%hit bra NEXT;
    mad.wide.u32 %counter, %row, 4, {counts};
    atom.relaxed.gpu.global.add.u32 %place, [%counter], 1;
    add.f32 %score, %score, 0f00000000;
    setp.nan.f32 %nan, %score, %score;
    mov.b32 %bits, %score;
    sub.s32 %low, 0x7fffffff, %column;
    shl.b32 %low, %low, 1;{magnitude}
    shr.s32 %fill, %bits, 31;
    and.b32 %fill, %fill, 0x7fffffff;
    xor.b32 %bits, %bits, %fill;
    selp.b32 %bits, 0x7fffffff, %bits, %nan;
    mov.b64 %key, {{%low, %bits}};
    mul.wide.u32 %at, %row, {capacity};
    setp.ge.u32 %hit, %place, {capacity};
    @%hit bra NEXT;
    cvt.u64.u32 %wide, %place;
    add.s64 %at, %at, %wide;
    shl.b64 %at, %at, 3;
    add.s64 %at, %at, {keys};
    st.global.b64 [%at], %key;
NEXT:
    setp.ne.u32 %hit, %left, 0;
    @%hit bra MORE;
NONE:
    }}"""
# The sign goes into the key's lowest bit.
MAGNITUDE = """
    shr.u32 %sign, %bits, 31;
    selp.b32 %sign, 0, %sign, %nan;
    or.b32 %low, %low, %sign;
    and.b32 %bits, %bits, 0x7fffffff;"""


def constraints(operands: dict[str, str]) -> str:
    """An output of each score, which nothing reads, then the operands, each of all scores."""
    return ",".join(["=r"] * PACK + [kind for kind in operands.values() for _ in range(PACK)])


@functools.cache
def assembly(*, absolute: bool, per_latent: bool, scaled: bool = False) -> str:
    """PTX for PACK scores.

    Args:
        absolute: compare magnitudes, and keep them with their sign.
        per_latent: only what is strictly above its limit counts, and nothing but NaN where the limit is NaN.
        scaled: compare scores times a factor, and keep them without it.
    """
    operands = SCALED_OPERANDS if scaled else OPERANDS
    scores = [{name: f"${(1 + at) * PACK + e}" for at, name in enumerate(operands)} for e in range(PACK)]
    text = REGISTERS + "".join(f"\n    mov.b32 ${e}, 0;" for e in range(PACK))
    text += "".join(_any(e, score, absolute, per_latent) for e, score in enumerate(scores))
    text += "\n    or.pred %any0, %any0, %any1;\n    @!%any0 bra NONE;\n    mov.b32 %left, 0;"
    text += "".join(_mark(e, score, absolute, per_latent) for e, score in enumerate(scores))
    if per_latent:
        text += "\n    setp.eq.u32 %hit, %left, 0;\n    @%hit bra NONE;"
    picked = "".join(_pick(scores, name, kind) for name, kind in (("score", "f32"), ("row", "b32"), ("column", "b32")))
    return text + APPEND.format(picked=picked.strip(), magnitude=MAGNITUDE if absolute else "", **scores[0])


def _any(e: int, score: dict[str, str], absolute: bool, per_latent: bool) -> str:
    """Joins a score to its strand: two of them, for a predicate takes longer to be there than to be asked for."""
    how, strand = "gtu" if per_latent else "geu", f"%any{e % 2}"
    size, compared = _compared(score, absolute)
    joined = f"setp.{how}.f32 {strand}" if e < 2 else f"setp.{how}.or.f32 {strand}"
    return f"{size}\n    {joined}, {compared}, {score['limit']}{'' if e < 2 else ', ' + strand};"


def _mark(e: int, score: dict[str, str], absolute: bool, per_latent: bool) -> str:
    """Sets the bit of a score that hits."""
    size, compared = _compared(score, absolute)
    test = f"\n    setp.geu.f32 %hit, {compared}, {score['limit']};"
    if per_latent:
        nan = f"\n    setp.nan.f32 %nan, {compared}, {compared};"
        test = f"{nan}\n    setp.gt.or.f32 %hit, {compared}, {score['limit']}, %nan;"
    return f"{size}{test}\n    @%hit or.b32 %left, %left, {1 << e};"


def _compared(score: dict[str, str], absolute: bool) -> tuple[str, str]:
    """What makes the number that is compared, and its register."""
    text, compared = "", score["score"]
    if "factor" in score:
        text, compared = f"\n    mul.rn.f32 %size, {compared}, {score['factor']};", "%size"
    return (f"{text}\n    abs.f32 %size, {compared};", "%size") if absolute else (text, compared)


def _pick(scores: list[dict[str, str]], name: str, kind: str) -> str:
    """Selects an operand by the three bits of e, each bit halving what is left."""
    left, spare, text = [score[name] for score in scores], "%f" if kind == "f32" else "%sel", ""
    for bit in range(3):
        halved = []
        for at in range(0, len(left), 2):
            made = f"%{name}" if bit == 2 else f"{spare}{at // 2 + 4 * bit}"
            text += f"\n    selp.{kind} {made}, {left[at + 1]}, {left[at]}, %bit{bit};"
            halved.append(made)
        left = halved
    return text

"""What a compiled kernel costs by its own machine code: instructions on a way through it, and blocks that fit together.

`nvdisasm`, which comes with Triton, turns a cubin into lines; branches make a graph of them. What is counted are
instructions that a thread issues: on the shortest way from the end of the product's loop to the kernel's, which is the
way of a thread whose scores reach nothing, and how many more it takes once one score of a pack does; of kernels that
gather, in the loop where they do, for an element that is multiplied or added there.
"""

from __future__ import annotations

import heapq
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?(\S[^;]*?)\s*;")
LABEL = re.compile(r"(\.L_x_\d+):")
# Instructions that multiply on tensor cores, from sm_80 to sm_120.
PRODUCT = re.compile(r"[A-Z]*(MMA|UTC[A-Z]*MMA)\b")
# Of a multiprocessor, by architecture: bytes of shared memory, threads. All have 64 K registers and room for 32 blocks.
SHARED = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
# Bytes that a thread moves, by the modifier that says so; 4 without one.
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
REGISTERS, THREADS, BLOCKS, RESERVED = 64 * 1024, 2048, 32, 1024


class Instruction(NamedTuple):
    """predicate: what it hangs on, or ""; text: the operation and its operands; target: where a branch goes, or -1."""

    predicate: str
    text: str
    target: int

    @property
    def name(self) -> str:
        """The operation without its modifiers."""
        return self.text.split()[0].split(".")[0]


def disassemble(cubin: bytes) -> list[Instruction]:
    """The instructions of a cubin's kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "nvdisasm", "-c", file.name]
        return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of stack, which are registers spilled."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"REG:(\d+)", told)[0]), int(re.findall(r"STACK:(\d+)", told)[0])


def parse(listing: str) -> list[Instruction]:
    """The first kernel of a listing."""
    lines: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in listing[listing.index(".text.") :].splitlines():
        if label := LABEL.match(line.strip()):
            labels[label[1]] = len(lines)
        elif code := LINE.match(line.strip()):
            lines.append((code[1] or "", code[2]))
        elif lines and ".section" in line:
            break
    found = []
    for predicate, text in lines:
        to = re.search(r"\.L_x_\d+", text) if text.startswith("BRA") else None
        found.append(Instruction(predicate, text, labels[to[0]] if to else -1))
    return found


def way(code: list[Instruction], start: int, goal: Callable[[int], bool]) -> int | None:
    """How many instructions from `start` to the nearest goal, that one included; None where no way leads."""
    waiting, seen = [(1, start)], set()
    while waiting:
        count, at = heapq.heappop(waiting)
        if at in seen or at >= len(code):
            continue
        seen.add(at)
        if goal(at):
            return count
        conditional = bool(code[at].predicate)
        if code[at].target >= 0:
            heapq.heappush(waiting, (count + 1, code[at].target))
        if conditional or code[at].name not in ("BRA", "EXIT", "RET"):
            heapq.heappush(waiting, (count + 1, at + 1))
    return None


def loop_of_the_product(code: list[Instruction]) -> tuple[int, int] | None:
    """Where the innermost loop with a product in it begins, and what is behind it; None where there is none."""
    loops = [
        (at - instruction.target, instruction.target, at + 1)
        for at, instruction in enumerate(code)
        if 0 <= instruction.target <= at and any(PRODUCT.match(body.text) for body in code[instruction.target : at])
    ]
    return min(loops)[1:] if loops else None


def between_products(code: list[Instruction]) -> int | None:
    """Instructions of a thread from the end of its product to the next tile's; None where there is one tile alone."""
    loop = loop_of_the_product(code)
    return None if loop is None else way(code, loop[1], lambda at: at == loop[0])


def epilogue(code: list[Instruction]) -> tuple[int, int] | None:
    """Instructions of a thread after its product where nothing is appended, and how many more one hit costs it.

    None for a kernel without a product's loop; no more where nothing can be appended.
    """
    loop = loop_of_the_product(code)
    if loop is None:
        return None
    start = loop[1]
    shortest = way(code, start, leaves(code))
    more = []
    for atomic in (at for at, instruction in enumerate(code) if instruction.name == "ATOMG"):
        there = way(code, start, lambda at, goal=atomic: at == goal)  # type: ignore[misc]
        store = next((at for at in range(atomic, len(code)) if code[at].name == "STG"), None)
        parts = [
            there,
            store and way(code, atomic, lambda at, goal=store: at == goal),
            store and way(code, store, leaves(code)),
        ]  # type: ignore[misc]
        if shortest is not None and None not in parts:
            more.append(sum(map(int, parts)) - 2 - shortest)  # type: ignore[arg-type]
    return None if shortest is None else (shortest, max(more, default=0))


def leaves(code: list[Instruction]) -> Callable[[int], bool]:
    """Whether an instruction ends the kernel, or goes to where warps of a kernel with several roles wait."""
    return lambda at: code[at].name in ("EXIT", "BRX")


def gathering(code: list[Instruction]) -> tuple[int, int] | None:
    """First and last instruction of the innermost loop that loads and has the most float32 arithmetic, or None."""
    loops = [(instruction.target, at) for at, instruction in enumerate(code) if 0 <= instruction.target < at]
    innermost = [one for one in loops if not any(one[0] <= x and y <= one[1] and (x, y) != one for x, y in loops)]
    counted = {one: arithmetic(code, one) for one in innermost if moved(code[one[0] : one[1] + 1], "LDG")}
    return max((one for one in counted if sum(counted[one])), default=None, key=lambda one: counted[one])


def arithmetic(code: list[Instruction], loop: tuple[int, int]) -> tuple[int, int]:
    """How many multiplications with an addition, and how many additions, of float32."""
    names = [instruction.name for instruction in code[loop[0] : loop[1] + 1]]
    return names.count("FFMA"), names.count("FADD")


def through(code: list[Instruction], loop: tuple[int, int]) -> int | None:
    """Instructions of a thread that goes through a loop once."""
    there, left = way(code, 0, lambda at: at == loop[1]), way(code, loop[1], leaves(code))
    return None if there is None or left is None else there + left - 1


def moved(code: list[Instruction], name: str) -> str:
    """Loads ("LDG") or stores ("STG") by the bytes that a thread moves with one, the widest first: "2x16 1x4"."""
    found: Counter[int] = Counter()
    for instruction in code:
        operation, *modifiers = instruction.text.split()[0].split(".")
        if operation == name:
            found[next((WIDTHS[modifier] for modifier in modifiers if modifier in WIDTHS), 4)] += 1
    return " ".join(f"{found[width]}x{width}" for width in sorted(found, reverse=True))


def blocks(architecture: int, registers: int, warps: int, shared: int) -> int:
    """How many blocks of a kernel share a multiprocessor; registers come in eights, shared memory with 1 KiB more."""
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32 * warps)
    return min(by_registers, SHARED[architecture] // (shared + RESERVED), THREADS // (32 * warps), BLOCKS)

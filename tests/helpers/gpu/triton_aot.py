"""Compiles Triton kernels ahead of time, for GPUs that are not here, and reads what the compiler made of them.

Run as a program in a process of its own, because TRITON_INTERPRET decides what `triton.jit` means for a whole process:

    python tests/helpers/gpu/triton_aot.py 90                 # one JSON object per distinct launch, for sm_90
    python tests/helpers/gpu/triton_aot.py --first 90         # per kernel: its first launch alone
    python tests/helpers/gpu/triton_aot.py --write 80 90 100  # what the golden table of this Triton holds
    python tests/helpers/gpu/triton_aot.py --plain gfx942     # screen, loss and gather_matmul without PTX, for AMD
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import create_function_from_signature

sys.path[:0] = [str(Path(__file__).parents[1])]  # as pytest has it

import machine_code  # noqa: E402
from places import TESTS  # noqa: E402
from saekernels.backends.triton import append_ptx, configs  # noqa: E402
from saekernels.backends.triton.encode.operands import Operands  # noqa: E402
from saekernels.backends.triton.encode.screen import screen  # noqa: E402
from saekernels.backends.triton.launch import Launch, aligned, record  # noqa: E402
from saekernels.backends.triton.loss.logits import Special  # noqa: E402
from triton_counts import counted  # noqa: E402

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
}
# Constants that are sizes of tiles, or the same everywhere.
DIMENSIONS = ("BM", "BN", "BK", "BD", "BV", "GROUP", "GROUP_OF", "ENTRIES", "ROWS", "TILES", "PIECE", "STAGES",
              "UPCAST", "ASSEMBLY", "EXP2", "RECIPROCAL", "SAME", "LATENTS", "SHORT", "LONG", "SAMPLES")  # fmt: skip
# Operands that may be None, and what a kernel with them is called.
OPTIONAL = {"bias": "biased", "row_scale": "scaled", "row_norm": "reach", "factor": "factored", "softcap": "capped",
            "pre_bias": "centred", "stale": "again"}  # fmt: skip
VERSION = ".".join(triton.__version__.split(".")[:2])
GOLDEN = TESTS / "gpu" / "golden" / "triton_machine_code.json"
# What the golden table holds of a kernel.
HELD = ("registers", "blocks", "per_score", "per_hit", "per_logit")
HELD += ("per_element", "per_latent", "per_key", "loads", "stores")


class Address:
    """What the compiler asks of a tensor: its type, and whether its address is a multiple of 16 bytes."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype, self._address = tensor.dtype, 0 if aligned(tensor) else 8

    def data_ptr(self) -> int:
        """An address with the tensor's alignment."""
        return self._address


def _without_memory(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Address(value)
    return type(value)(*map(_without_memory, value)) if hasattr(value, "_fields") else value


def target_of(architecture: int | str) -> GPUTarget:
    """Of NVIDIA by number, of AMD by name."""
    return GPUTarget("cuda", architecture, 32) if isinstance(architecture, int) else GPUTarget("hip", architecture, 64)


def specialise(launch: Launch, architecture: int | str) -> tuple[dict[str, Any], dict[Any, Any], dict[Any, Any]]:
    """Signature, constants and attributes: what the just-in-time compiler derives from the arguments."""
    backend = make_backend(target_of(architecture))
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    arguments = {name: _without_memory(value) for name, value in launch.arguments.items()}
    _, signature, constants, attributes = launch.kernel._pack_args(backend, {}, *bind(**arguments))
    return signature, constants, attributes


def flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Arguments by name, those in named tuples by the names of their fields."""
    for name, value in values.items():
        yield from value._asdict().items() if hasattr(value, "_fields") else [(name, value)]


def switches(launch: Launch) -> dict[str, Any]:
    """The constants that a launch is compiled for, and which optional operands it has."""
    found = {}
    compiled_for = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    for name, value in flat({parameter.name: launch.arguments[parameter.name] for parameter in launch.kernel.params}):
        if name in OPTIONAL:
            found[OPTIONAL[name]] = value is not None
        elif isinstance(value, tl.constexpr):
            found[name] = value.value
        elif name in compiled_for:
            found[name] = value
    return found


def binary(launch: Launch, architecture: int | str) -> Any:
    """What Triton makes of one launch, compiled as the just-in-time compiler would."""
    signature, constants, attributes = specialise(launch, architecture)
    kind = GluonASTSource if launch.kernel.is_gluon() else ASTSource
    source = kind(launch.kernel, signature, constants, attributes)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True}
    if launch.maxnreg is not None and isinstance(architecture, int):
        options["maxnreg"] = launch.maxnreg
    return triton.compile(source, target=target_of(architecture), options=options)


def compiled(launch: Launch, architecture: int) -> dict[str, Any]:
    """Registers, stack bytes (spills), shared memory and instructions of one launch."""
    started = time.perf_counter()
    made = binary(launch, architecture)
    seconds = time.perf_counter() - started
    ptx = made.asm["ptx"]
    registers, stack = machine_code.usage(made.asm["cubin"])
    return {
        "kernel": launch.name,
        "architecture": architecture,
        "dtypes": sorted({kind for _, kind in flat(specialise(launch, architecture)[0]) if kind[0] in "*t"}),
        "constants": switches(launch),
        "num_warps": made.metadata.num_warps,  # more than the launch's where warps have roles
        "registers": registers,
        "stack": stack,
        "shared": made.metadata.shared,
        "blocks": machine_code.blocks(architecture, registers, made.metadata.num_warps, made.metadata.shared),
        **counted(launch, architecture, machine_code.disassemble(made.asm["cubin"])),
        "wgmma": ptx.count("wgmma.mma_async"),
        "tcgen05": ptx.count("tcgen05.mma"),
        "mma": ptx.count("mma.sync"),
        "async": ptx.count("cp.async"),
        "tma": ptx.count("cp.async.bulk.tensor"),
        "seconds": round(seconds, 2),
    }


def title(launch: Launch) -> str:
    """A name for people: the kernel, its operands' types, and the constants that tell its forms apart."""
    told = {name: value for name, value in switches(launch).items() if name not in DIMENSIONS and value}
    words = [name.lower() if value is True else f"{name.lower()}={value}" for name, value in told.items()]
    arguments = dict(flat(launch.arguments))
    operands = [arguments[name] for name in ("x", "a", "h_p", "matrix", "values", "W") if name in arguments]
    types = [TYPES[getattr(operand, "base", operand).dtype] for operand in operands[:1]]
    return " ".join([launch.name, *types, *words])


def identity(launch: Launch, architecture: int) -> str:
    """What the compiler sees of a launch: the same string, the same binary."""
    seen = specialise(launch, architecture)
    return repr((launch.name, *seen, launch.num_warps, launch.num_stages, launch.maxnreg))


def distinct(launches: list[Launch], architecture: int) -> list[Launch]:
    """Each binary once."""
    return list({identity(launch, architecture): launch for launch in launches}.values())


def compile_all(architecture: int, first: bool = False) -> Iterator[dict[str, Any]]:
    """What became of each distinct launch of the workload, or of each kernel's first; of one that fails, its error."""
    from triton_workload import workload

    with record(architecture) as launches:
        workload()
    seen: Counter[str] = Counter()
    if first:
        launches = list({launch.name: launch for launch in reversed(launches)}.values())
    for launch in distinct(launches, architecture):
        name = title(launch)
        seen[name] += 1
        name += f" ({seen[name]})" if seen[name] > 1 else ""
        try:
            yield {"name": name, **compiled(launch, architecture)}
        except Exception as error:  # every kernel is reported, also beside one that does not compile
            yield {"name": name, "error": str(error)[:2000]}


def plain(architectures: list[str]) -> Iterator[dict[str, Any]]:
    """Screen, loss and gather_matmul of bf16 without PTX, for AMD: vector registers, and how many were spilled."""
    from triton_workload import codes, loss

    nothing = Special(*[tl.constexpr("")] * 3)
    small = configs.Config(64, 64, 32, 4, 2)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(append_ptx, "assembly", return_value=""))
        for name in ("linear_ce_kl", "linear_ce_kl_backward"):
            user = import_module(f"saekernels.backends.triton.loss.{name}")
            stack.enter_context(mock.patch.object(user, "special", return_value=nothing))
            stack.enter_context(configs.override(name, small))
        stack.enter_context(configs.override("screen", configs.Config(128, 128, 64, 8, 2)))
        launches = stack.enter_context(record(90))
        stack.enter_context(FakeTensorMode())
        x, W = torch.empty(8192, 4096, dtype=torch.bfloat16), torch.empty(65536, 4096, dtype=torch.bfloat16)
        screen(Operands(x, W), torch.empty(8192), 1024, per_latent=False)
        loss(8192, 4096, 4096, torch.bfloat16, None, biased=False, backward=True)
        codes(512, 4096, 4096, 64, torch.bfloat16)
    kernels = {made.name: made for made in launches if "TILE" in made.arguments or made.name == "gather_matmul_kernel"}
    for architecture, launch in itertools.product(architectures, kernels.values()):
        text = binary(launch, architecture).asm["amdgcn"]
        found = {name: int(re.findall(rf"\.{name}:\s*(\d+)", text)[0]) for name in ("vgpr_count", "vgpr_spill_count")}
        yield {"kernel": launch.name, "architecture": architecture, **found}


def write_golden(architectures: list[int]) -> None:
    """Replace this version's part of the golden table."""
    table = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    table[VERSION] = {
        str(architecture): {
            made["name"]: {name: made[name] for name in HELD if name in made} for made in compile_all(architecture)
        }
        for architecture in architectures
    }
    text = json.dumps(table, indent=1)
    GOLDEN.write_text(
        re.sub(r"\{\s+(\"registers\"[^}]*?)\s+\}", lambda row: "{" + " ".join(row[1].split()) + "}", text) + "\n"
    )


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write_golden([int(argument) for argument in sys.argv[2:]])
    elif sys.argv[1] == "--plain":
        for made in plain(sys.argv[2:]):
            print(json.dumps(made), flush=True)
    else:
        for made in compile_all(int(sys.argv[-1]), first=sys.argv[1] == "--first"):
            print(json.dumps(made), flush=True)

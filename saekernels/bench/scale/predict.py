"""A plan's time, memory and traffic, each part from its operations and the bytes it moves (docs/how-to/scale.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from saekernels.bench.gpu import model
from saekernels.bench.measure.shapes import Shape
from saekernels.bench.scale.job import Job
from saekernels.bench.scale.machine import Machine
from saekernels.eval.passes.plan import Run
from saekernels.eval.store.resumable import BLOCKS

# Of a spooled position: its token, whether it is special, its bytes.
_SPOOL_BYTES = 9
# What a block of a transformer holds of a position while it computes, in widths.
_WORKING_WIDTHS = 16
_CELLS = 16


@dataclass(frozen=True)
class Prediction:
    """Of one process, where not said otherwise.

    Attributes:
        seconds: by part, for the whole text.
        memory: bytes by part, on its device.
        host: bytes of its host's memory for sums that grow with the sites alone.
        disk: bytes of the shared folder, of all processes.
        received: bytes from other processes, by part.
        room: bytes that its device has.
    """

    seconds: dict[str, float]
    memory: dict[str, float]
    host: float
    disk: float
    received: dict[str, float]
    room: float

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def total_memory(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.total_memory <= self.room

    def to_dict(self) -> dict[str, Any]:
        room = self.room if self.room < float("inf") else None
        totals = {"total_seconds": self.total_seconds, "total_memory": self.total_memory, "fits": self.fits}
        return {**asdict(self), "room": room, **totals}


def predict(job: Job, machine: Machine) -> Prediction:
    """What each process of a job takes on this machine."""
    return Prediction(
        seconds=_seconds(job, machine),
        memory=_memory(job, machine),
        host=3.0 * _moments(job),
        disk=job.tokens * _SPOOL_BYTES + job.documents * _CELLS * _columns(job) * 8 + _nodes(job) * _moments(job),
        received=_received(job),
        room=machine.bytes,
    )


def body_layers(job: Job, run: Run) -> float:
    """Layers that a run computes: it goes on from another where it can.

    Zero and mean ablation of the residual stream are free, because their result does not depend on the text.
    """
    if run.kind in ("zero", "mean"):
        return 0.0
    last = int(run.entries[-1])
    inner = run.kind == "sae" and 1 < len(run.entries) < job.sites
    return float(job.layers - job.depth(last + 1 if inner else int(run.entries[0])))


def encodings(job: Job) -> int:
    """How often a token is encoded and decoded: each SAE alone and in the run of all; later runs go on from that."""
    return sum(len(run.entries) for run in job.plan().runs if run.kind == "sae" and _whole(job, run))


def _whole(job: Job, run: Run) -> bool:
    return len(run.entries) in (1, job.sites)


def _seconds(job: Job, machine: Machine) -> dict[str, float]:
    tokens = job.tokens / job.data_parallel
    plan = job.plan()
    layers = 2.0 * job.layers + sum(body_layers(job, run) for run in plan.runs)
    attention = 2.0 * job.context * job.width
    per_layer = 2.0 * job.body / job.layers + attention
    streams = sum(2 if run.compared else 1 for run in plan.runs if run.kind not in ("zero", "mean"))
    batch = job.batch_size * job.context
    part = Shape(batch, job.width, -(-job.latents // job.latent_parallel), min(job.k, job.latents))
    batches = tokens / batch
    probes = sum(len(run.entries) for run in plan.runs if run.kind == "pca")
    received = _received(job)
    second = 1.0 if "pca" in job.baselines else 0.0
    return {
        "model, all runs": tokens * layers * per_layer / machine.rate(job.dtype),
        "heads and losses": batches * streams * _head(job, machine, batch),
        "encoders": batches * encodings(job) * _encode(part, job, machine),
        "decoders": batches * encodings(job) * _decode(part, job, machine),
        "probes": tokens * probes * 4.0 * job.width * job.k / machine.rate(job.sae_dtype),
        "moments": second * tokens * job.sites * 2.0 * job.width**2 / (machine.fp64 * 1e12),
        "between processes": sum(received.values()) / (machine.link * 1e9),
    }


def _encode(shape: Shape, job: Job, machine: Machine) -> float:
    if machine.gpu:
        return model.seconds(model.encode(shape, job.sae_dtype, machine.card), machine.card)
    rate = 1e12 * machine.card.tf32 if job.sae_dtype == torch.float32 else machine.rate(job.sae_dtype)
    products = 2.0 * shape.T * shape.d * shape.F / rate
    return max(products, shape.F * shape.d * job.sae_dtype.itemsize / machine.card.memory / 1e9)


def _decode(shape: Shape, job: Job, machine: Machine) -> float:
    own = shape._replace(k=max(1, shape.k // job.latent_parallel))
    if machine.gpu:
        return model.seconds(model.decode(own, job.sae_dtype, machine.card), machine.card)
    return own.T * own.k * own.d * job.sae_dtype.itemsize / machine.card.memory / 1e9


def _head(job: Job, machine: Machine, batch: int) -> float:
    """Of one stream of a batch."""
    shape = Shape(batch, job.width, job.vocabulary)
    if machine.gpu:
        return model.seconds(model.loss(shape, job.dtype, machine.card), machine.card) / 2
    return 2.0 * shape.T * shape.d * shape.F / machine.rate(job.dtype)


def _memory(job: Job, machine: Machine) -> dict[str, float]:
    batch = job.batch_size * job.context
    own = -(-job.latents // job.latent_parallel)
    size, sae_size = job.dtype.itemsize, job.sae_dtype.itemsize
    shape = Shape(batch, job.width, own, min(job.k, own))
    temporaries = model.temporaries(shape, job.sae_dtype) if machine.gpu else 8.0 * batch * min(4 * job.k, own)
    return {
        "model": float(job.parameters * size),
        "SAEs": float(sae_bytes(job)),
        "activations kept between runs": 2.0 * job.sites * batch * job.width * size,
        "activations at work": float(_WORKING_WIDTHS * batch * job.width * max(size, sae_size)),
        "encoder's temporaries": float(temporaries),
    }


def sae_bytes(job: Job) -> int:
    """Of the weights that one process holds of all SAEs."""
    own = -(-job.latents // job.latent_parallel)
    return job.sites * (own * (2 * job.width + 1) + job.width) * job.sae_dtype.itemsize


def code_bytes(tokens: float, k: int, own: int, ranks: int) -> float:
    """That a process receives of the others' codes: a key of 8 bytes for each."""
    return tokens * min(k, own) * 8.0 * (ranks - 1)


def sum_bytes(tokens: float, width: int, ranks: int) -> float:
    """That it receives of their decodes: its share of the rows of each, and the finished rows of all others."""
    return 2.0 * tokens * width * 4.0 * (ranks - 1) / ranks


def _received(job: Job) -> dict[str, float]:
    tokens, ranks = job.tokens / job.data_parallel * encodings(job), job.latent_parallel
    own = -(-job.latents // ranks)
    return {
        "codes": code_bytes(tokens, job.k, own, ranks),
        "sums of decodes": sum_bytes(tokens, job.width, ranks),
    }


def _moments(job: Job) -> float:
    second = job.width**2 if "pca" in job.baselines else 0
    return 8.0 * job.sites * (second + 2 * job.width)


def _nodes(job: Job) -> int:
    """Sums on disk at a time: a few for each process, as they are joined two by two."""
    return min(BLOCKS, job.data_parallel * BLOCKS.bit_length())


def _columns(job: Job) -> int:
    return 2 + len(job.plan().columns)

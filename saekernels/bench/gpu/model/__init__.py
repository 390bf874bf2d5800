"""The cost model: each kernel's time from the operations it does and bytes it moves (docs/explanation/gpu_model.md).

A kernel takes the longest of its products, its memory traffic, its cache traffic and its instructions, plus what its
epilogue does while the tensor cores wait, plus a launch. Nothing is fitted: where a measurement misses a prediction,
one of the two is wrong.
"""

from __future__ import annotations

from saekernels.bench.gpu.model.codes import GATHER_TILE, GATHERED, PER_LATENT, decode, gather_matmul, train
from saekernels.bench.gpu.model.encode import (
    APPEND,
    RANKED,
    SAMPLE_EPILOGUE,
    SCREEN_EPILOGUE,
    SCREEN_TILE,
    SELECTED,
    appending,
    encode,
    exact_rows,
    temporaries,
)
from saekernels.bench.gpu.model.kernels import Kernel, product, seconds, tile_reads
from saekernels.bench.gpu.model.loss import (
    GRADIENT_TILE,
    LOSS_EPILOGUE,
    LOSS_TILE,
    PART,
    SLAB,
    SLOPE_EPILOGUE,
    loss,
    loss_train,
)
from saekernels.bench.gpu.model.ops import predict

__all__ = [
    "APPEND",
    "GATHERED",
    "GATHER_TILE",
    "GRADIENT_TILE",
    "LOSS_EPILOGUE",
    "LOSS_TILE",
    "PART",
    "PER_LATENT",
    "RANKED",
    "SAMPLE_EPILOGUE",
    "SCREEN_EPILOGUE",
    "SCREEN_TILE",
    "SELECTED",
    "SLAB",
    "SLOPE_EPILOGUE",
    "Kernel",
    "appending",
    "decode",
    "encode",
    "exact_rows",
    "gather_matmul",
    "loss",
    "loss_train",
    "predict",
    "product",
    "seconds",
    "temporaries",
    "tile_reads",
    "train",
]

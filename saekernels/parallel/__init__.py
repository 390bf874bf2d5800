"""The same results over several processes, for models and dictionaries that outgrow one device."""

from saekernels.parallel.batch_topk import encode_batch_topk
from saekernels.parallel.latent_parallel import LatentParallelSAE
from saekernels.parallel.load import load
from saekernels.parallel.shards import shard

__all__ = ["LatentParallelSAE", "encode_batch_topk", "load", "shard"]

"""The same results over several processes, for models and dictionaries that outgrow one device."""

from saekernels.parallel.latent_parallel import LatentParallelSAE
from saekernels.parallel.load import load
from saekernels.parallel.shards import shard

__all__ = ["LatentParallelSAE", "load", "shard"]

"""SAEs whose latents are spread over the processes of torch.distributed, for dictionaries that outgrow one device."""

from .load import load
from .sae import LatentParallelSAE
from .shards import shard

__all__ = ["LatentParallelSAE", "load", "shard"]

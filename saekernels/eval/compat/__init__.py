"""Other tools' metrics, by their own formulas, on the same tokens: one clean pass serves every SAE."""

from .engine import peer_metrics
from .formulas import PEERS, PeerMetrics
from .saebench import core_output

__all__ = ["PEERS", "PeerMetrics", "core_output", "peer_metrics"]

"""Other tools' metrics, by their own formulas, on the same tokens: one clean pass serves every SAE."""

from saekernels.eval.compat.engine import peer_metrics
from saekernels.eval.compat.formulas import PEERS, PeerMetrics
from saekernels.eval.compat.saebench import core_output

__all__ = ["PEERS", "PeerMetrics", "core_output", "peer_metrics"]

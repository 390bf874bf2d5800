"""circuit-tracer: which of its replacement models are served, and how attribution runs on them."""

from saekernels.adapters.circuit_tracer.objects import (
    PACKAGE,
    VERSIONS,
    classes,
    held,
    known,
    plan,
    settings,
    trials,
)

__all__ = ["PACKAGE", "VERSIONS", "classes", "held", "known", "plan", "settings", "trials"]

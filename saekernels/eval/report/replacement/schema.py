"""The schema of the record of layers replaced together."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def replacement_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of what `evaluate_replacement` returns."""
    return dict(json.loads(resources.files(__package__).joinpath("schema.json").read_text(encoding="utf-8")))

"""What the build of this installation did: the record that setup.py leaves beside the package."""

from __future__ import annotations

import json
from pathlib import Path

RECORD = Path(__file__).with_name("_build_info.json")


def read(module: str = "cpu", record: Path = RECORD) -> dict[str, str]:
    """Of a native module, "cpu" or "cuda": `status` ("built", "skipped", "failed", "unknown") and `detail`, the why."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {
            "status": "unknown",
            "detail": "no build record: the package is used from a source tree that was not built",
        }
    except (OSError, ValueError) as error:
        return {"status": "unknown", "detail": f"build record {record.name} is unreadable: {error}"}
    if not isinstance(content, dict) or not isinstance(content.get(module), dict):
        return {"status": "unknown", "detail": f"build record {record.name} says nothing of {module}"}
    content = content[module]
    return {"status": str(content.get("status", "unknown")), "detail": str(content.get("detail", ""))}

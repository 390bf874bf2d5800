"""The pictures of README and docs, from committed records: `python tools/pictures`, which writes docs/images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from argument import argument
from drawing import THEMES
from how import how
from speed import speed

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
EVALUATION = RESULTS / "example" / "2026-11-26-eval.json"  # saekernels eval --json
SPEED = RESULTS / "amd-epyc-avx2" / "2026-11-22-62938f2.json"  # saekernels bench cpu --json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="the folder to write into")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for theme in THEMES:
        pictures = {
            "argument": argument(_read(EVALUATION), theme),
            "speed": speed(_read(SPEED), theme),
            "how": how(theme),
        }
        for name, text in pictures.items():
            (out / f"{name}-{theme.name}.svg").write_text(text, encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

"""Pictures, README's table of speed and docs/results.md, from committed records: `python tools/pictures`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from argument import argument
from drawing import THEMES
from how import how
from results.page import RECORDS, results_page
from sites import sites
from speed import speed
from speed_table import speed_table
from training import training

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
EVALUATION = RESULTS / "example" / "2026-11-26-eval.json"  # saekernels eval --json
OVER = RESULTS / "example" / "2026-11-27-over.json"  # saekernels over --json
REAL = RESULTS / "smollm2-135m"  # docs/how-to/real_model.md says what each of its records is
SPEED = RESULTS / "intel-xeon-amx" / "2026-11-26-03e4e09.json"  # saekernels bench cpu --json
TABLE, END = "<!-- speed table -->\n", "<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT, help="the checkout to write into: README.md, docs/images")
    out = parser.parse_args().out
    images = out / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    evaluation, record = _read(EVALUATION), _read(SPEED)
    real = {name: _read(REAL / f"{name}.json") for name in RECORDS if (REAL / f"{name}.json").exists()}
    for theme in THEMES:
        pictures = {"argument": argument(evaluation, theme), "speed": speed(record, theme), "how": how(theme)}
        pictures["training"] = training(_read(OVER), theme)
        pictures["sites"] = sites(real["sites"], theme, real.get("baselines"))
        for name, text in pictures.items():
            (images / f"{name}-{theme.name}.svg").write_text(text, encoding="utf-8")
    page = results_page(real, str(REAL.relative_to(ROOT)))
    (out / "docs" / "results.md").write_text(page, encoding="utf-8")
    table = speed_table(record, str(SPEED.relative_to(ROOT)))
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(TABLE)
    (out / "README.md").write_text(before + TABLE + table + END + rest.partition(END)[2], encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

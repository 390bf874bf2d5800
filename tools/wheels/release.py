"""Does everything name the same version? Then the checksums of what is released, into SHA256SUMS beside it.

    python tools/wheels/release.py dist/*.whl dist/*.tar.gz

The version is that of saekernels/_version.py: CITATION.cff has it, CHANGELOG.md has a dated heading for it and nothing
unreleased above, and every file's name has it. `sha256sum -c SHA256SUMS` compares later.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def wrong(root: Path, names: list[str]) -> list[str]:
    """What does not name the version of the sources at `root`, a line each; `names`: of the files to be released."""
    version = _found(root / "saekernels/_version.py", r'^__version__ = "(.+)"$')
    lines = []
    if (cited := _found(root / "CITATION.cff", r"^version: (.+)$")) != version:
        lines.append(f"CITATION.cff: version {cited}, need {version}")
    heading = _found(root / "CHANGELOG.md", r"^## (.+)$")
    if not re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", heading):
        lines.append(f"CHANGELOG.md: first heading {heading!r}, need '[{version}] - YYYY-MM-DD'")
    lines += [f"{name}: not of version {version}" for name in names if name.split("-")[1:2] != [version]]
    kinds = [name for name in names if name.startswith("saekernels_example-") and name.endswith("-none-any.whl")]
    if not kinds:
        lines.append("no wheel of saekernels-example")
    return lines


def _found(path: Path, pattern: str) -> str:
    match = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    files = sorted(parser.parse_args().files)
    lines = wrong(ROOT, [path.name.removesuffix(".tar.gz") for path in files])
    if lines:
        sys.exit("\n".join(lines))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in files]
    files[0].with_name("SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")
    print("\n".join(sums))
    return 0


if __name__ == "__main__":
    sys.exit(main())

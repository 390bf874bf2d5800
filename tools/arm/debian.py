"""Debian's packages of another architecture, with all that they depend on, unpacked into a folder.

    python tools/arm/debian.py build/arm-root python3.11 libpython3.11-dev

Nothing is installed or run, and dpkg of this machine hears nothing of another architecture.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

FIELDS = re.compile(r"^(Package|Depends|Pre-Depends|Filename|SHA256): (.*)$", re.MULTILINE)


def index_of(mirror: str, release: str, architecture: str) -> dict[str, dict[str, str]]:
    """Package -> its fields."""
    packed = _read(f"{mirror}/dists/{release}/main/binary-{architecture}/Packages.xz")
    told = [dict(FIELDS.findall(paragraph)) for paragraph in lzma.decompress(packed).decode().split("\n\n")]
    return {one["Package"]: one for one in told if one}


def closure(index: dict[str, dict[str, str]], wanted: list[str]) -> list[str]:
    """The packages and what they depend on; of alternatives the first that there is."""
    found: dict[str, None] = {}
    left = list(wanted)
    while left:
        name = left.pop()
        if name in found:
            continue
        if name not in index:
            sys.exit(f"debian.py: there is no package {name}")
        found[name] = None
        for group in ",".join(index[name].get(key, "") for key in ("Depends", "Pre-Depends")).split(","):
            names = [re.sub(r"[ (:].*", "", one.strip()) for one in group.split("|")]
            left += [name for name in names if name in index][:1]
    return list(found)


def unpack(mirror: str, fields: dict[str, str], folder: Path) -> None:
    """Fetch a package and unpack it. Ends the process where it is not what the index says."""
    packed = _read(f"{mirror}/{fields['Filename']}")
    if hashlib.sha256(packed).hexdigest() != fields["SHA256"]:
        sys.exit(f"debian.py: {fields['Filename']}: another SHA-256 than the index has")
    with tempfile.NamedTemporaryFile(suffix=".deb") as file:
        file.write(packed)
        file.flush()
        subprocess.run(["dpkg-deb", "-x", file.name, str(folder)], check=True)


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=300) as answer:
        return bytes(answer.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("packages", nargs="+")
    parser.add_argument("--mirror", default="https://deb.debian.org/debian")
    parser.add_argument("--release", default="bookworm")
    parser.add_argument("--architecture", default="arm64")
    arguments = parser.parse_args()
    index = index_of(arguments.mirror, arguments.release, arguments.architecture)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in closure(index, arguments.packages):
        unpack(arguments.mirror, index[name], arguments.folder)


if __name__ == "__main__":
    main()

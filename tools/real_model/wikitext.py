"""WikiText-2's validation and test parts, as one document an article, with the blanks of its tokens taken back."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from smollm2 import check_sha256
from sources import Source

COMMIT = "77f55b912142e11fcfdf5b530231fb9c52f181e8"
ADDRESS = f"https://raw.githubusercontent.com/pytorch/examples/{COMMIT}/word_language_model/data/wikitext-2"
FILES = {
    "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
}


def fetch_wikitext(cache: Path) -> dict[str, Path]:
    """Part -> file, downloaded to `cache` where it is not there yet; {} where the network does not let it through.

    Raises ValueError where a file is another one.
    """
    folder = cache / "wikitext-2"
    folder.mkdir(parents=True, exist_ok=True)
    for part, needed in FILES.items():
        path = folder / f"{part}.txt"
        if not path.exists():
            try:
                with urllib.request.urlopen(f"{ADDRESS}/{part}.txt", timeout=60) as answer:
                    data = answer.read()
            except OSError as error:
                print(f"no WikiText-2, the domain wikipedia is left out: {ADDRESS}/{part}.txt: {error}", flush=True)
                return {}
            path.write_bytes(data)
        check_sha256(path, needed)
    return {part: folder / f"{part}.txt" for part in FILES}


def without_token_blanks(text: str) -> str:
    """WikiText's tokens as running text: "star @-@ shaped , he 's" -> "star-shaped, he's"; <unk> stays."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ('(?:s|re|ve|ll|d|m|t)\b)", r"\1", text)
    text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
    text = re.sub(r"(?<=[(\[]) | (?=[)\],.:;?!%])", "", text)
    text = re.sub(r"(?<=s) '(?= )", "'", text)
    return re.sub(r"(?m)^ | $", "", text)


def articles(text: str, part: str) -> Iterator[Source]:
    """The articles, which begin with a heading between single equals signs."""
    starts = [match.start() for match in re.finditer(r"(?m)^ = [^=\n]+ = $", text)]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(text)], strict=True)):
        body = without_token_blanks(text[start:end])
        yield Source(body, "wikipedia", f"wikitext-2/{part}/{number:03d}", f"wikitext-2-{part}", "CC-BY-SA-3.0")

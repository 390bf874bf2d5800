"""Makes the labelled texts of the bundled example: python tools/labelled_texts

Three files of saekernels/example/labelled/, each a set for `saekernels probe`: true and false statements, English and
other languages, code and prose. The texts are our own, under this project's licence.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from code_and_prose import code_and_prose
from facts import LANGUAGES, facts
from sentences import sentences

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "saekernels" / "example" / "labelled"
Record = dict[str, str]
# What stands around a statement; the sentence itself is never changed, so its grammar is right in every language.
FRAMES = {
    "plain": ("{}.",) * 4,
    "lesson": ("Today's lesson: {}.", "La leçon du jour : {}.", "Die heutige Lektion: {}.", "La lección de hoy: {}."),
    "letter": (
        'She wrote to me: "{}", and nothing else.', "Elle m'a écrit : « {} », et rien d'autre.",
        "Sie schrieb mir: „{}“, und sonst nichts.", "Ella me escribió: «{}», y nada más.",
    ),
}  # fmt: skip


def statements() -> Iterator[Record]:
    """Each fact and its wrong twin, in every frame and language."""
    for fact in facts():
        for template, frames in FRAMES.items():
            for language, frame, prompt, answer, foil in zip(
                LANGUAGES, frames, fact.prompts, fact.answers, fact.foils, strict=True
            ):
                before, after = frame.split("{}")
                for label, ending in (("true", answer), ("false", foil)):
                    yield {
                        "text": before + prompt + ending + after,
                        "label": label,
                        "group": fact.group,
                        "template": template,
                        "language": language,
                        "prompt": before + prompt,
                        "answer": answer,
                        "foil": foil,
                    }


SETS = {"truth": statements, "english": sentences, "code": code_and_prose}


def packed(records: Iterable[Record]) -> bytes:
    """JSON lines, compressed; the same bytes for the same records."""
    made = io.BytesIO()
    with gzip.GzipFile(fileobj=made, mode="wb", compresslevel=9, mtime=0) as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    return made.getvalue()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, make in SETS.items():
        (FOLDER / f"{name}.jsonl.gz").write_bytes(packed(make()))

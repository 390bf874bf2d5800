"""The house in order: imports run downwards, nothing runs in a circle, and no room is overfull.

What is meant by a room and a floor, and the table of them: tests/helpers/floors.py.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import floors
from places import ROOT, TESTS


def test_every_file_is_in_a_room() -> None:
    homeless = [file for file in floors.files() if floors.room_of(file) is None]
    assert not homeless, f"in no room of tests/helpers/floors.py: {homeless}; put them into one, or name a new one"
    gone = [room for room in floors.FLOOR if not (floors.PACKAGE / room).exists()]
    assert not gone, f"rooms of tests/helpers/floors.py that are not there: {gone}"


def test_imports_run_downwards() -> None:
    wrong = floors.wrong_arrows(floors.graph())
    advice = "A room may use only rooms on lower floors (the map is in CONTRIBUTING.md). Move what is shared down."
    assert not wrong, "\n".join([*wrong, advice])


def test_no_imports_run_in_a_circle() -> None:
    found = floors.circle(floors.graph())
    advice = "; each needs the next, so none can be read alone. Move what two of them share into a file below both."
    assert not found, " imports ".join(found) + advice


def test_no_relative_imports() -> None:
    relative = [file for file, targets in floors.graph().items() if "." in targets]
    assert not relative, f"say where it lies: `from saekernels.room.file import name`, in {relative}"


def test_rooms_are_small() -> None:
    code = [path for folder in ("saekernels", "tests", "csrc", "benchmarks") for path in (ROOT / folder).rglob("*.*")]
    counts = Counter(path.parent for path in code if path.suffix in (".py", ".h", ".cpp", ".cu"))
    full = {str(room.relative_to(ROOT)): number for room, number in counts.items() if number > floors.MOST_FILES}
    assert not full, f"more than {floors.MOST_FILES} files in a room: {full}; split it by what its files are for"


def test_the_root_holds_only_what_belongs_to_everyone() -> None:
    allowed = {"__init__.py", "__main__.py", "_build_info.py", "_version.py", "errors.py"}
    assert {path.name for path in floors.PACKAGE.glob("*.py")} == allowed


def test_tests_mirror_the_rooms() -> None:
    """A folder of tests has the name of a room; others are of what is built, compiled, read."""
    rooms = {path.name for path in TESTS.iterdir() if any(path.glob("test_*.py"))}
    known = {room.split("/")[0] for room in floors.FLOOR} | {"native", "gpu", "docs", "suite"}
    assert rooms <= known, f"folders of tests that are no rooms: {sorted(rooms - known)}"


def test_every_room_has_a_rule_and_contributing_shows_the_map() -> None:
    without = [room for room in floors.FLOOR if len(floors.rule_of(room)) < 20]
    assert not without, f"the first line of a room's docstring says what belongs there: {without}"
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert page == floors.with_table(page), "another map than the table's; run `python tests/helpers/floors.py`"


def test_the_check_sees_what_is_wrong(tmp_path: Path) -> None:
    source = "def f():\n    from saekernels.eval import evaluate\nfrom . import x\nimport saekernels.ops.topk as t\n"
    assert set(floors.imports(source)) == {"eval/evaluate.py", ".", "ops/topk.py"}
    assert floors.wrong_arrows({"ops/topk.py": {"sae/module.py"}}) == [
        "saekernels/ops/topk.py (ops) imports saekernels/sae/module.py (sae), a room above it"
    ]
    assert floors.wrong_arrows({"formats/load.py": {"adapters/swap.py"}})[0].endswith("a room beside it")
    assert floors.wrong_arrows({"sae/module.py": {"ops/topk.py", "sae/codes.py"}}) == []
    assert floors.circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert floors.circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []

"""benchmarks/on_gpu.sh with stand-ins for the programs it starts: its command lines, its limits, and how it goes on.

`.ci/gpu` goes through the same script with the programs themselves, where there is no GPU either.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from places import BENCHMARKS, ROOT
from saekernels.bench.gpu.checks import CHECKS
from saekernels.cli.commands.bench_gpu import TUNABLE
from saekernels.cli.entry import build_parser

STEPS = [
    "build", "check", "check-tests", "sanitize", "check-hopper", "score", "score-counters", "tune", "score-full",
]  # fmt: skip
TOOLS = ["memcheck", "racecheck", "initcheck", "synccheck"]
# Notes its arguments; says what a check or a search would; waits, or fails, where its arguments have that word.
PYTHON = """#!/usr/bin/env bash
line=$(printf '%q ' "$@") && echo "$line" >>"$CALLS" # whole, whoever else writes
if [ "${SLOW:-}" ] && [[ "$*" == *"$SLOW"* ]]; then sleep 20; fi
if [ "${WRONG:-}" ] && [[ "$*" == *"$WRONG"* ]]; then exit 1; fi
if [[ "$*" == *" --checks "* ]]; then printf '%-14s%s\\n' "${@: -1}" right; fi
if [[ "$*" == *"--kernels screen,"* ]]; then printf '%s\\n' "# screen, narrow: as good" '    Key("screen", 90)'; fi
"""
SANITIZER = """#!/usr/bin/env bash
if [ "$1" != --tool ]; then exit; fi
echo "sanitizer $2" >>"$CALLS"
exec "${@:5}"
"""
# Starts what it is to look at, which comes last.
PROFILER = """#!/usr/bin/env bash
if [ "$1" = --version ]; then exit; fi
printf '%q ' ncu "$@" >>"$CALLS" && echo >>"$CALLS"
exec "${@: -3}"
"""
# Half a second instead of the limit, which it notes.
TIMEOUT = f"""#!/usr/bin/env bash
echo "limit $3" >>"$CALLS"
exec {shutil.which("timeout")} -k 1 0.5 "${{@:4}}"
"""


class Place(NamedTuple):
    """Where the script writes, and where its stand-ins lie and note what they were called with."""

    out: Path
    programs: Path

    def run(self, *steps: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The script, with variables set, away from the checkout."""
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        variables = os.environ | {"PATH": path, "CALLS": str(self.programs / "calls")} | environment
        variables.pop("SAEKERNELS_REHEARSAL", None)
        command = ["bash", str(BENCHMARKS / "on_gpu.sh"), str(self.out), *steps]
        return subprocess.run(
            command, env=variables, cwd=self.programs, capture_output=True, text=True, check=False, timeout=60
        )

    def calls(self) -> list[list[str]]:
        """The arguments of all stand-ins since the last time."""
        notes = self.programs / "calls"
        found = [shlex.split(line) for line in notes.read_text().splitlines()] if notes.exists() else []
        notes.unlink(missing_ok=True)
        return found

    def ended(self) -> list[tuple[str, int]]:
        """Names and exit codes of the steps that ended."""
        lines = [line.split() for line in (self.out / "steps.txt").read_text().splitlines()]
        return [(name, int(code)) for name, code, _ in lines]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path / "out", tmp_path / "programs")
    made.programs.mkdir()
    texts = {"python3": PYTHON, "compute-sanitizer": SANITIZER}
    quiet = dict.fromkeys(("nvidia-smi", "nvcc", "cmake", "ninja"), "#!/usr/bin/env bash\n")
    for name, text in {**texts, **quiet, "ncu": PROFILER}.items():
        stand_in(made, name, text)
    return made


def stand_in(place: Place, name: str, text: str) -> None:
    (place.programs / name).write_text(text)
    (place.programs / name).chmod(0o755)


def check_command(call: list[str]) -> None:
    """Its arguments are those of a command that there is, its files are there."""
    if call[:2] == ["-m", "saekernels"]:
        build_parser().parse_args(call[2:])
    elif call[:2] == ["-m", "pytest"]:
        files = [argument for argument in call if argument.endswith(".py")]
        assert len(files) > 3
        assert [name for name in files if not (ROOT / name).is_file()] == []
    elif call != ["--version"]:
        assert (ROOT / call[0]).is_file(), call


def test_every_step_in_order_and_every_command_line(place: Place) -> None:
    done = place.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert place.ended() == [(name, 0) for name in STEPS]
    calls = place.calls()
    assert sorted(call[1] for call in calls if call[0] == "sanitizer") == sorted([*TOOLS, "memcheck", "synccheck"])
    watched = "tests/helpers/gpu/every_kernel.py"
    assert calls.count([watched, "cuda"]) == 1 + len(TOOLS)
    (profiler,) = (call for call in calls if call[0] == "ncu")
    assert profiler[-3:] == ["python3", "benchmarks/gpu_counters.py", "cuda"]
    assert profiler[profiler.index("--clock-control") + 1] == "none"
    assert profiler[-3:][1:] in calls
    assert calls.count(["benchmarks/hopper_screen.py", "cuda"]) == 1
    assert calls.count(["benchmarks/hopper_screen.py", "cuda", "watched"]) == 2
    for call in calls:
        if call[0] not in ("sanitizer", "ncu"):
            check_command(call)
    checked = [call[-1] for call in calls if "--checks" in call]
    assert sorted(checked) == sorted(CHECKS)
    (tuned,) = (call[call.index("--kernels") + 1] for call in calls if "--tune" in call)
    assert sorted(tuned.split(",")) == sorted(TUNABLE)
    scores = [call[2:] for call in calls if "--json" in call]
    common = ["bench", "gpu", "--no-plots", "--resume"]
    assert scores == [
        [*common, "--quick", "--json", f"{place.out}/quick.json"],
        [*common, "--json", f"{place.out}/full.json"],
    ]
    assert len(list(place.out.iterdir())) + len(scores) <= 8  # what a lent machine may give back


def test_what_ended_is_left_out_and_what_is_named_begins_anew(place: Place) -> None:
    assert place.run("score", WRONG="--quick").returncode == 1
    assert place.ended() == [("score", 1)]
    place.calls()
    assert place.run().returncode == 0
    assert place.ended() == [("score", 1), *((name, 0) for name in STEPS if name != "score")]
    assert not [call for call in place.calls() if "--quick" in call]
    assert place.run().returncode == 0
    assert place.calls() == []
    assert place.run("score", "check").returncode == 0
    calls = place.calls()
    assert len([call for call in calls if "--checks" in call]) == len(CHECKS)
    assert not [call for call in calls if "--resume" in call]


def test_what_was_cut_off_goes_on_with_what_is_left(place: Place) -> None:
    stand_in(place, "timeout", TIMEOUT)
    assert place.run("check", SLOW="--checks encode", ON_GPU_SECONDS="100").returncode == 1
    assert place.run("tune", SLOW="--tune").returncode == 1
    assert place.ended() == [("check", 124), ("tune", 124)]
    # No step of minutes gets more than what is left, nor more than its own limit.
    (first,), (second,) = ([int(call[1])] for call in place.calls() if call[0] == "limit")
    assert 95 < first <= 100
    assert second == 470
    (place.out / "tune.txt").write_text('# screen, narrow: as good\n    Key("screen", 90)\n    Key("decode", 90)\n')
    (place.programs / "timeout").unlink()
    assert place.run().returncode == 0
    calls = place.calls()
    assert [call[-1] for call in calls if "--checks" in call] == ["encode"]
    assert [call[-1] for call in calls if "--kernels" in call] == ["decode,linear_ce_kl,segment"]
    assert dict(place.ended()) == dict.fromkeys(STEPS, 0)


def test_no_step_begins_without_time(place: Place) -> None:
    done = place.run(ON_GPU_SECONDS="19")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [f"== {name}: no time left" for name in STEPS]
    assert place.calls() == []


@pytest.mark.parametrize(("tool", "code"), [("memcheck", 1), ("none", 0)])
def test_a_sanitizer_that_finds_something_fails_its_step(place: Place, tool: str, code: int) -> None:
    stand_in(place, "compute-sanitizer", SANITIZER.replace("exec", f'[ "$2" = {tool} ] && exit 9\nexec'))
    assert place.run("sanitize").returncode == code
    told = (place.out / "sanitize.txt").read_text().splitlines()
    ends = {one: 9 if one == tool else 0 for one in TOOLS}
    assert sorted(line for line in told if ": ended" in line) == sorted(f"{t}: ended with {n}" for t, n in ends.items())


def test_refusals(place: Place) -> None:
    done = place.run("chekc")
    assert done.returncode == 2
    assert done.stderr == f"on_gpu.sh: no step chekc; need some of {' '.join(STEPS)}\n"
    for words, seconds, message in (
        ([], "9", "got nothing, need a directory for logs and records: on_gpu.sh OUT [STEP ...]"),
        (["--help"], "9", "got --help, need a directory for logs and records: on_gpu.sh OUT [STEP ...]"),
        ([str(place.out)], "2.5", "ON_GPU_SECONDS: got 2.5, need a whole number of seconds"),
    ):
        environment = {**os.environ, "SAEKERNELS_REHEARSAL": "1", "ON_GPU_SECONDS": seconds}
        done = subprocess.run(
            ["bash", str(BENCHMARKS / "on_gpu.sh"), *words], env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (2, f"on_gpu.sh: {message}\n")
    assert not place.out.exists()
    if shutil.which("nvidia-smi") is None:
        (place.programs / "nvidia-smi").unlink()
        done = place.run()
        assert done.returncode == 2
        assert done.stderr.startswith("on_gpu.sh: no nvidia-smi, so no NVIDIA GPU here; SAEKERNELS_REHEARSAL=1 goes")
        assert place.calls() == []

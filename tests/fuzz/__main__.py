"""The fuzzer: every public op against its oracle, every reader against damaged files.

    python tests/fuzz --cases 100000                          # some twenty minutes on 2 cores
    python tests/fuzz --minutes 1                             # what CI runs
    python tests/fuzz --seed 7 --case 1234 --only decode_csr  # one case again, in this process
    python tests/fuzz --sanitize --cases 5000                 # ops alone, native code with ASan and UBSan

Any outcome but a right answer or a typed error that names the argument or file is a failure: another exception, a wrong
value, a crash, or more than half a minute. Exit code 1 if there is one, each with the command that repeats it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
# As pytest has it; `fuzz` is then a package.
sys.path[:0] = [str(_TESTS / one) for one in ("", "helpers", "helpers/subjects")]


def positive(kind: type) -> Callable[[str], float]:
    """An argument's type: a number above 0."""

    def parse(text: str) -> float:
        value: float = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"need a number above 0, got {text}")
        return value

    return parse


def main() -> int:
    from fuzz import engine, sanitize
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=positive(int), default=100_000)
    parser.add_argument("--minutes", type=positive(float), default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this case alone")
    parser.add_argument("--only", choices=TARGETS, nargs="+", default=list(TARGETS))
    parser.add_argument("--workers", type=positive(int), default=os.cpu_count() or 1)
    parser.add_argument("--sanitize", action="store_true")
    arguments = parser.parse_args()
    if arguments.sanitize:
        return sanitize.run([argument for argument in sys.argv[1:] if argument != "--sanitize"])
    if arguments.case is not None:
        for name in arguments.only:
            print(f"{name}: {engine.one(TARGETS[name], name, arguments.seed, arguments.case)}")
        return 0
    return engine.run(arguments.only, arguments.seed, arguments.cases, arguments.minutes * 60, arguments.workers)


if __name__ == "__main__":
    sys.exit(main())

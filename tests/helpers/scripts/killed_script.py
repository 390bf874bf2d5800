"""The tiny model's evaluation in a folder, which goes on there, for tests/eval/store/test_resume.py.

Arguments: the folder, or "" for none; the step a moment after which the process is killed, or 0. Prints the number of
each step, and at the end the figures as JSON.
"""

from __future__ import annotations

import json
import signal
import sys

import torch

import interrupted

torch.set_num_threads(1)
interrupted.in_small_chunks(40)
folder, steps = sys.argv[1:]
kill = interrupted.after(int(steps), lambda: signal.setitimer(signal.ITIMER_REAL, 0.002))  # and on it goes until then


def progress(done: int, total: int) -> None:
    print(done, flush=True)
    kill(done, total)


report = interrupted.run(folder or None, bootstrap=50, progress=progress)
print(json.dumps(interrupted.figures(report), sort_keys=True))

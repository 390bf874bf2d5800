"""What the command line prints and writes, in which order, and what happens when that fails."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import ranks
import saekernels
from cli import SITE, arguments, fails
from saekernels.cli import main
from saekernels.eval.passes.runner import Runner


@pytest.mark.parametrize("option", ["json", "html"])
@pytest.mark.parametrize("how", ["itself", "link", "in a directory"])
def test_data_are_never_overwritten(
    option: str,
    how: str,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "texts" / "eval.jsonl.gz"
    data.parent.mkdir()
    data.write_bytes(files["data"].read_bytes())
    link = tmp_path / "link"
    link.symlink_to(data)
    source, target = {"itself": (data, data), "link": (data, link), "in a directory": (data.parent, data)}[how]
    line = fails(capsys, arguments(files, data=[source], **{option: [target]}))
    assert f"--{option}: {target} is the file {data} of --data" in line
    assert data.read_bytes() == files["data"].read_bytes()


def test_the_table_comes_before_the_files_and_stays_when_one_fails(
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from saekernels.cli.options import report_files

    genuine, printed = report_files.write_whole, []

    def one_fails(path: str, text: str) -> None:
        printed.append(capsys.readouterr().out)
        if path.endswith("o.json"):
            raise saekernels.eval.InputError(f"cannot write {path}: No space left on device")
        genuine(path, text)

    monkeypatch.setattr(report_files, "write_whole", one_fails)
    paths = {name: tmp_path / f"o.{name}" for name in ("json", "html")}
    assert main(arguments(files, json=[paths["json"]], html=[paths["html"]], tokens=["200"])) == 2
    err = capsys.readouterr().err
    assert "Splicing all 2 SAEs together" in printed[0]
    assert printed[1] == ""
    message = f"cannot write {paths['json']}: No space left on device; {paths['html']} was written"
    assert err.splitlines()[-1] == f"saekernels eval: error: {message}"
    assert os.listdir(tmp_path) == ["o.html"]


def test_nothing_is_written_unless_all_can_be_rendered(
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from saekernels.cli.options import report_files

    monkeypatch.setattr(report_files, "page", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(arguments(files, json=[tmp_path / "o.json"], html=[tmp_path / "o.html"], tokens=["200"]))
    assert os.listdir(tmp_path) == []


def test_ctrl_c_between_the_files_says_what_was_written(
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from saekernels.cli.options import report_files

    genuine = report_files.write_whole

    def interrupted(path: str, text: str) -> None:
        if path.endswith("o.html"):
            raise KeyboardInterrupt
        genuine(path, text)

    monkeypatch.setattr(report_files, "write_whole", interrupted)
    argv = arguments(files, json=[tmp_path / "o.json"], html=[tmp_path / "o.html"], tokens=["200"])
    assert main(argv) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"saekernels eval: interrupted, {tmp_path}/o.json was written"


def test_json_into_a_pipe(
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()), daemon=True)
    reader.start()
    assert main(arguments(files, json=[pipe], tokens=["200"])) == 0
    reader.join(timeout=10)
    assert json.loads(got[0])["schema"] == 1
    assert pipe.is_fifo()


UNWRITABLE = """
import os, runpy, sys
import saekernels.cli
reader, sys.argv[1:] = sys.argv[1], sys.argv[2:]
if reader == "gone":
    out, stdout = os.pipe()
    os.close(out)
else:
    stdout = os.open(os.devnull, os.O_RDONLY)
os.dup2(stdout, 1)
runpy.run_module("saekernels", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("command", "reader"),
    [
        (["--version"], "gone"),
        (["info"], "never there"),
        *(pytest.param(["eval"], reader, marks=pytest.mark.slow) for reader in ("gone", "never there")),
    ],
    ids=str,
)
def test_stdout_that_cannot_be_written(
    command: list[str],
    reader: str,
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    report = tmp_path / "o.json"
    argv = arguments(files, json=[report], tokens=["200"]) if command == ["eval"] else command
    code, _, err = ranks.alone(UNWRITABLE, reader, *argv, dismantled=True)
    said = [line for line in err.splitlines() if "tokens/s" not in line]
    if reader == "gone":
        assert (code, said) == (141, [])
    else:
        name = " ".join(["saekernels", *(part for part in command if part.isalpha())])
        assert code == 1
        assert said == [f"{name}: error: cannot write to stdout: Bad file descriptor"]
    assert report.exists() == (command == ["eval"]), "the files are written all the same"


def test_a_closed_stdout_is_an_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == "saekernels info: error: cannot write to stdout: it is closed\n"


def test_files_are_written_where_nobody_can_see_the_text(
    good: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    writes = ["generate", "Some", "--max-new-tokens", "2", "--model", str(good["model"])]
    writes += ["--sae", f"{SITE}={good[SITE]}"]
    for number, argv in enumerate([writes, ["plan", "--latents", "1000", "--tokens", "1e6"]]):
        file = tmp_path / f"{number}.json"
        assert main([*argv, "--json", str(file)]) == 1
        assert json.loads(file.read_text())


def test_a_message_is_one_line_whatever_the_names_in_it(
    files: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "error: --data: two lines.txt does not exist" in fails(capsys, arguments(files, data=["two\nlines.txt"]))


def test_an_unwritable_stderr_does_not_cost_the_files(
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full:
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None: ...

        def isatty(self) -> bool:
            return False

    genuine = Runner.run

    def then_full(*given: Any) -> None:
        genuine(*given)
        monkeypatch.setattr(sys, "stderr", Full())

    monkeypatch.setattr(Runner, "run", then_full)
    assert main(arguments(files, json=[tmp_path / "o.json"], tokens=["200"])) == 0
    assert os.listdir(tmp_path) == ["o.json"]


def interruptible(argv: list[str], **options: Any) -> Any:
    """What a command says where Ctrl-C is not ignored, as it is for what a shell runs in the background."""
    code = "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nos.execv(sys.argv[1], sys.argv[1:])"
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False, **options)


def test_ctrl_c_during_the_imports(tmp_path: Path) -> None:
    """A package `saekernels` that interrupts itself while it is imported, and hides that as imports may."""
    spec = importlib.util.find_spec("saekernels_command")
    assert spec is not None
    assert spec.origin is not None
    (tmp_path / "saekernels_command.py").write_bytes(Path(spec.origin).read_bytes())
    (tmp_path / "saekernels").mkdir()
    interrupt = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    (tmp_path / "saekernels" / "__init__.py").write_text(interrupt + "raise ImportError\n")
    argv = [sys.executable, "-c", "import sys, saekernels_command; sys.exit(saekernels_command.main())"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = interruptible(argv, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "saekernels: interrupted, nothing was written\n"


def test_the_command_runs_what_the_package_does() -> None:
    code = "import signal, sys, saekernels_command as c; sys.argv[1:] = ['--version']\n"
    code += "try:\n    c.main()\nfinally:\n    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
    done = interruptible([sys.executable, "-c", code])
    assert done.stdout == f"saekernels {saekernels.__version__}\nTrue\n"

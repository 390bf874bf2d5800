"""What is written: files that are checked before the work; the report of `saekernels eval` on the terminal, too."""

from __future__ import annotations

import argparse

from saekernels.cli.options.output import say_finished, show, show_written, shown
from saekernels.display.charts import require_matplotlib
from saekernels.errors import InputError
from saekernels.eval import Report
from saekernels.eval.report.page import page
from saekernels.eval.report.terminal import as_text
from saekernels.eval.store.run_folder import check_folder
from saekernels.eval.text.sources import files_of
from saekernels.files.checked import check_writable, same_file, write_whole


def check_outputs(arguments: argparse.Namespace) -> None:
    """Before the hours of work: can the results be written at all, and over nothing that is read?"""
    html = getattr(arguments, "html", None)
    outputs = {"--json": arguments.json, "--html": html}
    given = {option: path for option, path in outputs.items() if path}
    for option, path in given.items():
        check_writable(path, option)
        for file in (file for source in arguments.data for file in files_of(source)):
            if same_file(path, file):
                raise InputError(f"{option}: {path} is the file {file} of --data; it would be overwritten")
    if len(given) == 2 and same_file(arguments.json, arguments.html):
        raise InputError(f"--json and --html: both are {arguments.json}")
    check_folder(getattr(arguments, "checkpoint", None))
    if html:
        require_matplotlib()


def deliver(report: Report, failures: list[str], arguments: argparse.Namespace) -> int:
    """Show the report and write its files."""
    say_finished(report.tokens, report.run["passes"], report.run["seconds"])
    with shown(as_text(report)):
        _write(report, arguments)
    say_where(arguments, "saekernels compare A.json B.json reads two of these")
    if failures:
        raise InputError(f"{'; '.join(failures)}; the report is without that part")
    return 0


def say_where(arguments: argparse.Namespace, json_is: str) -> None:
    """What was written, and how to open it; json_is: what the JSON is for."""
    files = (
        (arguments.html, "open it in a browser"),
        (arguments.json, json_is),
        (arguments.checkpoint, "the same command goes on from here, or shows the same report at once"),
    )
    if any(path for path, _ in files):
        show_written(files)
    else:
        show("\nNothing was written; --html page.html writes a page with plots, --json report.json the figures.\n")


def _write(report: Report, arguments: argparse.Namespace) -> None:
    """Both files, once both are rendered; a place that fails does not keep the other from being written."""
    texts = {arguments.json: report.to_json()} if arguments.json else {}
    if arguments.html:
        texts[arguments.html] = page(report)
    written: list[str] = []
    failures: list[str] = []
    try:
        for path, text in texts.items():
            try:
                write_whole(path, text)
                written.append(path)
            except InputError as error:
                failures.append(str(error))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_written(written)) from None
    if failures:
        folder = arguments.checkpoint
        kept = [f"all figures are in {folder}, and the same command with another place writes them"] if folder else []
        raise InputError("; ".join([*failures, _written(written), *kept]))


def _written(paths: list[str]) -> str:
    return f"{' and '.join(paths) or 'nothing'} was written"

"""``alws compare RUN [RUN …]`` and ``alws compare --plan FILE [--run]``."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from callbacks.figure import to_png
from callbacks.results import FILE as RESULTS
from lightning_alws.comparison.chart import draw_chart
from lightning_alws.comparison.checks import check_comparable
from lightning_alws.comparison.groups import group
from lightning_alws.comparison.plan import Resolve, read_plan, states
from lightning_alws.comparison.records import find_runs, read_record, why_left_out
from lightning_alws.comparison.running import STOPPED, alone, run_all, terminations_as_interrupts
from lightning_alws.comparison.side_by_side import draw_samples
from lightning_alws.comparison.table import Table, choose_metrics
from lightning_alws.errors import UserError
from lightning_alws.files import atomic_write

FOLDER = "comparison"
DESCRIPTION = (
    "Compare tested runs by the figures in their results.json: a table (terminal, Markdown, CSV), a chart, and a "
    "picture of samples side by side. Runs that differ in their seed alone are one method, with mean and standard "
    "deviation. Figures made on different data, with different extractors or counts are refused."
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see alws compare --help.")


def parser() -> argparse.ArgumentParser:
    """The options of ``alws compare``."""
    options = _Parser(prog="alws compare", description=DESCRIPTION, allow_abbrev=False)
    options.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders, or a folder that holds some")
    options.add_argument("--out", type=Path, help=f"folder of the files; by default {FOLDER}/ beside the runs")
    options.add_argument(
        "--metrics",
        metavar="NAMES",
        help="figures to compare, such as test/fid_means,test/kid_means",
    )
    options.add_argument("--plan", type=Path, metavar="FILE", help="a plan of runs: list what is done and missing")
    options.add_argument("--run", action="store_true", help="run what the plan misses, then compare")
    options.add_argument("--only", metavar="LABELS", help="methods of the plan, by commas")
    options.add_argument("--max-minutes", type=float, help="stop the training at work after so many, to be resumed")
    return options


def compare(arguments: Sequence[str], resolve: Resolve) -> int:
    """The command; returns the exit status: 0, 1 if a planned run failed or was left, 130 after Ctrl-C.

    Args:
        arguments: those after ``compare``.
        resolve: the configuration that arguments of ``alws fit`` amount to.

    Raises UserError for a mistake, and where figures cannot be compared.
    """
    given = parser().parse_args(arguments)
    for option in ("run", "only", "max_minutes"):
        if getattr(given, option) and given.plan is None:
            raise UserError(f"--{option.replace('_', '-')} is given, but no plan; add --plan FILE.")
    metrics = None if given.metrics is None else [name.strip() for name in given.metrics.split(",") if name.strip()]
    if metrics == []:
        raise UserError("--metrics names no figure; give some, such as test/fid_means, or leave it out.")
    if given.plan is None:
        if not given.runs:
            raise UserError("alws compare needs run folders, or --plan FILE; see alws compare --help.")
        report(find_runs(given.runs), metrics, given.out)
        return 0
    if given.runs:
        raise UserError(f"both runs ({given.runs[0]}) and --plan are given; a plan names its own runs: leave one out.")
    return _follow(given, metrics, resolve)


def _follow(given: argparse.Namespace, metrics: Sequence[str] | None, resolve: Resolve) -> int:
    """List a plan's runs, or run them and compare."""
    planned = read_plan(given.plan)
    labels = list(dict.fromkeys(run.label for run in planned))
    if given.only is not None:
        wanted = [label.strip() for label in given.only.split(",")]
        if unknown := [label for label in wanted if label not in labels]:
            raise UserError(
                f"--only names {unknown[0]}, which is no method of the plan; there are {', '.join(labels)}."
            )
        planned = [run for run in planned if run.label in wanted]
    if given.max_minutes is not None and not given.max_minutes > 0:
        raise UserError(f"--max-minutes is {given.max_minutes:g}; give more than 0.")
    found = list(zip(planned, states(planned, resolve), strict=True))
    waiting = [(run, state) for run, state in found if state.command]
    stuck = [f"{run.folder}: {state.reason}" for run, state in found if state.name == "stuck"]
    if not given.run:
        for run, state in found:
            print(f"{state.name:8} {run.folder}" + (f" ({state.reason})" if state.reason else ""))
            if state.command:
                print(f"         alws {shlex.join(state.command)}")
        print(f"{sum(state.name == 'done' for _, state in found)} of {len(found)} runs are done.")
        return 0
    failures: list[str] = []
    complete = True
    if waiting:
        with alone(planned[0].folder.parent), terminations_as_interrupts():
            try:
                failures, complete = run_all(waiting, given.max_minutes)
            except KeyboardInterrupt:
                print("alws: stopped; the same command goes on from here", file=sys.stderr)
                return STOPPED
    if not complete:
        print(
            f"alws: --max-minutes {given.max_minutes:g} are over; the same command goes on from here", file=sys.stderr
        )
    for failure in [*failures, *stuck]:
        print(f"alws: {failure}", file=sys.stderr)
    # A run that is stuck has other settings than its method, or nothing to show.
    folders = {
        run.folder: run.label for run, state in found if state.name != "stuck" and (run.folder / RESULTS).exists()
    }
    if folders:
        report(list(folders), metrics, given.out, folders)
    return 1 if failures or stuck or not complete else 0


def report(
    folders: Sequence[Path],
    metrics: Sequence[str] | None = None,
    out: Path | None = None,
    labels: Mapping[Path, str] | None = None,
) -> None:
    """Print the table of some runs, and write it, the chart and the picture.

    Args:
        folders: run folders.
        metrics: figures to compare; None for the usual ones.
        out: folder of the files; None for ``comparison/`` beside the runs.
        labels: names of the methods by run folder; None for names read off the runs.

    Raises UserError where nothing is left to compare, or figures cannot be.
    """
    records = [read_record(folder) for folder in folders]
    tested = [record for record in records if record.tested]
    left_out = [f"{record.folder}, {why_left_out(record)}" for record in records if not record.tested]
    if not tested:
        raise UserError(f"none of the runs is tested ({'; '.join(left_out[:3])}); run them to their end first.")
    chosen = choose_metrics(tested, metrics)
    check_comparable(tested, chosen)
    table = Table(group(tested, labels), chosen, left_out)
    samples, notes = draw_samples(table.methods)
    print(table.terminal(shutil.get_terminal_size((160, 24)).columns))
    for note in notes:
        print(note)
    out = default_out(folders) if out is None else out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out is {out}, which is a file; give a folder.")
    files: dict[str, bytes | None] = {
        "comparison.md": table.markdown().encode(),
        "comparison.csv": table.csv().encode(),
        "comparison.png": to_png(draw_chart(table)) if chosen else None,
        "samples.png": samples,
    }
    for name, content in files.items():
        if content is None:
            (out / name).unlink(missing_ok=True)  # of a comparison before this one
            continue
        with atomic_write(out / name) as file:
            file.write(content)
    print(f"Table, chart and picture are in {out}: {', '.join(name for name, part in files.items() if part)}")


def default_out(folders: Sequence[Path]) -> Path:
    """``comparison/`` in the folder that holds all the runs; in the current one where they lie in several."""
    parents = {folder.resolve().parent for folder in folders}
    common = Path(os.path.commonpath(parents))
    if common not in parents:
        return Path(FOLDER)
    here = Path.cwd()
    return (common.relative_to(here) if common.is_relative_to(here) else common) / FOLDER

"""A series of one's own on the command line: it runs, or ends in one sentence and exit status 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import CONFIGS, main

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
SMALL = ["--model.learning.sleep_samples", "30", "--model.learning.held_out", "20", "--trainer.fast_dev_run", "2"]
COLUMNS = ["--data.columns", "[a, b]"]


def voltage(rows: int = 100, step: float = 0.05, current: str = "10") -> str:
    return "time,voltage,current\n" + "".join(f"{step * t:.6g},{-70 + t % 7},{current}\n" for t in range(rows))


def counts(rows: int = 60) -> str:
    return "day_index,count\n" + "".join(f"{2 * t},{100 + 37 * t % 90}\n" for t in range(rows))


def two(rows: int = 90) -> str:
    return "a,b\n" + "".join(f"{t * 7 % 5 - 2},{t * 3 % 11 / 5}\n" for t in range(rows))


def run(experiment: str, text: str, options: list[str], folder: Path) -> int:
    file = folder / "mine.csv"
    file.write_text(text)
    config = CONFIGS / "experiments" / f"{experiment}.yaml"
    arguments = ["fit", "--config", str(config), "--runs", str(folder / "runs"), "--data.path", str(file)]
    return main([*arguments, *SMALL, *QUIET, *options])


@pytest.mark.parametrize(
    ("experiment", "text", "options"),
    [
        ("hodgkin_huxley", voltage(), []),
        ("blowfly", counts(), []),
        ("linear_dynamics", two(), [*COLUMNS, "--data.validation_size", "1", "--data.test_size", "1"]),
        ("sinusoid", two(), [*COLUMNS, "--data.sequences", "3"]),
    ],
)
def test_it_runs(experiment: str, text: str, options: list[str], tmp_path: Path) -> None:
    assert run(experiment, text, options, tmp_path) == 0


@pytest.mark.parametrize(
    ("experiment", "text", "options", "message"),
    [
        ("hodgkin_huxley", voltage(current="nan"), [], "column 'current' holds 'nan' in row 1"),
        ("hodgkin_huxley", "time,voltage\n0,-70\n0.05,-70\n", [], "no column 'current'"),
        ("hodgkin_huxley", voltage(step=-0.05), [], "give rows in order of time"),
        ("hodgkin_huxley", voltage(step=1.0), [], "runs away beyond 1 V"),
        ("hodgkin_huxley", voltage(step=5e-5), [], "as if in seconds"),
        ("hodgkin_huxley", voltage(1), [], "one row only"),
        ("hodgkin_huxley", voltage(20), [], "give a longer trace"),
        ("blowfly", "", [], "is empty"),
        ("blowfly", counts(15), [], "model.lags is 20, for series of 15 counts"),
        ("blowfly", counts().replace("count", "flies"), [], "no column 'count'"),
        ("blowfly", "count\n" + "5\n" * 60, [], "the number 5 at every time"),
        ("linear_dynamics", two(20), COLUMNS, "leave none for training"),
        ("linear_dynamics", two(), [], "data.columns names none"),
        ("linear_dynamics", two(), ["--data.columns", "a"], "Expected list"),
        ("sinusoid", two().replace("-1,", "many,"), COLUMNS, "column 'a' holds 'many'"),
        ("sinusoid", two(), [*COLUMNS, "--data.steps", "40"], "data.sequences 30 of data.steps 40 need 1200"),
        (
            "sinusoid",
            two(),
            [*COLUMNS, "--data.sequences", "30", "--data.steps", "3"],
            "window.past is 3, but series have 3 points",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    experiment: str, text: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(experiment, text, options, tmp_path) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("alws: ")
    assert message in said[-1]
    assert not any("Traceback" in line for line in said)
    assert not (tmp_path / "runs").exists()

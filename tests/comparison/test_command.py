"""``alws compare`` as a user meets it: files, what is left out, mistakes, and one plan of real runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from fake_runs import fake_run

from cli import main
from lightning_alws.comparison import running

VAE = {"model.class_path": "lightning_alws.baselines.VAE"}
FILES = ["comparison.csv", "comparison.md", "comparison.png", "samples.png"]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same terminal for everyone: tables that are wider than it are printed in two parts."""
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for seed in (0, 1):
        fake_run(folder / f"al-seed{seed}", seed, {"test/log_likelihood": -22.0 - seed}, images=True)
    fake_run(folder / "vae", config=VAE, images=True)
    return folder


def compare(*arguments: object) -> int:
    return main(["compare", *map(str, arguments)])


def test_writes_the_four_files_beside_the_runs(runs: Path, capsys) -> None:
    assert compare(runs) == 0
    out = capsys.readouterr().out
    assert "−22.50 ± 0.71" in out
    assert f"are in {runs / 'comparison'}: comparison.md" in out
    assert sorted(file.name for file in (runs / "comparison").iterdir()) == FILES
    assert all(file.stat().st_size > 100 for file in (runs / "comparison").iterdir())
    assert compare(runs) == 0  # its own folder is no run


def test_out_and_metrics(runs: Path, tmp_path: Path, capsys) -> None:
    assert compare(runs / "vae", runs / "al-seed0", "--out", tmp_path / "a" / "b", "--metrics", "fid_means") == 0
    assert sorted(file.name for file in (tmp_path / "a" / "b").iterdir()) == FILES
    lines = capsys.readouterr().out.splitlines()
    assert "log-likelihood" not in lines[0]
    assert [line.split()[0] for line in lines[2:4]] == ["vae", "al"]  # in the given order


def test_runs_in_several_folders_are_compared_in_the_current_one(runs: Path, tmp_path: Path, monkeypatch) -> None:
    other = fake_run(tmp_path / "elsewhere" / "vae2", 5, config=VAE)
    monkeypatch.chdir(tmp_path)
    assert compare(runs / "vae", other) == 0
    assert (tmp_path / "comparison" / "comparison.md").exists()


def test_one_run_is_a_table_of_one_and_twice_the_same_is_one(runs: Path, capsys) -> None:
    assert compare(runs / "vae", runs / "vae") == 0
    assert capsys.readouterr().out.splitlines()[2].split()[:2] == ["vae", "1"]


def test_runs_that_are_not_tested_are_named_and_left_out(runs: Path, capsys) -> None:
    fake_run(runs / "bad", results={"status": "failed", "error": "ValueError: no"}, config=VAE)
    fake_run(runs / "slow", 1, results={"status": "running"}, config=VAE)
    assert compare(runs) == 0
    out = capsys.readouterr().out
    assert f"left out: {runs / 'bad'}, failed (ValueError: no)." in out
    assert f"left out: {runs / 'slow'}, running, or cut off." in out
    assert compare(runs / "bad", runs / "slow") == 2
    assert "none of the runs is tested" in capsys.readouterr().err


def test_pictures_of_before_do_not_stay(runs: Path) -> None:
    assert compare(runs) == 0
    for file in runs.glob("*/samples/test.npz"):
        file.unlink()
    assert compare(runs) == 0
    assert not (runs / "comparison" / "samples.png").exists()


MISTAKES = [
    ([], "alws compare needs run folders, or --plan FILE"),
    (["no/such"], "there is no folder no/such"),
    (["RUNS/vae/results.json"], "is a file; give the run folder"),
    (["RUNS", "--run"], "--run is given, but no plan; add --plan FILE"),
    (["RUNS", "--only", "vae"], "--only is given, but no plan"),
    (["RUNS", "--plan", "x.yaml"], "and --plan are given"),
    (["--plan", "no/such.yaml"], "the plan no/such.yaml cannot be read (No such file or directory)"),
    (["RUNS", "--metrics", "test/nothing"], "no run has the figure test/nothing"),
    (["RUNS", "--metrics", ","], "--metrics names no figure"),
    (["RUNS", "--colour", "red"], "unrecognized arguments: --colour red; see alws compare --help"),
    (["RUNS", "--out", "RUNS/vae/results.json"], "--out is RUNS/vae/results.json, which is a file"),
    (["RUNS", "--out", "/dev/null/x"], "see that --out names a folder that can be written to"),
    (["--plan", "x.yaml", "--max-minutes", "soon"], "invalid float value: 'soon'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(case[0]) for case in MISTAKES])
def test_mistakes_end_in_one_sentence(runs: Path, capsys, arguments: list[str], message: str) -> None:
    assert compare(*(argument.replace("RUNS", str(runs)) for argument in arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("alws: ")
    assert message.replace("RUNS", str(runs)) in lines[0]


def test_a_refusal_writes_nothing(runs: Path, capsys) -> None:
    fake_run(runs / "odd", 4, provenance={"fid_kid.extractor_hash": "ffff"})
    assert compare(runs) == 2
    assert (
        "fid_kid.extractor_hash is 0c36df780630 in al-seed0, al-seed1, vae, but ffff in odd" in capsys.readouterr().err
    )
    assert not (runs / "comparison").exists()


def test_help(capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["compare", "--help"])
    assert exit_.value.code == 0
    assert "usage: alws compare" in capsys.readouterr().out


class InProcess:
    """A training run by :func:`cli.main` here instead of in a process, which would import everything anew."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.status = main(list(arguments))

    def wait(self, timeout: float | None = None) -> int:
        return self.status


@pytest.mark.slow
def test_a_plan_of_real_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """One run is made in part by hand, and is continued; the other begins."""
    monkeypatch.setattr(running, "start", InProcess)
    plan = {
        "runs": str(tmp_path / "runs"),
        "seeds": [0, 1],
        "overrides": {
            "model.latent_dim": 2, "model.decoder.hidden": [8], "model.learning.sleep_samples": 40,
            "model.learning.held_out": 20, "trainer.max_steps": 4, "trainer.val_check_interval": 2,
            "trainer.enable_progress_bar": False, "trainer.enable_model_summary": False,
            "log_likelihood.num_samples": 500, "log_likelihood.val_samples": 50, "log_likelihood.method": "prior",
            "fid_kid.kid_subsets": 2,
        },
        "methods": [{"config": "configs/quickstart.yaml"}],
    }  # fmt: skip
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    assert compare("--plan", path) == 0
    first = next(line for line in capsys.readouterr().out.splitlines() if "alws fit" in line).split()[1:]
    options = [option.strip("'") for option in first if "hidden" not in option]
    assert main([*options, "--model.decoder.hidden=[8]", "--test_after_fit=false"]) == 0
    assert compare("--plan", path, "--run") == 0
    out = capsys.readouterr().out
    assert "[1/2]" in out
    assert "quickstart-seed0 --ckpt_path=last" in out
    results = [
        json.loads((tmp_path / "runs" / f"quickstart-seed{seed}" / "results.json").read_text()) for seed in (0, 1)
    ]
    assert [(one["status"], one["seed"], one["training"]["steps"]) for one in results] == [
        ("tested", 0, 4),
        ("tested", 1, 4),
    ]
    values = [one["metrics"]["test/log_likelihood"] for one in results]
    assert f"{sum(values) / 2:.2f}"[1:5] in out
    assert sorted(file.name for file in (tmp_path / "runs" / "comparison").iterdir()) == FILES
    assert compare("--plan", path) == 0
    assert "2 of 2 runs are done." in capsys.readouterr().out

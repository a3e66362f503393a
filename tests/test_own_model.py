"""The README's page on a model of one's own, word for word: its files, in a folder outside this repository."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from cli import main

README = Path(__file__).parents[1] / "README.md"
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def blocks() -> list[str]:
    """The indented blocks of the page."""
    page = README.read_text().split("## Your own model")[1].split("\n## ")[0]
    found = re.findall(r"(?:^(?:    .*)?\n)+", page, flags=re.MULTILINE)
    return [textwrap.dedent(block).strip() + "\n" for block in found if block.strip()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files and 3 000 measurements of 8 genes that are on with probability 0.3, gain 1."""
    model, config, *_ = blocks()
    (tmp_path / "my_model.py").write_text(model)
    (tmp_path / "own.yaml").write_text(config)
    generator = np.random.default_rng(0)
    x = generator.binomial(8, 0.3, size=(3000, 1)) + 0.25 * generator.normal(size=(3000, 1))
    np.savetxt(tmp_path / "expression.csv", x, delimiter=",", header="level", comments="")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path  # type: ignore[misc]
    sys.modules.pop("my_model", None)


def fit(*more: str) -> int:
    return main(["fit", "--config", "own.yaml", *QUIET, *more])


def results(folder: Path, name: str = "own-Table") -> dict:
    return json.loads((folder / "runs" / name / "results.json").read_text())


def test_the_page_works_word_for_word(folder: Path) -> None:
    """Trained, resumed, tested and predicted with; the gain moves from 0.5 towards 1."""
    short = ["--trainer.val_check_interval", "20", "--model.learning.sleep_samples", "300"]
    assert fit("--trainer.max_steps", "40", *short) == 0
    assert fit("--trainer.max_steps", "80", "--ckpt_path", "last", *short) == 0
    found = results(folder)
    assert found["status"] == "tested"
    assert found["training"]["steps"] == 80
    assert found["metrics"]["parameters/gain"] > 0.55
    predict = ["predict", "--config", "own.yaml", "--ckpt_path", "last", *QUIET]
    assert main([*predict, "--predictions.function", "torch.square"]) == 0
    posterior = np.load(folder / "runs" / "own-Table" / "predictions" / "posterior.npz")
    assert posterior["latent_means"].shape == posterior["expectations"].shape == (64, 1)
    # More genes are on where more is measured.
    assert np.corrcoef(posterior["latent_means"][:, 0], posterior["observations"][:, 0])[0, 1] > 0.9


@pytest.mark.slow
def test_it_trains_on_two_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a forked process must not wait for threads it has not inherited
    torch.set_num_threads(1)
    small = ["--model.learning.sleep_samples", "50", "--trainer.max_steps", "4", "--trainer.val_check_interval", "2"]
    assert fit(*small, "--trainer.strategy", "ddp_fork", "--trainer.devices", "2", "--trainer.accelerator", "cpu") == 0
    assert results(folder)["machine"]["processes"] == 2


def test_a_mistake_in_it_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = (folder / "my_model.py").read_text()
    (folder / "my_model.py").write_text(model.replace(".sum(-1)", ""))
    assert fit() == 2
    assert "Switches gives a log p(z, x) of shape (6, 1) for 6 samples" in capsys.readouterr().err
    assert not (folder / "runs").exists()

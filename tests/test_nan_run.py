"""A run that NaNs end is recorded as failed, with its error, and ends in one sentence and a status that is not 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_interruption import DIGITS, FEW, LESS

from cli import CONFIGS, main

AL, VAE = (["--config", str(CONFIGS / file)] for file in ("quickstart.yaml", "images/vae.yaml"))
FIRST = 7  # after a validation, and so after a checkpoint


@pytest.mark.filterwarnings("ignore:step .* skipped")
@pytest.mark.parametrize(
    ("method", "allowed"),
    [
        pytest.param([*AL, *FEW, "--model.learning.max_skipped", "2"], 2, marks=pytest.mark.slow),
        # The first NaN ends the run.
        pytest.param([*AL, *FEW, "--model.learning.max_skipped", "0"], 0, marks=pytest.mark.slow),
        pytest.param([*VAE, *DIGITS], 20, marks=pytest.mark.slow),
        pytest.param(
            [*AL, *FEW, "--model.learning.max_skipped", "1", "--trainer.accelerator", "cpu", "--trainer.devices", "2",
             "--trainer.strategy", "ddp_fork"], 1, marks=pytest.mark.slow,
        ),
    ],
    ids=["AL", "AL, none allowed", "VAE", "AL, one of two processes"],
)  # fmt: skip
def test_it_has_failed_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, method: list[str], allowed: int
) -> None:
    two = "ddp_fork" in method
    if two:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a forked process must not wait for threads it has not inherited
        torch.set_num_threads(1)
    spoil = {"class_path": "runs.SpoilBatches", "init_args": {"first": FIRST, "rank": int(two)}}
    run = ["fit", *method, *LESS, "--runs", str(tmp_path), "--name", "run"]
    assert main([*run, "--trainer.max_steps", "40", "--trainer.callbacks", json.dumps([spoil])]) == 2
    said = capsys.readouterr().err
    (sentence,) = (line.removeprefix("alws: ") for line in said.splitlines() if line.startswith("alws: "))
    assert sentence == said.strip().splitlines()[-1].removeprefix("alws: ")
    many = f"{allowed + 1} steps in a row were" if allowed else "1 step was"
    # Of two processes the one whose error is heard first speaks, and the other sees the NaN in the averaged gradient.
    reasons = ["the loss is nan", *["the gradient of generative.decoder.net.0.0.weight holds a NaN"] * two]
    begun = f"{many} skipped (step {FIRST + allowed} because "
    assert sentence.startswith(tuple(f"{begun}{reason}); " for reason in reasons))
    assert "learning_rate" in sentence
    if not two:
        assert "Traceback" not in said
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "failed"
    assert results["error"] == f"UserError: {sentence}"
    assert "test/log_likelihood" not in results["metrics"]
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    saved = (FIRST + allowed) // 5 * 5  # at the last validation, every five steps
    assert last["global_step"] == saved
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    # The parent of two processes, who writes that they failed, has seen no step.
    if not two:
        assert results["training"]["steps"] == FIRST + allowed
        assert results["training"]["skipped_steps"] == allowed + 1
    # Without the NaNs it goes on from there, and is no failed run any more.
    assert main([*run, "--ckpt_path", "last", "--trainer.max_steps", str(saved + 5)]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["status"], results["training"]["skipped_steps"]) == ("tested", max(0, saved - FIRST))
    assert "error" not in results

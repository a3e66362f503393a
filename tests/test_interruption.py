"""A run that is ended by a signal is saved, says so, and goes on as if nothing had been."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Images, SendSignal, forked, image_model

from callbacks.checkpoint import RunCheckpoint
from callbacks.signals import Interrupted, SignalWatch
from cli import CONFIGS, main

LESS = ["--model.decoder.hidden", "[8]", "--log_likelihood.num_samples", "500", "--log_likelihood.val_samples", "200",
        "--fid_kid.kid_subsets", "2", "--trainer.enable_progress_bar", "false", "--trainer.max_steps", "20",
        "--trainer.enable_model_summary", "false", "--trainer.val_check_interval", "5"]  # fmt: skip
DIGITS = ["--data", "Digits", "--model.decoder", "MLPDecoder", "--model.latent_dim", "2"]
FEW = ["--model.learning.sleep_samples", "40", "--model.learning.held_out", "20"]
AL_C = ["--config", str(CONFIGS / "quickstart.yaml"), *FEW]
METHODS = {
    "AL-C": AL_C,
    "AL-A": ["--config", str(CONFIGS / "images" / "al_a.yaml"), *DIGITS, *FEW],
    "AL-F": ["--config", str(CONFIGS / "images" / "al_f.yaml"), *DIGITS, *FEW],
    "WGAN-GP": ["--config", str(CONFIGS / "images" / "wgan_gp.yaml"), *DIGITS, "--model.averaging", "0.9",
                "--model.critic", "MLPCritic", "--model.critic.hidden", "[8]", "--data.batch_size", "100"],
    "VAE": ["--config", str(CONFIGS / "images" / "vae.yaml"), *DIGITS, "--model.averaging", "0.9"],
}  # fmt: skip


def state(folder: Path) -> dict[str, Any]:
    """What must be the same in the last checkpoint: all but times, and the callbacks' paths."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "global_step", "lr_schedulers")}


def same(one: Any, two: Any) -> bool:
    """Whether nested containers of tensors are bitwise equal."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(value, two[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a method's run that nobody stopped; made once, when it is first asked for."""
    folder = tmp_path_factory.mktemp("uncut")

    def run(method: str) -> Path:
        if not (folder / method).exists():
            assert main(["fit", *METHODS[method], *LESS, "--runs", str(folder), "--name", method]) == 0
        return folder / method

    return run


@pytest.mark.parametrize(
    ("method", "number", "step"),
    [
        ("AL-C", signal.SIGINT, 3),  # within an epoch of 14 batches
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("WGAN-GP", signal.SIGTERM, 5),  # where a validation is due
                ("AL-C", signal.SIGTERM, 5),
                ("AL-A", signal.SIGUSR1, 14),  # at the end of an epoch
                ("AL-F", signal.SIGTERM, 16),
                ("VAE", signal.SIGTERM, 7),
                ("VAE", signal.SIGUSR1, 10),
                ("WGAN-GP", signal.SIGUSR1, 17),
            ]
        ),
    ],
)
def test_a_signal_saves_and_the_run_goes_on_bitwise(
    uncut: Callable[[str], Path], tmp_path: Path, capsys, method: str, number: int, step: int
) -> None:
    sender = {"class_path": "runs.SendSignal", "init_args": {"number": int(number), "step": step}}
    run = [*LESS, "--runs", str(tmp_path), "--name", "cut"]
    handler = signal.getsignal(number)
    assert main(["fit", *METHODS[method], *run, "--trainer.callbacks", json.dumps([sender])]) == 128 + number
    assert signal.getsignal(number) == handler
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message == (
        f"alws: stopped by {signal.Signals(number).name} after step {step}, which is saved; go on with --ckpt_path "
        "last."
    )
    assert json.loads((tmp_path / "cut" / "results.json").read_text())["status"] == "interrupted"
    assert state(tmp_path / "cut")["global_step"] == step
    config = str(tmp_path / "cut" / "config.yaml")
    assert main(["fit", "--config", config, "--ckpt_path", "last"]) == 0
    assert same(state(uncut(method)), state(tmp_path / "cut"))
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (uncut(method), tmp_path / "cut"))
    for results in (one, two):
        results["metrics"].pop("samples_per_second", None)  # a time
    assert one["metrics"] == two["metrics"]
    assert two["status"] == "tested"


def test_all_processes_end_after_the_same_batch(tmp_path: Path, monkeypatch) -> None:
    """Only the second is sent the signal; none waits for the other."""
    sender = SendSignal(signal.SIGTERM, 3, rank=1)
    run = forked(tmp_path, [sender, RunCheckpoint(None)], monkeypatch, max_steps=20)
    with pytest.raises(Exception, match="stopped by SIGTERM after step 3"):
        run.fit(image_model(), datamodule=Images())
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.slow
def test_forked_processes_end_in_one_sentence(tmp_path: Path, capsys, monkeypatch) -> None:
    """Of their exceptions only printed tracebacks arrive; the exit status and the record are those of one process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a forked process must not wait for threads it has not inherited
    torch.set_num_threads(1)
    sender = {"class_path": "runs.SendSignal", "init_args": {"number": int(signal.SIGTERM), "step": 4, "rank": 1}}
    run = [*METHODS["AL-F"], *LESS, "--runs", str(tmp_path), "--name", "run"]
    two = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
    assert main(["fit", *run, *two, "--trainer.callbacks", json.dumps([sender])]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("alws: stopped by SIGTERM after step 4, which")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "interrupted"
    assert main(["fit", *run, *two, "--ckpt_path", "last", "--checkpoint.monitor", "val/no_such"]) == 2
    assert "checkpoint.monitor is val/no_such" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["error"].startswith("UserError: checkpoint.mon")


def test_the_second_signal_ends_at_once(capfd) -> None:
    watch = SignalWatch()
    before = signal.getsignal(signal.SIGINT)
    watch.start()
    try:
        signal.raise_signal(signal.SIGINT)
        assert watch.received == signal.SIGINT
        assert "SIGINT received; saving after this batch" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        watch.stop()
    assert signal.getsignal(signal.SIGINT) == before


def test_what_an_interruption_says() -> None:
    assert "stopped by SIGUSR1 after step 12" in str(Interrupted(signal.SIGUSR1, 12))

"""A run that is ended by a signal is saved, says so, and goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from runs import Images, SendSignal, forked, image_model, trainer

from callbacks.checkpoint import RunCheckpoint
from callbacks.results import ResultsFile
from callbacks.signals import SIGNALS, Interrupted, SignalWatch
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


@pytest.mark.parametrize("error", [Interrupted(signal.SIGUSR1, 12), Interrupted(signal.SIGTERM, command="predict")])
def test_what_an_interruption_says_is_understood_of_another_process(error: Interrupted) -> None:
    said = Interrupted.said(str(error))
    assert said is not None
    assert (str(said), said.number) == (str(error), error.number)
    assert str(error).startswith(("stopped by SIGUSR1 after step 12, ", "stopped by SIGTERM during the command pred"))
    assert Interrupted.said("something else") is None


class Signalled(pl.Callback):
    """Sends this process a signal in the middle of a command that trains nothing."""

    def __init__(self, number: int) -> None:
        self.number, self.went_on = number, False

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        os.kill(os.getpid(), self.number)
        self.went_on = True

    on_validation_epoch_end = on_test_epoch_end

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.on_test_epoch_end(trainer, pl_module)


@pytest.mark.parametrize(
    ("command", "number"),
    [("test", signal.SIGTERM), ("test", signal.SIGINT), ("validate", signal.SIGUSR1), ("predict", signal.SIGTERM)],
)
def test_a_command_that_trains_nothing_is_stopped_at_once(tmp_path: Path, command: str, number: int) -> None:
    """Behind the last batch too, where Lightning would go on; and the record keeps what it had."""
    model, before = image_model(), [signal.getsignal(one) for one in SIGNALS]
    trainer(tmp_path, [ResultsFile(), RunCheckpoint(None)]).fit(model, datamodule=Images())
    record = json.loads((tmp_path / "results.json").read_text())
    sender = Signalled(number)
    run = trainer(tmp_path, [sender, ResultsFile(), RunCheckpoint(None)])
    with pytest.raises(Interrupted, match=rf"{signal.Signals(number).name} during the command {command}") as raised:
        getattr(run, command)(model, datamodule=Images())
    assert (raised.value.number, sender.went_on) == (number, False)
    assert [signal.getsignal(one) for one in SIGNALS] == before
    after = json.loads((tmp_path / "results.json").read_text())
    assert after["status"] == ("interrupted" if command == "test" else "fitted")
    assert (after["metrics"], after["training"]) == (record["metrics"], record["training"])
    getattr(trainer(tmp_path, [RunCheckpoint(None)]), command)(model, datamodule=Images())
    assert [signal.getsignal(one) for one in SIGNALS] == before


class InValidation(pl.Callback):
    """Sends this process a signal in the validation after a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("step", "ends"), [(2, 3), (4, 4)])
def test_a_signal_in_a_validation_is_obeyed_also_in_the_last(tmp_path: Path, step: int, ends: int) -> None:
    """After the next batch, or where there is none; a test would not begin."""
    run = trainer(tmp_path, [InValidation(signal.SIGTERM, step), ResultsFile(), RunCheckpoint(None)],
                  val_check_interval=2)  # fmt: skip
    with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {ends}"):
        run.fit(image_model(), datamodule=Images())
    assert state(tmp_path)["global_step"] == ends
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "interrupted"
    again = trainer(tmp_path, [ResultsFile(), RunCheckpoint(None)], val_check_interval=2)
    again.fit(image_model(), datamodule=Images(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert state(tmp_path)["global_step"] == 4
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "fitted"


def sigint_as_lightning_ends() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def raises(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "number"),
    [
        (raises(KeyboardInterrupt()), signal.SIGINT),
        (sigint_as_lightning_ends, signal.SIGINT),
        (raises(SIGTERMException()), signal.SIGTERM),
    ],
    ids=["Ctrl-C", "Ctrl-C in Lightning", "SIGTERM in Lightning"],
)
def test_a_command_that_a_signal_ends_on_the_spot_has_the_conventional_status(monkeypatch, capsys, act, number) -> None:
    monkeypatch.setattr("cli.run_lightning", lambda args: act())
    assert main(["fit"]) == 128 + number
    assert capsys.readouterr().err.startswith(f"alws: stopped by {signal.Signals(number).name} at once; ")


def test_a_command_that_ends_by_itself_keeps_its_status(monkeypatch) -> None:
    monkeypatch.setattr("cli.run_lightning", lambda args: sys.exit(0))
    with pytest.raises(SystemExit) as ended:
        main(["fit"])
    assert ended.value.code == 0

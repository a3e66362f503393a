"""A table of bad command lines, configs and files: each ends in one sentence and exit status 2, without a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from cli import CONFIGS, main

QUICKSTART = str(CONFIGS / "quickstart.yaml")
SMALL = ["--model.learning.sleep_samples", "40", "--model.learning.held_out", "20", "--model.decoder.hidden", "[8]",
         "--trainer.val_check_interval", "5", "--log_likelihood.num_samples", "500", "--log_likelihood.val_samples",
         "200", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
         "--trainer.max_steps", "5"]  # fmt: skip


class NoShape(pl.LightningDataModule):
    """A data module of a user who forgot what a model of images needs."""

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(torch.zeros(4, 1, 8, 8), batch_size=2)


# Added to a command line that is right otherwise.
OPTIONS = [
    (["--data", "MNIST", "--data.root", "/no/such/folder", "--data.download", "false"], "root=/no/such/folder"),
    (["--data", "NoSuchData"], "there is no class named NoSuchData"),
    (["--data", "test_mistakes.NoShape"], "image_shape"),
    (["--data", "ImageModel"], "there is no class named ImageModel"),
    (["--data.batch_size", "0"], "batch_size=0"),
    (["--data.validation_size", "99999"], "validation_size=99999 takes all 1500 training images"),
    (["--data.validation_size", "-1"], "validation_size=-1 is negative"),
    (["--model", "NoSuchModel"], "there is no class named NoSuchModel"),
    (["--model", "my_lost_module.Model"], "No module named 'my_lost_module'"),
    (["--model.no_such_option", "1"], "'no_such_option' is not accepted; see alws fit --help"),
    (["--model.latent_dim", "0"], "model.latent_dim is 0"),
    (["--model.image_shape", "[1, 8, 8]"], "comes from the data module"),
    (["--model.decoder", "NoSuchDecoder"], "there is no class named NoSuchDecoder"),
    (["--model.decoder.hidden", "[0]"], "hidden is [0]"),
    (["--model.decoder.hidden", "[a]"], "Got value: a"),
    (["--model.prior", "CirclePrior"], "model.prior is no prior over 8 numbers"),
    (["--model.noise_floor", "2"], "model.noise_floor is 2.0"),
    (["--model.learning.sleep_samples", "1"], "model.learning.sleep_samples is 1"),
    (["--model.learning.sleep_samples", "many"], "Expected a int. Got value: many"),
    (["--model.learning.held_out", "0"], "model.learning.held_out is 0"),
    (["--model.learning.max_skipped", "-1"], "model.learning.max_skipped is -1"),
    (["--model.learning.learning_rate", "nan"], 'learning_rate": Expected a float. Got value: nan'),
    (["--model.learning.regression.ridge=-0.1"], "model.learning.regression.ridge is -0.1"),
    (["--model.learning.regression.kernel.bandwidth", "0"], "bandwidth is 0.0"),
    (["--model.learning.averaging", "1"], "model.learning.averaging is 1"),
    (["--model.learning.mode", "sideways"], "sideways"),
    (["--fid_kid.kid_subset_size", "1"], "fid_kid.kid_subset_size is 1"),
    (["--log_likelihood.num_samples", "0"], "log_likelihood.num_samples is 0"),
    (["--predictions.num_samples", "0"], "predictions.num_samples is 0"),
    (["--checkpoint.monitor", "val/no_such_figure"], "monitor is val/no_such_figure, which the validation does not"),
    (["--trainer.accelerator", "cuda"], "accelerator"),
    (["--trainer.accelerator", "gpuu"], "the trainer refuses its settings"),
    (["--trainer.devices", "0"], "the trainer refuses its settings"),
    (["--trainer.devices", "two"], "the trainer refuses its settings"),
    (["--trainer.strategy", "nope"], "invalid strategy name"),
    (["--trainer.precision", "13"], "trainer.precision"),
    (
        ["--trainer.precision", "transformer-engine"],
        "the trainer refuses its settings: Requirement 'transformer_engine",
    ),
    (["--model.learning.chunk", "2.5"], 'learning.chunk": Expected a int. Got value: 2.5'),
    (["--trainer.gradient_clip_val", "-1"], "trainer.gradient_clip_val is -1"),
    (["--trainer.max_steps", "some"], "some"),
    (["--trainer.max_steps", "0"], "trainer.max_steps is 0, so that nothing would be trained"),
    (["--trainer.val_check_interval", "0"], "trainer.val_check_interval is 0; give a positive number"),
    (["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches is 0; give a positive number"),
    (["--checkpoint.monitor", "auto", "--fid_kid.val_samples", "0"], "val/fid_samples, but fid_kid.val_samples is 0"),
    (["--model.decoder.hidden", "[1000000000000]"], "memory ran out"),
    (["--trainer.max_steps", "-5"], "the trainer refuses its settings"),
    (["--trainer.maximum_steps", "5"], "maximum_steps"),
    (["--seed_everything", "-3"], "seed_everything is -3"),
    (["--seed_everything", "abc"], "seed_everything"),
    (["--name", "../elsewhere"], "leads out of the folder of runs"),
    (["--name", "."], "name is ., which is the folder of runs itself"),
    (["--runs", "/dev/null/x"], "see that --runs names a folder"),
    (["--config", "no_such.yaml"], "no_such.yaml"),
    (["--config", "/"], "is not a file"),
    (["--ckpt_path", "last"], "there is no file"),
    (["--ckpt_path", "no_such.ckpt"], "there is no file no_such.ckpt"),
    (["--ckpt_path", "/"], "ckpt_path is '/', which is a folder; give best, last, or a checkpoint file"),
    (["--ckpt_path", ""], "ckpt_path is '', which names nothing"),
    (["--ckpt_path", "https://somewhere/model.ckpt"], "local file only"),
    (["--ckpt_path", QUICKSTART], "cannot be read"),
    (["extra"], "unrecognized arguments: extra"),
]

# Whole command lines.
COMMANDS = [
    ([], "subcommand"),
    (["fit"], "the following arguments are required"),
    (["train", "--config", QUICKSTART], "invalid choice: 'train'"),
    (["validate", "--config", QUICKSTART], "needs a trained model"),
    (["test", "--config", QUICKSTART], "needs a trained model"),
    (["predict", "--config", QUICKSTART], "needs a trained model"),
]

# Whole configs.
CONFIG_TEXTS = [
    ("", "holds no settings"),
    ("model: [1, 2\n", "Problems parsing config"),
    ("model:\n\tclass_path: ImageModel\n", "Problems parsing config"),
    ("\x00\x01", "Problems parsing config"),
    (b"PK\x03\x04\x80\xff", "bad.yaml is no text ("),
    ("- 1\n- 2\n", "a config must hold settings by name"),
    ("hello\n", "a config must hold settings by name"),
    ("modle: {class_path: ImageModel}\n", "does not accept option 'modle.class_path'"),
    ("data: {class_path: Digits}\n", "required: fit.model"),
    ("model: {class_path: ImageModel}\n", "required: fit.data"),
    ("model: {class_path: ImageModel, init_arg: {latent_dim: 3}}\ndata: {class_path: Digits}\n", "init_arg.latent_dim"),
    ("model: {class_path: ImageModel, init_args: {latent_dim: three}}\ndata: {class_path: Digits}\n", "value: three"),
    ("model: {class_path: Digits}\ndata: {class_path: Digits}\n", "there is no class named Digits"),
    (
        "model: {class_path: ImageModel}\ndata: {class_path: Digits}\ntrainer: {callbacks: [{class_path: NoCall}]}\n",
        "NoCall",
    ),
]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a command line ends in."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("alws: ")]
    return line


def names(cases: list) -> list[str]:
    return [" ".join(case[0])[:60] if isinstance(case[0], list) else repr(case[0])[:40] for case in cases]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=names(OPTIONS))
def test_options(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available() and "cuda" in options:
        pytest.skip("here it is no mistake")
    arguments = ["fit", "--config", QUICKSTART, "--runs", str(tmp_path), "--name", "run", *SMALL, *options]
    assert message in refused(arguments, capsys)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(("command", "message"), COMMANDS, ids=names(COMMANDS))
def test_commands(command: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(command, capsys)


@pytest.mark.parametrize(("text", "message"), CONFIG_TEXTS, ids=names(CONFIG_TEXTS))
def test_configs(text: str | bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    arguments = ["fit", "--config", str(tmp_path / "bad.yaml"), "--runs", str(tmp_path / "runs")]
    assert message in refused(arguments, capsys)
    assert not (tmp_path / "runs").exists()


def test_there_are_many() -> None:
    assert len(OPTIONS) + len(COMMANDS) + len(CONFIG_TEXTS) >= 75


def test_debug_adds_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="latent_dim is 0"):
        main(["fit", "--config", QUICKSTART, "--runs", str(tmp_path), "--model.latent_dim", "0", "--debug"])

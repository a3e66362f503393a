"""Every YAML in configs/ runs: found by a glob, so a new one is tested the moment it exists."""

from __future__ import annotations

from pathlib import Path

import pytest

import cli
from cli import CONFIGS, main

FILES = sorted(CONFIGS.rglob("*.yaml"))
# Less of everything; what a config names must still be accepted.
SMALL = ["--model.learning.sleep_samples", "30", "--model.learning.held_out", "20",
         "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]  # fmt: skip


def test_there_are_configs() -> None:
    assert CONFIGS / "quickstart.yaml" in FILES
    assert len(FILES) >= 4


# A config of images also takes other images.
CASES = [
    pytest.param(file, data, id=f"{file.relative_to(CONFIGS)}-{data}")
    for file in FILES
    for data in ((None, "Digits", "MNIST") if "class_path: ImageModel" in file.read_text() else (None,))
]


@pytest.mark.parametrize(("config", "data"), CASES)
def test_config_runs(config: Path, data: str | None, tmp_path: Path, tiny_root: Path, monkeypatch) -> None:
    monkeypatch.setenv("ALWS_DATA", str(tiny_root))
    arguments = ["fit", "--config", str(config), "--runs", str(tmp_path), "--trainer.fast_dev_run", "2", *SMALL]
    if data is not None:
        arguments += ["--data", data]
    if "MNIST" in (data or config.read_text()):
        arguments += ["--data.validation_size", "20"]
    if "DCGANDecoder" in config.read_text():
        arguments += ["--model.decoder.ngf", "4"]
    assert main(arguments) == 0
    assert list(tmp_path.iterdir()) == []  # fast_dev_run writes nothing


def test_help_names_every_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    shown = "".join(capsys.readouterr().out.split())
    for file in FILES:
        assert str(file.relative_to(CONFIGS.parent)) in shown
    assert cli.list_configs().startswith("configs: ")

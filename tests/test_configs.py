"""Every YAML in configs/ runs: found by a glob, so a new one is tested the moment it exists."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from image_sets import COLOUR_AND_PATCHES, options_of, write_image_sets

import cli
from cli import CONFIGS, main

ALL = sorted(CONFIGS.rglob("*.yaml"))
PLANS = [file for file in ALL if file.parent.name == "comparisons"]  # tests/comparison/test_plan.py
LAUNCH = [file for file in ALL if file.parent.name == "launch"]  # overlays, each given behind another config
FILES = [file for file in ALL if file not in PLANS + LAUNCH]
IMAGES = [file for file in FILES if file.parent.name != "experiments"]  # those whose data can be chosen
VARIANTS = ("_short", "_published", "_fixed", "_elbo", "_simulated")  # of other configs, in numbers alone
LONG = ("ica", "ica_vae", "hodgkin_huxley")  # some seconds each, even so
CASES = [
    pytest.param(file, None, marks=pytest.mark.slow)
    if file.stem.endswith(VARIANTS) or file.stem in LONG
    else (file, None)
    for file in FILES
] + [
    # Another data set is the same for all; one config shows it, the others in the slow part.
    (file, data) if file.stem == "al_a" else pytest.param(file, data, marks=pytest.mark.slow)
    for file in IMAGES
    for data in ("Digits", "MNIST")
]
QUICK = [("al_a", "ImageFolder"), ("wgan_gp", "ImageFolder"), ("vae", "NaturalPatches")]  # of the next ones
# Every config with patches and with one of the four colour sets in turn, the first of each kind with all: what differs
# between colour sets is the number of channels and pixels alone.
WITH_COLOURS = [
    (file, data)
    for number, file in enumerate(IMAGES)
    for place, data in enumerate(COLOUR_AND_PATCHES)
    if data == "NaturalPatches" or file.stem in ("al_a", "vae", "wgan_gp") or (number + place) % 4 == 0
]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def less(text: str, data: str | None) -> list[str]:
    """Options that make a config small; what it names must still be accepted."""
    options = ["--data", data] if data is not None else []
    if "learning:" in text:
        options += ["--model.learning.sleep_samples", "30", "--model.learning.held_out", "20"]
    elif "sleep_samples" in text:
        options += ["--model.sleep_samples", "30"]
    if "DCGANDecoder" in text:
        options += ["--model.decoder.ngf", "4"]
    if "ScaleMixtureModel" in text:
        options += ["--model.components", "4", "--model.bands", "3"]
    if ("pixels: logistic" in text or "ScaleMixtureModel" in text) and data == "Digits":
        options += ["--data.binarize", "false"]
    if data == "Digits" and "validation_size" in text:
        options += ["--data.validation_size", "150"]  # of 1 500
    if data == "MNIST" or (data is None and "MNIST" in text.split("\ndata:")[1]):
        options += ["--data.validation_size", "20"]  # of the 40 images of the tests' files
    return options


def test_there_are_configs() -> None:
    assert CONFIGS / "quickstart.yaml" in FILES
    assert len(FILES) >= 4


@pytest.mark.parametrize(("config", "data"), CASES, ids=lambda case: case.stem if isinstance(case, Path) else str(case))
def test_config_runs(config: Path, data: str | None, tmp_path: Path, tiny_root: Path, monkeypatch) -> None:
    monkeypatch.setenv("ALWS_DATA", str(tiny_root))
    text, own = config.read_text(), []
    if data is None and (name := next((one for one in COLOUR_AND_PATCHES if f"class_path: {one}\n" in text), None)):
        own = options_of(name, write_image_sets(tiny_root))
    arguments = ["fit", "--config", str(config), "--runs", str(tmp_path), "--trainer.fast_dev_run", "2", *QUIET]
    assert main([*arguments, *less(text, data), *own]) == 0
    assert list(tmp_path.iterdir()) == []  # fast_dev_run writes nothing


@pytest.mark.parametrize("config", LAUNCH, ids=lambda file: file.stem)
def test_overlay_runs(config: Path, tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the quickstart, as its header says, in one process."""
    monkeypatch.setenv("ALWS_DATA", str(tiny_root))
    quickstart = CONFIGS / "quickstart.yaml"
    assert (
        f"alws fit --config configs/quickstart.yaml --config {config.relative_to(CONFIGS.parent)}" in config.read_text()
    )
    arguments = ["fit", "--config", str(quickstart), "--config", str(config), "--runs", str(tmp_path), *QUIET]
    one = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.fast_dev_run", "2"]
    try:
        assert main([*arguments, *one, *less(quickstart.read_text(), "Digits")]) == 0
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def image_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_sets(tmp_path_factory.mktemp("image_sets"))


@pytest.mark.parametrize(("config", "data"), [
    pytest.param(file, data, id=f"{file.stem}-{data}", marks=() if (file.stem, data) in QUICK else pytest.mark.slow)
    for file, data in WITH_COLOURS
])  # fmt: skip
def test_image_config_takes_colours_and_patches(
    config: Path, data: str, tmp_path: Path, image_sets: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """All methods with all sets, CelebA's at 64 x 64; discretised pixels alone do not suit real numbers."""
    monkeypatch.setenv("ALWS_DATA", str(image_sets))
    arguments = ["fit", "--config", str(config), "--runs", str(tmp_path), "--trainer.fast_dev_run", "1", *QUIET]
    text = config.read_text()
    status = main([*arguments, *less(text, data), *options_of(data, image_sets), "--data.batch_size", "10"])
    if "pixels: logistic" in text and data == "NaturalPatches":
        assert (
            "model.pixels is 'logistic', but the data's likelihood is 'gaussian_unbounded'" in capsys.readouterr().err
        )
        assert status == 2
    else:
        assert status == 0
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    shown = "".join(capsys.readouterr().out.split())
    for file in ALL:
        assert str(file.relative_to(CONFIGS.parent)) in shown
    assert cli.list_configs().startswith("configs: ")
    assert cli.list_configs().endswith("; plans: " + ", ".join(str(file.relative_to(CONFIGS.parent)) for file in PLANS))
    assert "alwscompareRUN" in shown

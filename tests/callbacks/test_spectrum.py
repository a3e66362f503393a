"""The spectrum's figure: its numbers on data that are the model's own, and on others; its files; its refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Images, image_model, trainer
from torch import Tensor

from callbacks.spectrum import Spectrum
from lightning_alws.errors import UserError
from lightning_alws.learning import Learning
from lightning_alws.models import ScaleMixtureModel

SHAPE = (1, 4, 4)


def module() -> ScaleMixtureModel:
    torch.manual_seed(0)
    return ScaleMixtureModel(
        components=6, bands=3, learning=Learning(sleep_samples=20), image_shape=SHAPE, likelihood="gaussian"
    )


def splits(test: Tensor) -> dict[str, Tensor]:
    return {"train": test[:16], "val": test[:6], "test": test}


def figures(tmp_path: Path, test: Tensor) -> dict[str, Any]:
    data = Images("gaussian", SHAPE, splits(test))
    run = trainer(tmp_path, [Spectrum()])
    (numbers,) = run.test(module(), datamodule=data, verbose=False)
    assert (tmp_path / "figures" / "spectrum_test.png").exists()
    return dict(numbers)


def test_numbers_of_the_models_own_images_and_of_stronger_ones(tmp_path: Path) -> None:
    model: Any = module().generative
    with torch.no_grad():
        own = model.likelihood(model.sample_prior(2000)).sample()
    numbers = figures(tmp_path / "own", own)
    assert numbers["test/spectrum_error"] < 0.06
    # The log of one squared normal number has heavy tails: 2 000 give the spread of a band of one to some 0.04.
    assert numbers["test/contrast_error"] < 0.1
    spread = numbers["test/contrast_spread_data"]
    assert numbers["test/contrast_spread_samples"] == pytest.approx(spread, abs=0.06)
    stronger = figures(tmp_path / "stronger", 3 * own)
    assert stronger["test/spectrum_error"] == pytest.approx(torch.tensor(3.0).log().item(), abs=0.03)
    assert stronger["test/contrast_spread_data"] == pytest.approx(spread, abs=0.01)
    white = figures(tmp_path / "white", torch.randn(2000, *SHAPE))
    assert white["test/contrast_spread_data"] < spread - 0.03


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Spectrum, which is made for ScaleMixtureModel, but the model is ImageModel"):
        trainer(tmp_path, [Spectrum()]).test(image_model(), datamodule=Images(), verbose=False)
    with pytest.raises(UserError, match="images is 1"):
        Spectrum(images=1)

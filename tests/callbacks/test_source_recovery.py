"""Recovery of filters as it is logged and drawn."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import Images, image_model, trainer

from callbacks import ResultsFile, SourceRecovery
from callbacks.source_recovery import mosaic
from datamodules import ICAMixtures
from lightning_alws.errors import UserError
from lightning_alws.kernels import GaussianKernel
from lightning_alws.learning import Learning
from lightning_alws.models import ICA
from lightning_alws.regression import KernelRidge

REGRESSION = functools.partial(KernelRidge, kernel=functools.partial(GaussianKernel, bandwidth=4.0))


def data() -> ICAMixtures:
    return ICAMixtures(
        patch_size=5, num_sources=4, num_patches=200, train_size=3000, validation_size=20, test_size=20, batch_size=50
    )


def model() -> ICA:
    return ICA(4, Learning(sleep_samples=20, regression=REGRESSION), event_shape=(25,))


def test_a_perfect_model_is_seen_to_be_one_and_fastica_is_near(tmp_path: Path) -> None:
    mixtures, module, callback = data(), model(), SourceRecovery()
    mixtures.setup()
    with torch.no_grad():
        module.generative.weight.copy_(mixtures.mixing[:, [2, 0, 3, 1]] * torch.tensor([1.0, -2.0, 1.0, -1.0]))
        module.generative.scale_exponent.fill_(math.log(0.2))
    numbers = callback.measure(module, mixtures, "test")
    assert numbers["filter_cosine"] == pytest.approx(1, abs=1e-5)
    assert numbers["amari_distance"] == pytest.approx(0, abs=1e-4)
    assert numbers["noise_scale"] == pytest.approx(0.2)
    assert numbers["noise_scale_ratio"] == pytest.approx(2)
    assert numbers["fastica_filter_cosine"] > 0.95
    assert numbers["fastica_amari_distance"] < 0.1
    assert set(callback.measure(module, mixtures, "val")) == {
        "filter_cosine", "amari_distance", "noise_scale", "noise_scale_ratio"
    }  # fmt: skip
    true, learnt = (axes.images[0].get_array() for axes in callback.draw(module, mixtures, "val").axes[:2])
    np.testing.assert_allclose(true, learnt, atol=1e-4)  # matched in order and sign


def test_figures_and_numbers_of_a_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, [SourceRecovery(), ResultsFile()], max_steps=2, val_check_interval=2)
    module = model()
    run.fit(module, data())
    run.test(module, datamodule=data(), verbose=False)
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"test/filter_cosine", "test/fastica_filter_cosine", "test/noise_scale_ratio"} <= set(results["metrics"])
    assert results["provenance"]["source_recovery"] == {"fastica_observations": 100_000}
    for name in ("step_000002.png", "test.png"):
        with Image.open(tmp_path / "figures" / name) as image:
            assert image.format == "PNG"
            assert image.width > 800


def test_a_diverged_model_is_drawn_all_the_same() -> None:
    mixtures, module = data(), model()
    mixtures.setup()
    with torch.no_grad():
        module.generative.weight.fill_(math.nan)
    assert math.isnan(SourceRecovery().measure(module, mixtures, "val")["filter_cosine"])
    SourceRecovery().draw(module, mixtures, "val")


def test_mosaic_places_filters_row_by_row_over_their_largest_value() -> None:
    filters = torch.arange(1.0, 5.0).expand(3, 4).T.contiguous()  # three squares of 2 x 2
    filters[:, 1] *= -7
    picture = mosaic(filters)
    assert picture.shape == (5, 5)
    square = np.array([[0.25, 0.5], [0.75, 1.0]])
    np.testing.assert_allclose(picture[:2, :2], square)
    np.testing.assert_allclose(picture[:2, 3:], -square)
    np.testing.assert_allclose(picture[3:, :2], square)
    assert mosaic(torch.ones(3, 2)).shape == (3, 3)


def test_models_and_data_without_filters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no attribute 'filters'"):
        trainer(tmp_path, [SourceRecovery()]).fit(image_model(), Images())
    with pytest.raises(UserError, match="fastica_observations is 1"):
        SourceRecovery(fastica_observations=1)

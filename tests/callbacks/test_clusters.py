"""The figure of a mixture's clusters: a model that is right passes the two-sample bar, one that is wrong does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Images, image_model, trainer
from torch import Tensor

from callbacks import Clusters, ResultsFile
from callbacks.results import FILE
from datamodules.arrays import ArrayDataModule
from lightning_alws.errors import UserError
from lightning_alws.learning import Learning
from lightning_alws.models import WarpedMixtureModel


def made(weights: list[float]) -> WarpedMixtureModel:
    """Clusters in a row, the network being the identity on the right half-plane."""
    torch.manual_seed(0)
    settings = Learning(sleep_samples=20, held_out=10, learning_rate=1e-30)
    module = WarpedMixtureModel(len(weights), 2, [2], settings, log_scale=-3.0, event_shape=(2,))
    model: Any = module.generative
    with torch.no_grad():
        model.network[0].weight.copy_(torch.eye(2))
        model.network[2].weight.copy_(torch.eye(2))
        model.network[0].bias.zero_()
        model.network[2].bias.zero_()
        model.prior.means.copy_(
            torch.stack([torch.arange(len(weights)) * 3.0 + 2, torch.full((len(weights),), 2.0)], 1)
        )
        model.prior.component.logits.copy_(torch.tensor(weights).log())
    return module


class Draws(ArrayDataModule):
    """Draws of a model; with ``fresh`` for more of them."""

    event_shape = (2,)  # type: ignore[assignment]

    def __init__(self, model: Any) -> None:
        super().__init__(100, 100, 0)
        self.model = model

    def read(self) -> dict[str, Tensor]:
        torch.manual_seed(1)
        return {split: self.model.sleep(300).x for split in ("train", "val", "test")}


class Fresh(Draws):
    def fresh(self, count: int, *stream: str) -> Tensor:
        torch.manual_seed(2)
        return self.model.sleep(count).x


def run(folder: Path, module: Any, data: Any, **settings: Any) -> dict[str, Any]:
    figure = Clusters(**({"count": 300, "repeats": 200, "prior_samples": 1000} | settings))
    done = trainer(folder, [figure, ResultsFile()], max_steps=2, val_check_interval=2)
    done.fit(module, datamodule=data)
    done.test(module, datamodule=data, verbose=False)
    return json.loads((folder / FILE).read_text())


@pytest.mark.parametrize("kind", [Draws, pytest.param(Fresh, marks=pytest.mark.slow)])
def test_the_true_model_passes(tmp_path: Path, kind: Any) -> None:
    module = made([0.6, 0.395, 0.005])
    results = run(tmp_path, module, kind(module.generative))
    metrics = results["metrics"]
    assert metrics["test/components"] == metrics["val/components"] == 2
    assert metrics["test/least_weight"] == pytest.approx(0.395, abs=1e-5)
    assert metrics["test/greatest_weight"] == pytest.approx(0.6, abs=1e-5)
    assert metrics["test/squared_mmd"] < metrics["test/squared_mmd_limit"] < 0.05
    assert "val/squared_mmd_limit" not in metrics
    assert results["provenance"]["clusters"]["survival_weight"] == 0.02
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == ["step_000002.png", "test.png"]


def test_another_model_does_not(tmp_path: Path) -> None:
    metrics = run(tmp_path, made([0.2, 0.8]), Fresh(made([0.5, 0.5]).generative))["metrics"]
    assert metrics["test/squared_mmd"] > metrics["test/squared_mmd_limit"]
    assert metrics["test/components"] == 2


def test_log_likelihood_is_that_of_the_mixture(tmp_path: Path) -> None:
    """Where the network is the identity: a mixture of Gaussians with the noise's variance added."""
    module = made([0.7, 0.3])
    data = Draws(module.generative)
    metrics = run(tmp_path, module, data, prior_samples=20_000)["metrics"]
    model: Any = module.generative
    covariances = model.prior.covariances.detach() + torch.diag(model.scale.detach().square())
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(model.prior.probabilities.detach()),
        torch.distributions.MultivariateNormal(model.prior.means.detach(), covariances),
    )
    exact = float(mixture.log_prob(data.observations("test")).mean())
    assert metrics["test/log_likelihood"] == pytest.approx(exact, abs=0.05)


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Clusters, which is made for WarpedMixtureModel"):
        trainer(tmp_path, [Clusters()], max_steps=1).fit(image_model(), datamodule=Images())


@pytest.mark.parametrize("name", ["count", "survival", "repeats", "prior_samples"])
def test_senseless_numbers_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"Clusters.{name} is -1"):
        Clusters(**{name: -1})

"""Every mistake that a model of one's own can make is found before the first step, and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import LearntPrior, LinearGaussian
from runs import Images, image_model, trainer
from torch import Tensor, nn

from lightning_alws.contract import check_data, check_model
from lightning_alws.errors import UserError
from lightning_alws.generative import Latents, Simulator
from lightning_alws.learning import AmortisedLearning, Learning


class Exponential(Simulator):
    """z ~ Exp(rate), x ~ N(z, 1), with one mistake of choice."""

    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.zeros(()))
        self.mistake = mistake
        if mistake == "unused":
            self.offset = nn.Parameter(torch.zeros(2))
        if mistake == "fixed":
            self.log_rate.requires_grad_(False)

    def simulate(self, count: int) -> tuple[Latents, Tensor]:
        rate = self.log_rate.exp()
        if self.mistake != "gradient":
            rate = rate.detach()
        if self.mistake == "seeds itself":
            torch.manual_seed(1)
        z = -torch.rand(count).log() / rate
        x = z[:, None] + torch.randn(count, 1)
        if self.mistake == "numpy":
            x = z[:, None] + torch.from_numpy(np.random.default_rng().normal(size=(count, 1))).float()
        if self.mistake == "count":
            x = x[:1]
        if self.mistake == "infinite x":
            x = x / 0
        return {"time": z}, x

    def log_joint(self, z: Latents, x: Tensor) -> Tensor:
        assert isinstance(z, dict)
        rate = self.log_rate.exp()
        if self.mistake == "no gradient":
            rate = rate.detach()
        log_prior = self.log_rate - rate * z["time"]
        if self.mistake == "no gradient":
            log_prior = log_prior.detach()
        log_joint = log_prior - 0.5 * (x[:, 0] - z["time"]).square()
        if self.mistake == "shape":
            return log_joint[:, None]
        if self.mistake == "sum":
            return log_joint.sum()
        if self.mistake == "nan":
            return log_joint + (self.log_rate - 1).log()
        if self.mistake == "infinite gradient":
            return log_joint + self.log_rate.abs().sqrt()
        return log_joint


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("gradient", r"Exponential\.simulate returns a sample that carries a gradient.*detach"),
        ("numpy", r"other observations when drawn again with the same seed"),
        ("seeds itself", r"the same samples whatever the seed"),
        ("count", r"observations of shape \(1, 1\) when asked for 6"),
        ("infinite x", r"observations that are not finite"),
        ("shape", r"log p\(z, x\) of shape \(6, 1\).*must be \(6,\)"),
        ("sum", r"log p\(z, x\) of shape \(\)"),
        ("nan", r"log p\(z, x\) that is not finite"),
        ("infinite gradient", r"gradient that is not finite in log_rate"),
        ("no gradient", r"carries no gradient at all"),
        ("unused", r"parameter offset gets no gradient"),
        ("fixed", r"has no parameters to learn"),
    ],
)
def test_a_mistake_is_named(mistake: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        AmortisedLearning(Exponential(mistake), Learning(sleep_samples=20))


def test_sound_models_pass_and_leave_the_generators_alone() -> None:
    before = torch.random.get_rng_state()
    for model, direct in ((Exponential(), True), (LinearGaussian(), False), (LearntPrior(), True)):
        check_model(model, direct)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_prior_with_parameters_that_is_not_declared_is_named() -> None:
    model = LearntPrior()
    model.prior_is_learnt = False
    with pytest.raises(UserError, match=r"parameter prior_mean gets no gradient.*prior_is_learnt = True"):
        check_model(model, False)


def test_a_simulator_has_no_plug_in_mode() -> None:
    with pytest.raises(UserError, match="'plug-in', but Exponential has no exponential-family likelihood"):
        AmortisedLearning(Exponential(), Learning(mode="plug-in"))


def test_data_of_another_shape_or_with_nans_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shape \(1,\), but those of the data have \(2,\)"):
        check_data(Exponential(), torch.zeros(3, 2), True)
    with pytest.raises(UserError, match=r"a batch of the data is a list, not a tensor"):
        check_data(Exponential(), [torch.zeros(3, 1)], True)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"holds 1 non-finite of 3 values"):
        check_data(Exponential(), torch.tensor([[1.0], [float("nan")], [0.0]]), True)
    with pytest.raises(UserError, match=r"shape \(1, 8, 8\), but those of the data have \(1, 4, 4\)"):
        trainer(tmp_path).fit(image_model(), datamodule=Images(shape=(1, 4, 4)))


def test_a_simulator_learns_in_direct_mode() -> None:
    """The rate of the latent times is recovered from data that the model itself made."""
    torch.manual_seed(0)
    truth, model = Exponential(), Exponential()
    nn.init.constant_(truth.log_rate, 0.0)
    nn.init.constant_(model.log_rate, -0.7)
    data: Any = truth.simulate(2000)[1].detach()
    module = AmortisedLearning(model, Learning(sleep_samples=400, learning_rate=0.02))
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(120):
        optimiser.zero_grad()
        module.training_step(data[torch.randint(len(data), (200,))], 0).backward()
        optimiser.step()
    assert float(model.log_rate) == pytest.approx(0.0, abs=0.15)

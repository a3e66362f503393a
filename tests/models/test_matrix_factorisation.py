"""The matrix factorisation: densities pixel by pixel, gradients against quadrature over both latents, recovery."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from models import flat_gradient
from pytorch_lightning.callbacks import ModelCheckpoint
from runs import Images, trainer
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.kernels import GaussianKernel, MedianKernel
from lightning_alws.learning import Learning
from lightning_alws.models import MatrixFactorisation
from lightning_alws.models.image import SQUEEZE
from lightning_alws.models.matrix_factorisation import PositiveFactors, logit
from lightning_alws.noise import seeded
from lightning_alws.regression import KernelRidge

SHAPE = (1, 2, 2)
PIXELS: dict[str, Any] = {"image_shape": (1, 8, 8), "likelihood": "bernoulli"}


def generator(shape: tuple[int, int, int] = SHAPE, factors: int = 2, **settings: Any) -> PositiveFactors:
    """A float64 generative part whose factors differ."""
    torch.manual_seed(0)
    settings = {"initial_weight": (0.5, 2.5), "initial_bias": -0.3} | settings
    return PositiveFactors(shape, "bernoulli", factors, **settings).double()


def log_marginal(model: PositiveFactors, x: Tensor, nodes: int = 80) -> Tensor:
    """log p(x) for images x (B, C, H, W) and K = 2, by the trapezoidal rule over both logits; shape (B,).

    A smooth integrand that is next to nothing at both ends: the rule is exact to many digits.
    """
    line = torch.linspace(-22, 22, nodes, dtype=torch.float64)
    log_density = -line - 2 * torch.nn.functional.softplus(-line) + math.log(line[1] - line[0])
    logits = torch.cartesian_prod(line, line)
    log_prior = (log_density[:, None] + log_density).flatten()
    likelihood = model.decode(logits)
    values = x.flatten(1) @ likelihood.natural_parameters.T - likelihood.log_normaliser
    return (values + log_prior).logsumexp(1)


def every_image(pixels: int) -> Tensor:
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * pixels)


def test_log_joint_is_that_of_a_loop_over_pixels_and_factors() -> None:
    model = generator((1, 2, 3), factors=3)
    sleep = model.sleep(5)
    z = sleep.z
    assert isinstance(z, Tensor)
    value = model.log_prior(z) + model.likelihood(z).log_prob(sleep.x)
    for n in range(5):
        total = 0.0
        for d in range(6):
            a = float(model.bias[d].detach())
            for k in range(3):
                a += math.exp(float(model.log_weight[d, k].detach())) * math.log(float(z[n, k]) / (1 - float(z[n, k])))
            mean = SQUEEZE + (1 - 2 * SQUEEZE) / (1 + math.exp(-a))
            total += math.log(mean if sleep.x[n].flatten()[d] == 1 else 1 - mean)
        assert float(value[n].detach()) == pytest.approx(total, rel=1e-9)


def test_every_parameter_receives_a_gradient_and_weights_are_positive() -> None:
    model = generator()
    model.sleep(50).joint.log_joint.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).all(), name
    assert set(dict(model.named_parameters())) == {"log_weight", "bias"}
    assert (model.weight > 0).all()
    torch.testing.assert_close(model.watched()["mean_weight"], model.log_weight.exp().mean())


def test_initial_values() -> None:
    model = PositiveFactors((1, 8, 8), "bernoulli", 100, initial_bias=0.1)
    assert 0.01 * 0.9999 <= float(model.weight.detach().min()) < 0.0105
    assert 0.029 < float(model.weight.detach().max()) <= 0.03 * 1.0001
    assert (model.bias == 0.1).all()


def test_samples_follow_the_seed_and_the_prior_is_uniform() -> None:
    model = generator()
    draws = []
    for _ in range(2):
        with seeded(torch.device("cpu"), "a"):
            draws.append(model.sleep(2000))
    assert torch.equal(draws[0].x, draws[1].x)
    z = draws[0].z
    assert isinstance(z, Tensor)
    assert not z.requires_grad
    assert float(z.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(z.var()) == pytest.approx(1 / 12, abs=0.005)
    assert draws[0].x.shape == (2000, *SHAPE)


def test_extreme_latents_are_finite() -> None:
    model = generator()
    z = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    assert logit(z).isfinite().all()
    log_prob = model.likelihood(z).log_prob(torch.ones(2, *SHAPE, dtype=torch.float64))
    assert log_prob[0].detach() == pytest.approx(4 * math.log(SQUEEZE), rel=0.05)


def test_quadrature_is_normalised_and_agrees_with_sampling() -> None:
    model = generator()
    images = every_image(4).view(16, *SHAPE)
    log_p = log_marginal(model, images).detach()
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(log_p, log_marginal(model, images, 160).detach(), rtol=0, atol=1e-9)
    torch.manual_seed(0)
    x = model.sleep(40_000).x.flatten(1)
    counts = (x @ torch.tensor([8.0, 4, 2, 1], dtype=torch.float64)).long().bincount(minlength=16)
    torch.testing.assert_close(counts / 40_000, log_p.exp(), rtol=0, atol=0.01, check_dtype=False)


def learner(model: PositiveFactors, **settings: Any) -> MatrixFactorisation:
    """A module around a copy of the model, in no trainer."""
    module = MatrixFactorisation(
        model.prior.dim, learning=Learning(**settings), image_shape=model.image_shape, likelihood="bernoulli"
    )
    module.generative.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    return module


@pytest.mark.slow
def test_amortised_gradient_converges_to_the_exact_one() -> None:
    """RMS error over x ~ p_θ and repeats, relative to the RMS exact gradient: at most 10 % at N = 4 000."""
    model = generator((1, 1, 3))
    images = every_image(3).view(8, 1, 1, 3)
    probability = log_marginal(model, images).detach().exp()
    exact = torch.stack([flat_gradient(value, model) for value in log_marginal(model, images)])
    scale = (probability @ exact.square().mean(1)).sqrt()
    regression = functools.partial(KernelRidge, kernel=functools.partial(GaussianKernel, bandwidth=0.5), ridge=0.1)
    errors = {}
    for count in (1000, 4000):
        module = learner(model, sleep_samples=count, regression=regression)
        total = torch.zeros(())
        for repeat in range(20):
            with seeded(torch.device("cpu"), "repeat", repeat):
                sleep, _ = module.sleep()
            values = module.wake(module.regress(sleep), sleep, images.float())
            gradient = torch.stack([flat_gradient(value, module.generative) for value in values])
            total = total + probability @ (gradient.double() - exact).square().mean(1)
        errors[count] = float((total / 20).sqrt() / scale)
    assert errors[4000] <= 0.10, errors
    assert errors[1000] > 1.5 * errors[4000], errors


def test_reconstructions_are_the_posterior_expectations() -> None:
    """E[μ(z)|x] and μ(E[logit z|x]) against quadrature, at each of the eight images."""
    model = generator((1, 1, 3))
    regression = functools.partial(KernelRidge, kernel=functools.partial(GaussianKernel, bandwidth=0.5), ridge=0.1)
    module = learner(model, sleep_samples=100, regression=regression)
    images = every_image(3).view(8, 1, 1, 3).float()
    result = module.reconstruct(images, sleep_samples=3000)
    line = torch.linspace(-11.5, 11.5, 150, dtype=torch.float64)
    logits = torch.cartesian_prod(line, line)
    prior = (-logits - 2 * torch.nn.functional.softplus(-logits)).sum(1)
    likelihood = model.decode(logits)
    values = images.double().flatten(1) @ likelihood.natural_parameters.T - likelihood.log_normaliser
    posterior = (values + prior).softmax(1).detach()
    expected = (posterior @ likelihood.mean.flatten(1)).view(8, 1, 1, 3)
    torch.testing.assert_close(result.expected_mean.double(), expected.detach(), rtol=0, atol=0.08)
    decoded = model.decode(posterior @ logits).mean
    torch.testing.assert_close(result.mean_at_expectation.double(), decoded.detach(), rtol=0, atol=0.12)


def test_corrupted_sleep_samples_give_the_posterior_under_corruption() -> None:
    """Pixels replaced by coins say nothing: every image is reconstructed as the mean of the prior."""
    model = generator((1, 1, 3))
    module = learner(model, sleep_samples=3000, regression=functools.partial(KernelRidge, ridge=1.0))
    images = every_image(3).view(8, 1, 1, 3).float()
    coins = module.reconstruct(images, corrupt=lambda x: torch.bernoulli(torch.full_like(x, 0.5))).expected_mean
    plain = module.reconstruct(images).expected_mean
    assert float(coins.std(0).max()) < 0.05
    assert float(plain.std(0).min()) > 0.15


@pytest.mark.slow
def test_factors_are_recovered_from_data_the_model_made() -> None:
    """Two factors, one for each half of an image of 5 × 4 pixels, found from a start where both are alike."""
    truth = generator((1, 5, 4))
    with torch.no_grad():
        truth.log_weight.copy_(torch.full_like(truth.log_weight, math.log(0.02)))
        truth.log_weight[:10, 0] = truth.log_weight[10:, 1] = math.log(1.5)
        truth.bias.fill_(-1.0)
    torch.manual_seed(1)
    data = truth.sleep(2000).x.float()
    regression = functools.partial(KernelRidge, kernel=functools.partial(MedianKernel, multiple=2.0), ridge=0.1)
    module = MatrixFactorisation(
        2,
        (0.2, 0.4),
        -0.5,
        Learning(sleep_samples=400, held_out=100, centring=1.0, learning_rate=0.03, regression=regression),
        (1, 5, 4),
        "bernoulli",
    )
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    optimiser = module.configure_optimizers()
    for step in range(200):
        optimiser.zero_grad()
        module.training_step(data[100 * step % 2000 :][:100], step).backward()
        optimiser.step()
    learnt = module.generative
    assert isinstance(learnt, PositiveFactors)
    weight, target = learnt.weight.detach(), truth.weight.detach().float()
    cosines = (weight / weight.norm(dim=0)).T @ (target / target.norm(dim=0))
    rows, columns = linear_sum_assignment(-cosines)
    assert cosines[rows, columns].min() > 0.95
    assert (weight[:, rows] - target[:, columns]).square().mean().sqrt() < 0.3
    assert (learnt.bias.detach() + 1).square().mean().sqrt() < 0.25


class Some(Images):
    """Images of which one pixel is always black and another always white."""

    sizes = {"train": 16}

    def images(self, split: str) -> Tensor:
        images = super().images(split)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = 0, 1
        return images


def test_training_begins_at_the_mean_image_and_goes_on_where_it_was(tmp_path) -> None:
    module, data = MatrixFactorisation(3, learning=Learning(20, averaging=0.9), **PIXELS), Some()
    checkpoints = ModelCheckpoint(tmp_path, save_last=True)
    trainer(tmp_path, [checkpoints], max_steps=1).fit(module, datamodule=data)
    expected = ((data.images("train").sum(0) + 0.5) / 17).logit().flatten()
    for model in (module.generative, module.evaluation_model):
        assert isinstance(model, PositiveFactors)
        torch.testing.assert_close(model.bias.detach(), expected, rtol=0, atol=0.0011)  # one step of Adam
    assert float(expected[0]) == pytest.approx(math.log(0.5 / 16.5))
    with torch.no_grad():
        module.generative.bias.fill_(1.0)
    again = MatrixFactorisation(3, learning=Learning(20, averaging=0.9), **PIXELS)
    trainer(tmp_path, max_steps=1).fit(again, datamodule=data, ckpt_path=tmp_path / "last.ckpt")
    torch.testing.assert_close(again.generative.bias.detach(), expected, rtol=0, atol=0.0011)
    with pytest.raises(UserError, match="initial_bias"):
        trainer(tmp_path).fit(again, train_dataloaders=data.train_dataloader())


def test_copies_share_nothing() -> None:
    model = generator()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.bias.add_(1)
    assert not torch.equal(model.bias, other.bias)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_shape": None}, "no attribute 'image_shape'"),
        ({"likelihood": None}, "no attribute 'likelihood'"),
        ({"likelihood": "gaussian"}, "likelihood is 'gaussian'"),
        ({"factors": 0}, "dim is 0"),
        ({"initial_weight": (0.0, 1.0)}, r"initial_weight is \[0.0, 1.0\]"),
        ({"initial_weight": (2.0, 1.0)}, "initial_weight"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MatrixFactorisation(**({"image_shape": SHAPE, "likelihood": "bernoulli"} | settings))

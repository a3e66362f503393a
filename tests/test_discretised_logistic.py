"""The discretised logistic law: masses against torch's distribution function, draws, edges, and what refuses it."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor
from torch.distributions import AffineTransform, SigmoidTransform, TransformedDistribution, Uniform

from lightning_alws.baselines import ImageVAE
from lightning_alws.errors import UserError
from lightning_alws.learning import Learning
from lightning_alws.likelihoods import DiscretisedLogistic
from lightning_alws.metrics.likelihood import monte_carlo_log_likelihood
from lightning_alws.models import ImageModel
from lightning_alws.models.image import ImageGenerator
from lightning_alws.networks import MLPDecoder, MLPFeatures
from lightning_alws.objectives import NaturalParameterError

LEVELS = torch.arange(256, dtype=torch.float64) / 255 * 2 - 1
LOCATIONS = torch.tensor([-1.7, -1.0, -0.3, 0.0, 0.51, 0.998, 2.5], dtype=torch.float64)
DECODER = functools.partial(MLPDecoder, hidden=[6])


def law(log_scale: float, location: Tensor = LOCATIONS) -> DiscretisedLogistic:
    """One row for each location, of one pixel."""
    return DiscretisedLogistic(location[:, None], torch.tensor(log_scale, dtype=location.dtype))


def log_masses(likelihood: DiscretisedLogistic) -> Tensor:
    """Of every level under each row, (256, N)."""
    rows = len(likelihood.location)
    levels = LEVELS.to(likelihood.location.dtype)
    return torch.stack([likelihood.log_prob(level.expand(rows, 1)) for level in levels])


@pytest.mark.parametrize("log_scale", [-9.0, -5.0, -2.0, 0.0, 3.0])
def test_masses_of_all_levels_add_up_to_one(log_scale: float) -> None:
    total = log_masses(law(log_scale)).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-10, rtol=0)


@pytest.mark.parametrize("log_scale", [-3.5, -2.0, 0.0, 1.0])
def test_masses_are_differences_of_torchs_distribution_function(log_scale: float) -> None:
    unit = Uniform(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    scale = torch.tensor(log_scale, dtype=torch.float64).exp()
    logistic = TransformedDistribution(unit, [SigmoidTransform().inv, AffineTransform(LOCATIONS, scale)])
    upper, lower = (logistic.cdf(LEVELS[:, None] + side / 255) for side in (1, -1))
    upper[-1], lower[0] = 1, 0
    reference, ours = upper - lower, log_masses(law(log_scale)).exp()
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-13)


def test_single_precision_keeps_the_logarithm_far_from_the_location() -> None:
    """Where the masses themselves are 0 in float32, and differences of the distribution function in float64."""
    for log_scale in (-7.0, -2.0, 4.0):
        ours = log_masses(law(log_scale, LOCATIONS.float()))
        assert ours.isfinite().all()
        torch.testing.assert_close(ours.double(), log_masses(law(log_scale)), rtol=2e-4, atol=2e-4)
    assert float(log_masses(law(-7.0)).min()) < -1000


def test_gradients_are_finite_at_the_edges_and_those_of_finite_differences() -> None:
    x = torch.tensor([[-1.0], [-1.0], [1.0], [1.0], [1 / 255]], dtype=torch.float64)
    location = torch.tensor([[-30.0], [4.0], [30.0], [-4.0], [0.2]], dtype=torch.float64, requires_grad=True)
    for value in (-6.0, -1.0):
        log_scale = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda m, s: DiscretisedLogistic(m, s).log_prob(x), (location, log_scale), atol=1e-4, rtol=1e-5
        )
    single, log_scale = location.detach().float().requires_grad_(), torch.tensor(-6.0, requires_grad=True)
    DiscretisedLogistic(single, log_scale).log_prob(x.float()).sum().backward()
    assert single.grad is not None
    assert log_scale.grad is not None
    assert single.grad.isfinite().all()
    assert log_scale.grad.isfinite()


@pytest.mark.parametrize("log_scale", [-4.0, -1.5, 0.5])
def test_draws_have_these_masses(log_scale: float) -> None:
    count = 20_000
    torch.manual_seed(0)
    one = law(log_scale)
    draws = law(log_scale, LOCATIONS.repeat(count)).sample().view(count, -1)
    index = ((draws + 1) * 255 / 2).round().long()
    assert torch.equal(LEVELS[index], draws)  # the bits of the data's own grey values
    masses = log_masses(one).exp()
    frequencies = torch.stack([torch.bincount(column, minlength=256) for column in index.T], 1) / count
    error = (masses * (1 - masses) / count).sqrt()
    assert ((frequencies - masses).abs() < 5 * error + 3 / count).all()


@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -1.5, 0.5])
def test_mean_is_that_of_the_masses_up_to_half_a_level(log_scale: float) -> None:
    exact = LEVELS @ log_masses(law(log_scale)).exp()
    error = (law(log_scale).mean[:, 0] - exact).abs()
    assert float(error.max()) < (1 / 255 if log_scale < -5 else 1e-4)


def test_it_can_be_sliced_and_detached_and_a_nan_stays_one() -> None:
    location = torch.tensor([[0.1], [float("nan")], [0.3]], requires_grad=True)
    likelihood = DiscretisedLogistic(location, torch.tensor(-1.0))
    x = likelihood.sample()
    assert x.isnan().flatten().tolist() == [False, True, False]
    assert likelihood[2:].log_prob(x[2:]).shape == (1,)
    assert not likelihood.detach().log_prob(x).requires_grad
    assert not x.requires_grad


def generator(pixels: str = "logistic") -> ImageGenerator:
    torch.manual_seed(0)
    return ImageGenerator((1, 2, 3), "gaussian", 2, DECODER, pixels=pixels).double()  # type: ignore[arg-type]


def test_pixels_are_chosen_apart_from_the_data() -> None:
    assert isinstance(generator().likelihood(torch.zeros(2, 2).double()), DiscretisedLogistic)
    assert set(generator().watched()) == {"noise_scale"}
    assert type(generator("auto").pixels) is type(generator("gaussian").pixels)
    with pytest.raises(UserError, match="model.pixels is 'bernoulli', but the data's likelihood is 'gaussian'"):
        generator("bernoulli")
    with pytest.raises(UserError, match="model.pixels is 'logistic', but the data's likelihood is 'bernoulli'"):
        ImageVAE(pixels="logistic", image_shape=(1, 8, 8), likelihood="bernoulli")


def test_prior_samples_estimate_its_likelihood() -> None:
    model = generator()
    x = model.sleep(4, direct=True).x
    z = torch.cartesian_prod(*[torch.linspace(-6, 6, 121, dtype=torch.float64)] * 2)
    values = torch.stack([model.likelihood(z).log_prob(one.expand(len(z), 1, 2, 3)) for one in x])
    exact = (values + model.log_prior(z)).logsumexp(1) + 2 * torch.tensor(0.1).log()
    torch.manual_seed(1)
    estimate = monte_carlo_log_likelihood(model, x, 20_000)
    torch.testing.assert_close(estimate.log_likelihood, exact.detach(), atol=0.1, rtol=0)


def amortised(mode: str) -> ImageModel:
    learning = Learning(sleep_samples=40, held_out=10, mode=mode)  # type: ignore[arg-type]
    return ImageModel(2, DECODER, learning, pixels="logistic", image_shape=(1, 2, 3), likelihood="gaussian")


@pytest.mark.parametrize("mode", ["auto", "plug-in", "direct"])
def test_amortised_learning_takes_it(mode: str) -> None:
    module = amortised(mode)
    assert module.direct == (mode == "direct")
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    module.training_step(generator().sleep(8, direct=True).x.float(), 0).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.generative.parameters())


def test_amortised_learning_refuses_what_it_cannot_afford(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_alws.likelihoods.logistic.MOST_PRODUCTS", 40 * 8 * 6 - 1)
    module = amortised("auto")
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    with pytest.raises(UserError, match="every pair of 40 sleep samples and 8 images of 6 pixels"):
        module.training_step(generator().sleep(8, direct=True).x.float(), 0)
    objective = Learning(sleep_samples=40, held_out=10, kernel_objective=NaturalParameterError())
    module = ImageModel(2, DECODER, objective, pixels="logistic", image_shape=(1, 2, 3), likelihood="gaussian")
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    monkeypatch.undo()
    with pytest.raises(UserError, match="no natural parameters to regress"):
        module.training_step(generator().sleep(8, direct=True).x.float(), 0)


@pytest.mark.parametrize("part", [1, 50, 10**6])
def test_pairs_are_those_of_a_loop(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_alws.likelihoods.logistic.PART", part)
    model = generator()
    z, x = model.sample_prior(7), model.sleep(5, direct=True).x
    weights = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    likelihood = model.likelihood(z)
    expected = torch.stack([weights[:, b] @ likelihood.log_prob(x[b].expand(7, 1, 2, 3)) for b in range(5)])
    found = likelihood.expectation(weights, x)
    torch.testing.assert_close(found, expected)
    inputs = [weights, *model.decoder.parameters(), *model.pixels.parameters()]
    wanted = torch.autograd.grad(expected.square().sum(), inputs, retain_graph=True)
    gradients = torch.autograd.grad(found.square().sum(), inputs)
    torch.testing.assert_close(gradients, wanted)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_networks_of_the_published_comparison(layer_norm: bool) -> None:
    features = MLPFeatures((1, 2, 3), hidden=[5, 4], width=3, layer_norm=layer_norm, orthogonal=True)
    kinds = [type(layer).__name__ for layer in features.net[1]]
    hidden = ["Linear", "LayerNorm", "ReLU"] if layer_norm else ["Linear", "ReLU"]
    assert kinds == [*hidden, *hidden, "Linear"]
    for layer in features.net[1]:
        if isinstance(layer, torch.nn.Linear):
            least = min(layer.weight.shape)
            gram = layer.weight @ layer.weight.T if layer.weight.shape[0] == least else layer.weight.T @ layer.weight
            torch.testing.assert_close(gram, torch.eye(least), atol=1e-5, rtol=0)
            assert not layer.bias.any()
    assert MLPDecoder(2, (1, 2, 3), [4], layer_norm=True)(torch.zeros(7, 2)).shape == (7, 1, 2, 3)

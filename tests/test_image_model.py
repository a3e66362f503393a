"""The image model: its densities against torch's, its gradients by name, its mistakes, its checkpoints."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import METHODS, Images, image_model, named, trainer
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal

from callbacks.checkpoint import RunCheckpoint
from lightning_alws.errors import UserError
from lightning_alws.learning import Learning
from lightning_alws.models import ImageModel
from lightning_alws.models.image import ImageGenerator
from lightning_alws.networks import DCGANDecoder, MLPDecoder
from lightning_alws.priors import (
    BernoulliPrior,
    CategoricalPrior,
    CirclePrior,
    FlowPrior,
    GaussianMixturePrior,
    LaplacePrior,
    PriorBuilder,
    UniformPrior,
)

LIKELIHOODS = ["bernoulli", "gaussian"]


def generator(likelihood: str, shape: tuple[int, int, int] = (1, 8, 8), **changes: Any) -> ImageGenerator:
    """A float64 generative part with outputs of order one."""
    settings = {"latent_dim": 3, "decoder": functools.partial(MLPDecoder, hidden=[6])} | changes
    return ImageGenerator(shape, likelihood, **settings).double()


class Constant(nn.Module):
    """A decoder whose output is one number for every pixel."""

    def __init__(self, latent_dim: int, event_shape: tuple[int, ...], output: float) -> None:
        super().__init__()
        self.output = nn.Parameter(torch.full(event_shape, output))

    def forward(self, z: Tensor) -> Tensor:
        return self.output.expand(len(z), *self.output.shape)


def test_log_prior_is_that_of_a_standard_normal() -> None:
    model = generator("bernoulli")
    z = model.sample_prior(7)
    assert z.shape == (7, 3)
    torch.testing.assert_close(model.log_prior(z), Normal(0.0, 1.0).log_prob(z).sum(-1))


def test_prior_samples_are_standard_normal() -> None:
    z = generator("bernoulli").sample_prior(20_000)
    assert z.dtype == torch.float64
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), rtol=0, atol=5 / 20_000**0.5)
    torch.testing.assert_close(z.T.cov(), torch.eye(3).double(), rtol=0, atol=5 * (2 / 20_000) ** 0.5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 4)], ids=str)
def test_bernoulli_density_is_torchs_with_the_squeezed_mean(shape: tuple[int, int, int]) -> None:
    model = generator("bernoulli", shape)
    z = 5 * model.sample_prior(6)
    mean = 1e-4 + (1 - 2e-4) * model.decoder(z).sigmoid()
    x = torch.bernoulli(mean)
    likelihood = model.likelihood(z)
    torch.testing.assert_close(likelihood.mean, mean)
    torch.testing.assert_close(likelihood.log_prob(x), Bernoulli(mean).log_prob(x).flatten(1).sum(-1))


@pytest.mark.parametrize("noise_floor", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 4)], ids=str)
def test_gaussian_density_is_torchs_with_one_scale(shape: tuple[int, int, int], noise_floor: float) -> None:
    """N(tanh(output), σ² I), σ² = floor² + s²."""
    model = generator("gaussian", shape, noise_floor=noise_floor)
    nn.init.constant_(model.pixels.log_scale, -1.2)
    z = 5 * model.sample_prior(6)
    x = torch.randn(6, *shape).double()
    likelihood = model.likelihood(z)
    reference = Normal(model.decoder(z).tanh(), (noise_floor**2 + torch.tensor(-2.4).double().exp()) ** 0.5)
    torch.testing.assert_close(likelihood.mean, reference.mean)
    torch.testing.assert_close(likelihood.log_prob(x), reference.log_prob(x).flatten(1).sum(-1))


@pytest.mark.parametrize("output", [-1e4, -30.0, 0.0, 30.0, 1e4, float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_means_stay_inside_for_extreme_outputs(output: float, dtype: torch.dtype) -> None:
    decoder = functools.partial(Constant, output=output)
    model = ImageGenerator((1, 8, 8), "bernoulli", 3, decoder).to(dtype)
    likelihood = model.likelihood(model.sample_prior(4))
    rounding = 4 * torch.finfo(dtype).eps
    assert (likelihood.mean >= 1e-4 - rounding).all()
    assert (likelihood.mean <= 1 - 1e-4 + rounding).all()
    for x in (torch.zeros(4, 1, 8, 8, dtype=dtype), torch.ones(4, 1, 8, 8, dtype=dtype)):
        value = likelihood.log_prob(x)
        # At best log(1 − 1e-4) a pixel, at worst log(1e-4).
        assert (value > 64 * -9.22).all()
        assert (value < 0).all()
        (gradient,) = torch.autograd.grad(value.sum(), model.decoder.output, retain_graph=True)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("output", [-1e4, 1e4])
def test_gaussian_means_stay_inside_for_extreme_outputs(output: float) -> None:
    model = ImageGenerator((1, 8, 8), "gaussian", 3, functools.partial(Constant, output=output))
    assert model.likelihood(model.sample_prior(4)).mean.abs().max() <= 1


@pytest.mark.parametrize("noise_floor", [0.05, 0.3])
def test_noise_scale_never_falls_below_its_floor(noise_floor: float) -> None:
    model = generator("gaussian", noise_floor=noise_floor)
    for log_scale in (-50.0, -5.0, 0.0):
        nn.init.constant_(model.pixels.log_scale, log_scale)
        scale = model.likelihood(model.sample_prior(2)).log_scale.exp()
        assert float(scale.detach()) >= noise_floor * (1 - 1e-12)


def test_samples_have_the_law_of_the_likelihood() -> None:
    for likelihood in LIKELIHOODS:
        model = generator(likelihood)
        given = model.likelihood(model.sample_prior(1).expand(5_000, -1))
        x = given.sample()
        assert not x.requires_grad
        variance = given.mean * (1 - given.mean) if likelihood == "bernoulli" else 0 * given.mean + 1
        deviation = (x.mean(0) - given.mean[0]) / (variance[0] / len(x)).sqrt()
        assert deviation.abs().max() < 5


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("decoder", [functools.partial(MLPDecoder, hidden=[6]), functools.partial(DCGANDecoder, ngf=2)])
def test_every_parameter_receives_a_gradient(likelihood: str, method: str, decoder: Any) -> None:
    learning = Learning(**{"sleep_samples": 30, "held_out": 20, **METHODS[method]})
    model = ImageModel(
        latent_dim=2, decoder=decoder, learning=learning, image_shape=(1, 8, 8), likelihood=likelihood  # type: ignore[arg-type]
    )  # fmt: skip
    model.log = lambda *args, **options: None  # type: ignore[method-assign]
    model.training_step(Images(likelihood).images("train"), 0).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    # A shift of all features changes no distance.
    assert set(without) <= {"regression.kernel.network.net.1.bias"}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    trained = {name.split(".")[0] for name in named(model)}
    assert trained == ({"generative", "regression"} if "AL-A" in method else {"generative"})


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"image_shape": None}, "'image_shape'"),
    ({"likelihood": None}, "'likelihood'"),
    ({"likelihood": "poisson"}, "likelihood is 'poisson'"),
    ({"latent_dim": 0}, "model.latent_dim is 0"),
    ({"image_shape": (1, 28, 28), "decoder": DCGANDecoder}, r"image_shape is \(1, 28, 28\)"),
    ({"noise_floor": -0.1}, "model.noise_floor is -0.1"),
    ({"noise_floor": 1.0}, "model.noise_floor is 1.0"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[str(changes) for changes, _ in MISTAKES])
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"decoder": MLPDecoder, "image_shape": (1, 8, 8), "likelihood": "bernoulli"}
    with pytest.raises(UserError, match=message):
        ImageModel(**(settings | changes))


def test_image_shape_may_be_a_list() -> None:
    """As it comes from YAML or a checkpoint."""
    model = generator("bernoulli", [1, 8, 8])  # type: ignore[arg-type]
    assert model.likelihood(model.sample_prior(2)).mean.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_checkpoint_of_a_model_made_in_python(tmp_path: Path, averaging: float) -> None:
    """It is data alone; the model is made again from the code that made it, and gets its values."""
    settings: dict[str, Any] = {"averaging": averaging, "learning_rate": 0.05, **METHODS["centred AL-A"]}
    model = image_model(**settings)
    run = trainer(tmp_path, enable_checkpointing=True, max_steps=3)
    run.fit(model, datamodule=Images())
    path = tmp_path / "model.ckpt"
    run.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    assert "hyper_parameters" not in checkpoint
    assert checkpoint["global_step"] == 3

    again = image_model(**settings)
    assert any(not torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    again.load_state_dict(checkpoint["state_dict"])
    loaded = ImageModel.load_from_checkpoint(
        path, weights_only=True, map_location="cpu", **{name: model.hparams[name] for name in model.hparams}
    )
    for other in (again, loaded):
        assert other.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
    z = torch.randn(4, 2)
    assert torch.equal(loaded.evaluation_model.likelihood(z).mean, model.evaluation_model.likelihood(z).mean)


def test_resuming_a_model_made_in_python(tmp_path: Path) -> None:
    """Four steps, and two steps saved and continued, end in the same parameters."""
    # One batch an epoch: torch's own loader cannot resume within one.
    data = functools.partial(Images, batch_size=16)
    whole, first, second = (image_model(**METHODS["AL-A"], averaging=0.9) for _ in range(3))
    first.load_state_dict(whole.state_dict())
    trainer(tmp_path, max_steps=4).fit(whole, datamodule=data())
    run = trainer(tmp_path, [RunCheckpoint(monitor=None)], max_steps=2)
    run.fit(first, datamodule=data())
    last = tmp_path / "checkpoints" / "last.ckpt"
    trainer(tmp_path, [RunCheckpoint(monitor=None)], max_steps=4).fit(second, datamodule=data(), ckpt_path=last)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_hyperparameters_that_are_numbers_stay_in(tmp_path: Path) -> None:
    class Plain(ImageModel):
        def __init__(self, latent_dim: int = 2) -> None:
            super().__init__(latent_dim, MLPDecoder, image_shape=(1, 8, 8), likelihood="bernoulli")

    model = Plain(3)
    model.hparams.clear()
    model.hparams.update({"latent_dim": 3, "nested": {"widths": [1, 2], "name": None}})
    run = trainer(tmp_path, enable_checkpointing=True)
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "model.ckpt")
    stored = torch.load(tmp_path / "model.ckpt", weights_only=True)["hyper_parameters"]
    assert stored == {"latent_dim": 3, "nested": {"widths": [1, 2], "name": None}}


def test_logger_takes_a_model_made_in_python(tmp_path: Path) -> None:
    from pytorch_lightning.loggers import TensorBoardLogger

    logger = TensorBoardLogger(str(tmp_path), name="", version="tensorboard", default_hp_metric=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, logger=logger, max_steps=1).fit(image_model(), datamodule=Images())
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


# Other priors than the standard normal

PRIORS: dict[str, PriorBuilder] = {
    "LaplacePrior": LaplacePrior,
    "UniformPrior": UniformPrior,
    "BernoulliPrior": BernoulliPrior,
    "GaussianMixturePrior": functools.partial(GaussianMixturePrior, components=3),
    "FlowPrior": functools.partial(FlowPrior, transforms=2, bins=4, hidden=(8,)),
}
every_prior = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS.keys())


def test_standard_normal_prior_adds_no_names_and_draws_as_ever() -> None:
    """Checkpoints from before there was a choice still fit."""
    model = generator("gaussian")
    assert {name.split(".")[0] for name in model.state_dict()} == {"decoder", "pixels"}
    torch.manual_seed(3)
    z = model.sample_prior(4)
    torch.manual_seed(3)
    assert torch.equal(z, torch.randn(4, 3, dtype=torch.float64))
    assert not model.prior_is_learnt
    assert model.latents_are_real


@every_prior
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_parameter_receives_a_gradient_under_every_prior(prior: PriorBuilder, likelihood: str) -> None:
    model = generator(likelihood, prior=prior)
    sleep = model.sleep(40)
    assert sleep.x.dtype == torch.float64
    assert (sleep.joint.log_prior is None) == (not model.prior.learnt)  # type: ignore[attr-defined]
    sleep.joint.expectation(torch.randn(40, 3).double(), sleep.x[:3]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@every_prior
def test_log_joint_under_every_prior(prior: PriorBuilder) -> None:
    model = generator("gaussian", prior=prior)
    z = model.sample_prior(6)
    values = z[:, 1:] if isinstance(model.prior, GaussianMixturePrior) else z
    assert values.shape == (6, 3)
    x = torch.randn(6, 1, 8, 8).double()
    reference = Normal(model.decoder(values).tanh(), model.pixels.scale)  # type: ignore[arg-type]
    torch.testing.assert_close(model.likelihood(z).log_prob(x), reference.log_prob(x).flatten(1).sum(-1))
    torch.testing.assert_close(model.log_prior(z), model.prior.log_prob(z))


@every_prior
def test_training_moves_every_parameter_under_every_prior(prior: PriorBuilder, tmp_path: Path) -> None:
    learning = Learning(sleep_samples=20, held_out=10, centring=1.0, averaging=0.9, learning_rate=1e-2)
    decoder = functools.partial(MLPDecoder, hidden=[6])
    model = ImageModel(2, decoder, learning, prior=prior, image_shape=(1, 8, 8), likelihood="bernoulli")
    before = named(model)
    trainer(tmp_path, max_steps=3).fit(model, datamodule=Images())
    assert any(name.startswith("generative.prior") for name in before) == model.generative.prior_is_learnt  # type: ignore[union-attr]
    for name, value in named(model).items():
        assert not torch.equal(value, before[name]), name
    assert model.evaluation_model.sleep(5).x.shape == (5, 1, 8, 8)


@pytest.mark.parametrize("prior", [CirclePrior, functools.partial(CategoricalPrior, 3)])
def test_priors_that_are_not_over_vectors_are_refused(prior: Any) -> None:
    with pytest.raises(UserError, match="model.prior is no prior over 3 numbers"):
        generator("bernoulli", prior=prior)

"""The log-likelihood of held-out images against the exact one, and by the estimator that can be trusted."""

from __future__ import annotations

import functools
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from models import LinearGaussian
from runs import Images, Numbers, image_model, trainer
from torch import Tensor

from callbacks.log_likelihood import LogLikelihood
from lightning_alws.errors import UserError
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import Gaussian
from lightning_alws.metrics.annealed import Annealing
from lightning_alws.models import ImageModel
from lightning_alws.networks import MLPDecoder
from lightning_alws.priors import GaussianMixturePrior

PRIOR = "prior samples"
ANNEALED = "annealed importance sampling"
SHORT = Annealing(3, 4, 2)
IMPORTANCE = "importance sampling with a Gaussian encoder fitted to sleep samples"


class LinearImages(LinearGaussian):
    """The linear-Gaussian model, its four observations as images (1, 2, 2)."""

    def __init__(self, log_scale: float) -> None:
        super().__init__(2, 4, log_scale)
        self.float()

    def likelihood(self, z: Tensor) -> Gaussian:
        flat = super().likelihood(z)
        assert isinstance(flat, Gaussian)
        return Gaussian(flat.mean.unflatten(-1, (1, 2, 2)), self.log_scale)

    def exact(self, x: Tensor) -> Tensor:
        """log p(x_b), shape (B,), float64."""
        weight, bias, log_scale = (p.detach().double() for p in (self.weight, self.bias, self.log_scale))
        covariance = weight @ weight.T + torch.eye(4).double() * (2 * log_scale).exp()
        return torch.distributions.MultivariateNormal(bias, covariance).log_prob(x.flatten(1).double())


def linear(log_scale: float, count: int = 30) -> tuple[AmortisedLearning, Images]:
    """The model in a module, and images drawn from it."""
    model = LinearImages(log_scale)
    torch.manual_seed(6)
    x = model.sleep(3 * count).x
    splits = dict(zip(("train", "val", "test"), x.split(count), strict=True))
    module = AmortisedLearning(model, Learning(sleep_samples=20, learning_rate=1e-30))
    return module, Images("gaussian", (1, 2, 2), splits, batch_size=10)


def run_test(folder: Path, module: Any, data: Any, callback: LogLikelihood, **changes: Any) -> dict[str, float]:
    run = trainer(folder, [callback], **changes)
    (logged,) = run.test(module, datamodule=data, verbose=False)
    return logged


def test_prior_samples_where_they_suffice(tmp_path: Path) -> None:
    module, data = linear(0.0)
    callback = LogLikelihood(num_samples=20_000)
    logged = run_test(tmp_path, module, data, callback)
    exact = module.generative.exact(data.images("test"))  # type: ignore[operator]
    assert logged["test/log_likelihood"] == pytest.approx(float(exact.mean()), abs=0.02)
    assert logged["test/effective_samples"] > 100
    assert logged["test/log_likelihood_reliable"] == 1
    provenance = callback.provenance()["log_likelihood"]
    assert (provenance["method"], provenance["samples_per_image"], provenance["images"]) == (PRIOR, 20_000, 30)
    assert provenance["standard_error"] == pytest.approx(float(exact.std()) / 30**0.5, rel=0.02)


@pytest.mark.slow
def test_annealing_where_they_do_not(tmp_path: Path) -> None:
    """σ = e⁻⁴: prior samples miss the posterior. Gradients are taken inside of Lightning's inference mode."""
    module, data = linear(-4.0)
    exact = float(module.generative.exact(data.images("test")).mean())  # type: ignore[operator]
    wrong = run_test(tmp_path, module, data, LogLikelihood("prior", num_samples=2_000))
    assert wrong["test/log_likelihood"] < exact - 1
    callback = LogLikelihood(num_samples=2_000, annealing=Annealing(8, 300, 3))
    logged = run_test(tmp_path, module, data, callback)
    assert logged["test/log_likelihood"] == pytest.approx(exact, abs=0.2)
    assert logged["test/log_likelihood_reliable"] == 1
    assert -0.1 < logged["test/log_likelihood_gap"] < 1
    provenance = callback.provenance()["log_likelihood"]
    assert (provenance["method"], provenance["images"]) == (ANNEALED, 30)
    assert [provenance[name] for name in ("chains", "temperatures", "leapfrog_steps")] == [8, 300, 3]
    assert 0.5 < provenance["acceptance"] < 1


@pytest.mark.slow
def test_importance_sampling_with_a_fitted_encoder(tmp_path: Path) -> None:
    """The encoder is fitted inside of Lightning's inference mode."""
    module, data = linear(-4.0)
    exact = float(module.generative.exact(data.images("test")).mean())  # type: ignore[operator]
    callback = LogLikelihood("encoder", encoder_steps=800, importance_samples=1_000)
    logged = run_test(tmp_path, module, data, callback)
    assert logged["test/log_likelihood"] == pytest.approx(exact, abs=0.2)
    assert logged["test/log_likelihood_reliable"] == 1
    provenance = callback.provenance()["log_likelihood"]
    assert (provenance["method"], provenance["samples_per_image"]) == (IMPORTANCE, 1_000)


@pytest.mark.parametrize("num_samples", [300, 3_000, 30_000])
def test_the_method_follows_from_the_samples_that_will_be_effective(tmp_path: Path, num_samples: int) -> None:
    """Prior samples if at least ten of them are effective, however few there are in all, and only then."""
    for log_scale in (0.0, -1.0, -2.0):
        module, data = linear(log_scale, count=12)
        callback = LogLikelihood(num_samples=num_samples, annealing=SHORT)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_test(tmp_path, module, data, callback)
            alone = run_test(tmp_path, module, data, LogLikelihood("prior", num_samples=num_samples))
        effective = alone["test/effective_samples"]
        if abs(math.log(effective / 10)) < 0.3:
            continue  # the pilot may decide either way
        expected = PRIOR if effective > 10 else ANNEALED
        assert callback.provenance()["log_likelihood"]["method"] == expected, (log_scale, effective)


def test_a_mixture_keeps_to_prior_samples(tmp_path: Path) -> None:
    """No gradient leads to another component; with σ known and one latent, log p(x) is that of quadrature."""
    prior = functools.partial(GaussianMixturePrior, components=3)
    decoder = functools.partial(MLPDecoder, hidden=[6])
    model = ImageModel(1, decoder, Learning(20, 10), prior=prior, image_shape=(1, 4, 4), likelihood="gaussian")
    generative: Any = model.generative
    data = Images("gaussian", (1, 4, 4))
    callback = LogLikelihood(num_samples=20_000)
    logged = run_test(tmp_path, model, data, callback)
    assert callback.provenance()["log_likelihood"]["method"] == PRIOR
    v = torch.linspace(-4, 4, 2001)[:, None]
    with torch.no_grad():
        log_prior = generative.prior.log_joint(v).logsumexp(1)
        likelihood = generative.likelihood(generative.prior.pack(torch.zeros(2001).long(), v))
        pairs = torch.distributions.Normal(likelihood.mean, generative.pixels.scale)
        log_prob = pairs.log_prob(data.images("test")[:, None]).flatten(2).sum(-1)
    exact = float((log_prob + log_prior + math.log(8 / 2000)).logsumexp(1).mean())
    assert logged["test/log_likelihood"] == pytest.approx(exact, abs=0.02)
    # Where too few prior samples count, too: said, and not replaced.
    with pytest.warns(UserWarning, match="is unreliable"):
        run_test(tmp_path, model, data, tiny := LogLikelihood(num_samples=3))
    assert tiny.provenance()["log_likelihood"]["method"] == PRIOR


def test_unreliable_figures_are_marked_and_said(tmp_path: Path) -> None:
    module, data = linear(-4.0)
    with pytest.warns(UserWarning, match="is unreliable"):
        logged = run_test(tmp_path, module, data, LogLikelihood("prior", num_samples=500))
    assert logged["test/log_likelihood_reliable"] == 0
    assert logged["test/effective_samples"] < 10
    with pytest.warns(UserWarning, match="bounds .* nats apart on simulated images and is unreliable"):
        logged = run_test(tmp_path, module, data, LogLikelihood("annealed", annealing=SHORT))
    assert logged["test/log_likelihood_reliable"] == 0
    assert logged["test/log_likelihood_gap"] > 1
    module, data = linear(0.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*unreliable.*")
        run_test(tmp_path, module, data, LogLikelihood(num_samples=2_000))


def fit(folder: Path, module: Any, data: Any, callback: LogLikelihood, **changes: Any) -> pl.Trainer:
    run = trainer(folder, [callback], **({"max_steps": 1, "val_check_interval": 1} | changes))
    run.fit(module, datamodule=data)
    return run


def test_validation(tmp_path: Path) -> None:
    module, data = linear(0.0)
    callback = LogLikelihood(val_samples=20_000)
    figures = fit(tmp_path, module, data, callback).callback_metrics
    exact = float(module.generative.exact(data.images("val")).mean())  # type: ignore[operator]
    assert float(figures["val/log_likelihood"]) == pytest.approx(exact, abs=0.02)
    assert float(figures["val/effective_samples"]) > 100
    assert "test/log_likelihood" not in figures
    assert callback.provenance() == {}  # that of the test figure


def test_every_validation_and_a_rerun_use_the_same_draws(tmp_path: Path) -> None:
    module, data = linear(0.0)
    values = []
    for seed, steps in ((1, 1), (2, 3)):
        torch.manual_seed(seed)
        run = fit(tmp_path, module, data, LogLikelihood(val_samples=50), max_steps=steps)
        values.append(float(run.callback_metrics["val/log_likelihood"]))
    assert values[0] == values[1]


@pytest.mark.filterwarnings("ignore:test/log_likelihood")
@pytest.mark.parametrize(("method", "expected"), [("encoder", IMPORTANCE), ("annealed", ANNEALED)])
def test_no_trace_is_left(tmp_path: Path, method: Any, expected: str) -> None:
    """Neither in the global generator nor in the model, which the encoder's samples come from."""
    module, data = linear(-4.0)
    callback = LogLikelihood(method, encoder_steps=3, importance_samples=3, annealing=SHORT)
    states = []
    for callbacks in ([], [callback]):
        torch.manual_seed(1)
        trainer(tmp_path, callbacks).test(module, datamodule=data, verbose=False)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert callback.provenance()["log_likelihood"]["method"] == expected
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert run_test(tmp_path, module, data, callback) == run_test(tmp_path, module, data, callback)


def test_first_images_of_the_split_at_most(tmp_path: Path) -> None:
    module, data = linear(0.0)
    callback = LogLikelihood(num_samples=20_000, max_images=5)
    logged = run_test(tmp_path, module, data, callback)
    exact = float(module.generative.exact(data.images("test")[:5]).mean())  # type: ignore[operator]
    assert logged["test/log_likelihood"] == pytest.approx(exact, abs=0.05)
    assert callback.provenance()["log_likelihood"]["images"] == 5
    run_test(tmp_path, module, data, callback := LogLikelihood(num_samples=2_000, max_images=1))
    assert callback.provenance()["log_likelihood"]["standard_error"] is None


def test_of_a_split_in_the_order_of_its_files_random_images_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorted by class, here by log p(x), the first images say nothing of the others."""
    module, data = linear(0.0, count=200)
    exact = module.generative.exact(data.images("test"))  # type: ignore[operator]
    order = exact.argsort()
    data.splits["test"] = data.splits["test"][order]
    few = {"num_samples": 20_000, "max_images": 40}
    first = run_test(tmp_path, module, data, callback := LogLikelihood(**few))
    assert first["test/log_likelihood"] < float(exact.mean()) - 1  # the least likely fifth
    assert "images_chosen" not in callback.provenance()["log_likelihood"]
    data.in_file_order = frozenset(["train", "test"])  # type: ignore[attr-defined]
    logged = run_test(tmp_path, module, data, callback := LogLikelihood(**few))
    provenance = callback.provenance()["log_likelihood"]
    assert logged["test/log_likelihood"] == pytest.approx(float(exact.mean()), abs=3 * provenance["standard_error"])
    assert (provenance["images"], provenance["images_chosen"]) == (40, "at random")
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")  # the images do not depend on the run's seed; the prior's samples do
    again = run_test(tmp_path, module, data, LogLikelihood(**few))
    assert again["test/log_likelihood"] == pytest.approx(logged["test/log_likelihood"], abs=0.05)


def test_the_averaged_model_is_measured(tmp_path: Path) -> None:
    model = image_model(averaging=0.9)
    figures = []
    for value in (None, 100.0):
        if value is not None:
            with torch.no_grad():
                for parameter in model.generative.parameters():
                    parameter.fill_(value)
        figures.append(run_test(tmp_path, model, Images(), LogLikelihood("prior", num_samples=200)))
    assert figures[0] == figures[1]


@pytest.mark.filterwarnings("ignore:test/log_likelihood")
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 16, 16), (1, 28, 28), (3, 20, 24)], ids=str)
def test_encoder_for_images_of_every_size(tmp_path: Path, likelihood: str, shape: tuple[int, int, int]) -> None:
    """A test after hours of training must not end because an image is not 16, 32, … pixels wide."""
    model = image_model(likelihood, shape)
    callback = LogLikelihood("encoder", encoder_steps=2, importance_samples=5)
    logged = run_test(tmp_path, model, Images(likelihood, shape), callback)
    assert callback.provenance()["log_likelihood"]["method"] == IMPORTANCE
    assert math.isfinite(logged["test/log_likelihood"])


@pytest.mark.filterwarnings("ignore:test/log_likelihood")
@pytest.mark.parametrize("method", ["prior", "encoder", "annealed"])
def test_in_double_precision(tmp_path: Path, method: Any) -> None:
    """The trainer converts its batches; the images that the callback takes are still float32."""
    callback = LogLikelihood(method, 10, 10, encoder_steps=2, importance_samples=5, annealing=SHORT)
    model, data = image_model(), Images()
    run = trainer(tmp_path, [callback], precision="64-true")
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)
    assert math.isfinite(run.callback_metrics["test/log_likelihood"])


class Bare(pl.LightningModule):
    """Another method's module: no model to evaluate."""

    def test_step(self, x: Tensor, batch_idx: int) -> None:
        pass

    validation_step = test_step


@pytest.mark.parametrize("case", ["other data", "no model", "no likelihood", "fast_dev_run", "val_samples=0"])
def test_does_nothing_where_it_does_not_apply(tmp_path: Path, case: str) -> None:
    callback = LogLikelihood(num_samples=10, val_samples=0 if case == "val_samples=0" else 10)
    module = Bare() if case == "no model" else image_model()
    if case == "no likelihood":
        module.has_likelihood = False
    data = Numbers() if case == "other data" else Images()
    run = trainer(tmp_path, [callback], fast_dev_run=case == "fast_dev_run")
    run.validate(module, datamodule=data, verbose=False)
    assert not any("log_likelihood" in name for name in run.callback_metrics)
    if case != "val_samples=0":
        run.test(module, datamodule=data, verbose=False)
        assert not any("log_likelihood" in name for name in run.callback_metrics)
        assert callback.provenance() == {}


def test_not_in_the_sanity_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("callbacks.log_likelihood.monte_carlo_log_likelihood", fail)
    fit(tmp_path, image_model(), Images(), LogLikelihood(), num_sanity_val_steps=1, val_check_interval=2)


@pytest.mark.parametrize("name", ["num_samples", "val_samples", "max_images", "encoder_steps", "importance_samples"])
def test_senseless_numbers_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"log_likelihood.{name} is -1"):
        LogLikelihood(**{name: -1})


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(UserError, match="log_likelihood.method is 'best'; choose one of auto, prior"):
        LogLikelihood("best")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["encoder", "annealed"])
def test_methods_that_need_real_latents_are_refused_for_others(tmp_path: Path, method: Any) -> None:
    """When training begins, not after it."""
    module, data = linear(0.0)
    module.generative.latents_are_real = False  # type: ignore[assignment]
    with pytest.raises(UserError, match=f"log_likelihood.method is '{method}'"):
        fit(tmp_path, module, data, LogLikelihood(method))


class WithEncoder(AmortisedLearning):
    """The exact posterior mean, and a standard deviation ``scale`` times the exact posterior's, for each latent."""

    scale = 1.0

    def log_weights(self, x: Tensor, samples: int, model: Any) -> Tensor:
        assert model is self.evaluation_model
        weight, bias, precision = model.weight, model.bias, (-2 * model.log_scale).exp()
        covariance = torch.linalg.inv(torch.eye(2) + precision * weight.T @ weight)
        mean = precision * (x.flatten(1) - bias) @ weight @ covariance
        q = torch.distributions.MultivariateNormal(mean, self.scale**2 * covariance)
        z = q.sample((samples,))
        log_prob = model.likelihood(z.flatten(0, 1)).log_prob(x.repeat(samples, 1, 1, 1)).view(samples, -1)
        return log_prob + model.log_prior(z) - q.log_prob(z)


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_a_modules_own_encoder_gives_a_figure_of_its_own(tmp_path: Path, scale: float) -> None:
    """On the same images; with the exact posterior every weight is p(x)."""
    plain, data = linear(-1.0)
    module = WithEncoder(plain.generative, Learning(sleep_samples=20))
    module.scale = scale
    callback = LogLikelihood(num_samples=20_000, importance_samples=900, max_images=20)
    logged = run_test(tmp_path, module, data, callback)
    exact = float(plain.generative.exact(data.images("test")[:20]).mean())  # type: ignore[operator]
    assert logged["test/log_likelihood_encoder"] == pytest.approx(exact, abs=1e-4 if scale == 1 else 0.05)
    assert logged["test/log_likelihood"] == pytest.approx(exact, abs=0.2)
    effective = logged["test/effective_samples_encoder"]
    assert effective == pytest.approx(900, abs=0.1) if scale == 1 else 300 < effective < 800
    provenance = callback.provenance()
    assert provenance["log_likelihood"]["images"] == provenance["log_likelihood_encoder"]["images"] == 20
    assert provenance["log_likelihood_encoder"]["samples_per_image"] == 900
    alone = run_test(tmp_path, plain, data, callback)
    assert alone["test/log_likelihood"] == logged["test/log_likelihood"]
    assert "test/log_likelihood_encoder" not in alone
    assert "log_likelihood_encoder" not in callback.provenance()


def test_decoder_of_the_image_model_has_a_likelihood_too(tmp_path: Path) -> None:
    """One latent point: log p(x) = log p(x|z) exactly, by torch's Bernoulli."""
    model = image_model()
    assert isinstance(model.generative.decoder, MLPDecoder)
    with torch.no_grad():
        for parameter in model.generative.parameters():
            parameter.zero_()
        next(iter(reversed(list(model.generative.parameters())))).fill_(0.7)  # the last bias: z has no effect
    data = Images()
    logged = run_test(tmp_path, model, data, LogLikelihood(num_samples=50))
    mean = 1e-4 + (1 - 2e-4) * torch.tensor(0.7).sigmoid()
    exact = torch.distributions.Bernoulli(mean).log_prob(data.images("test")).flatten(1).sum(1).mean()
    assert logged["test/log_likelihood"] == pytest.approx(float(exact), rel=1e-5)
    assert logged["test/effective_samples"] == pytest.approx(50, rel=1e-4)

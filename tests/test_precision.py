"""Networks in bfloat16 or TensorFloat-32 leave the regression, its predictions and its errors where they were."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from models import LinearGaussian
from runs import FIXED, Images, image_model, trainer
from torch import Tensor, nn

from lightning_alws.feature_ridge import NystromRidge, RandomFeatureRidge
from lightning_alws.generative import LatentVariableModel, PlugIn
from lightning_alws.kernels import GaussianKernel, MedianKernel
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import Gaussian, Likelihood
from lightning_alws.metrics.gradients import relative_error
from lightning_alws.networks import LinearFeatures, MLPFeatures
from lightning_alws.objectives import LogJointError, NaturalParameterError
from lightning_alws.precision import at_least_float32, full_precision
from lightning_alws.regression import KernelRidge

CPU = torch.device("cpu")
lowered = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)
MATMULS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _precision_as_before() -> Iterator[None]:
    given = [backend.fp32_precision for backend in MATMULS]
    yield
    torch.set_float32_matmul_precision("highest")
    for backend, precision in zip(MATMULS, given, strict=True):
        backend.fp32_precision = precision


def by_name(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)


def by_backend(precision: str) -> None:
    for backend in MATMULS:
        backend.fp32_precision = precision


SETTINGS = {
    "nothing": lambda: None,
    "high": functools.partial(by_name, "high"),
    "medium": functools.partial(by_name, "medium"),
    "backends": functools.partial(by_backend, "tf32"),
}
every_setting = pytest.mark.parametrize("choose", SETTINGS.values(), ids=SETTINGS)


def settings() -> list[str]:
    return [backend.fp32_precision for backend in MATMULS]


@every_setting
def test_full_precision_and_the_users_choice_afterwards(choose: Callable[[], None]) -> None:
    choose()
    before = settings()
    with lowered(), full_precision(CPU):
        assert settings() == ["ieee", "ieee"]
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.is_autocast_enabled("cpu")
    assert settings() == before
    with pytest.raises(KeyError), full_precision(CPU):
        raise KeyError
    assert settings() == before
    if choose is not SETTINGS["backends"]:  # of those torch tells no name
        assert torch.get_float32_matmul_precision() in ("highest", "high", "medium")


@every_setting
def test_every_factorisation_and_solve_of_a_run_is_in_full_precision(
    choose: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under bf16-mixed, forwards and backwards; the networks are lowered all the same."""
    choose()
    seen: list[tuple[str, torch.dtype, bool]] = []

    def watch(module: object, name: str) -> None:
        original = getattr(module, name)

        def watched(*arguments: Tensor) -> Tensor:
            exact = settings() == ["ieee", "ieee"] and not torch.is_autocast_enabled("cpu")
            seen.append((name, arguments[0].dtype, exact))
            return original(*arguments)

        monkeypatch.setattr(module, name, watched)

    watch(torch.linalg, "cholesky_ex")
    watch(torch, "cholesky_solve")
    features = functools.partial(MLPFeatures, hidden=[6], width=3)
    regression = functools.partial(KernelRidge, kernel=functools.partial(MedianKernel, features=features))
    model = image_model(regression=regression, kernel_objective=LogJointError())
    outputs: list[torch.dtype] = []
    model.generative.decoder.register_forward_hook(lambda *given: outputs.append(given[2].dtype))
    trainer(tmp_path, max_steps=2, precision="bf16-mixed").fit(model, datamodule=Images())
    names = [name for name, _, _ in seen]
    # A step has a factorisation, a solve of the wake batch, one of the held-out samples and that one's adjoint.
    assert names.count("cholesky_ex") >= 2
    assert names.count("cholesky_solve") >= 6
    assert all(dtype == torch.float32 and exact for _, dtype, exact in seen), seen
    assert torch.bfloat16 in outputs


REGRESSIONS = {
    "exact": functools.partial(KernelRidge, intercept=True),
    "Nyström": functools.partial(NystromRidge, centres=30),
    "random features": functools.partial(RandomFeatureRidge, count=40, redraw=False),
}


@pytest.mark.parametrize("build", REGRESSIONS.values(), ids=REGRESSIONS)
def test_weights_and_their_gradient_under_autocast_are_bitwise_those_without(build) -> None:
    kernel = functools.partial(GaussianKernel, features=functools.partial(LinearFeatures, width=4))
    torch.manual_seed(0)
    regression = build((6,), kernel=kernel, ridge=0.1)
    x, query, direction = torch.randn(80, 6) + 10, torch.randn(9, 6) + 10, torch.randn(80, 9)
    regression.initialise(x)
    found = []
    for enabled in (False, True):
        with lowered(enabled=enabled):
            weights = regression.fit(x).weights(query)
            value = (weights * direction).sum()
        parameters = [regression.log_ridge, *regression.kernel.parameters()]
        found.append([weights, *torch.autograd.grad(value, parameters)])
    assert found[1][0].dtype == torch.float32
    assert all(torch.equal(plain, under) for plain, under in zip(*found, strict=True))


def test_predictions_under_autocast_are_those_without() -> None:
    """Of a log joint of hundreds of nats: bfloat16 would err by nats, float32 by 1e-4 of one."""
    torch.manual_seed(0)
    median = functools.partial(KernelRidge, kernel=MedianKernel)
    model = image_model(shape=(1, 32, 32), sleep_samples=200, regression=median)
    sleep, x = model.draw(200, "sleep"), model.draw(12, "data").x
    weights = model.regress(sleep).weights(x).detach()
    joint = sleep.joint.detach()
    double = joint.map(Tensor.double, Tensor.double)
    truth = double.expectation(weights.double(), x.double())
    assert float(double.log_joint.abs().mean()) > 500
    with lowered():
        under = joint.expectation(weights, x)
    assert float((under - truth).abs().max()) < 1e-2
    assert torch.equal(under, joint.expectation(weights, x))
    with lowered():  # the failure that this is to prevent
        rounded = weights.T @ joint.likelihood.log_normaliser
    error = (rounded.double() - weights.double().T @ double.likelihood.log_normaliser).abs().max()
    assert float(error) > 0.1


@pytest.mark.parametrize("objective", [LogJointError(), NaturalParameterError()])
def test_kernel_objectives_under_autocast_are_those_without(objective) -> None:
    torch.manual_seed(0)
    model = image_model(sleep_samples=60, kernel_objective=objective)
    sleep, held_out = model.draw(60, "sleep"), model.draw(30, "held_out")
    weights = model.regress(sleep).weights(held_out.x)
    with lowered():
        under = objective(weights, sleep, held_out)
    assert torch.equal(under, objective(weights, sleep, held_out))


class Lowered(LatentVariableModel):
    """A user's model that leaves its parameters as autocast has them; its prior is learnt."""

    prior_is_learnt = True

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.scorer = nn.Linear(2, 5), nn.Linear(2, 1)

    def sample_prior(self, count: int) -> Tensor:
        return torch.randn(count, 2)

    def log_prior(self, z: Tensor) -> Tensor:
        return self.scorer(z)[:, 0]

    def likelihood(self, z: Tensor) -> Likelihood:
        mean = self.decoder(z)
        assert mean.dtype == (torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32)
        return Gaussian(mean, torch.zeros(()))


@pytest.mark.parametrize("settings", [{}, {"mode": "direct"}, {"chunk": 7}], ids=["plug-in", "direct", "chunks"])
def test_what_a_model_leaves_lowered_is_raised(settings: dict) -> None:
    module = AmortisedLearning(
        Lowered(), Learning(sleep_samples=20, regression=FIXED, kernel_objective=LogJointError(), **settings)
    )
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    with lowered():
        sleep = module.draw(20, "sleep")
        assert sleep.x.dtype == torch.float32
        assert sleep.joint.log_joint.dtype == torch.float32
        loss = module.training_step(torch.randn(4, 5), 0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.generative.parameters())


def test_only_halves_are_raised() -> None:
    for dtype, raised in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32)):
        assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == raised
    for dtype in (torch.float32, torch.float64, torch.int64):
        tensor = torch.ones(2, dtype=dtype)
        assert at_least_float32(tensor) is tensor


def test_the_error_of_the_gradient_is_where_it_was() -> None:
    """∇_θ Ĵ of a step with lowered networks beside the exact gradient: its error is that without, within 5 %."""
    torch.manual_seed(0)
    exact_model = LinearGaussian(2, 4, log_scale=0.0)
    model = LinearGaussian(2, 4, log_scale=0.0).float()
    x = exact_model.sleep(40).x

    def gradients(values: Tensor, of: nn.Module) -> Tensor:
        rows = [torch.autograd.grad(value, [*of.parameters()], retain_graph=True) for value in values]
        return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])

    exact = gradients(exact_model.log_marginal(x), exact_model)
    regression = KernelRidge((4,), ridge=0.1)
    regression.initialise(model.sleep(300).x.float())
    errors = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with lowered(enabled=enabled):
            sleep = model.sleep(1000)
            assert isinstance(sleep.joint, PlugIn)
            with torch.no_grad():
                weights = regression.fit(sleep.x).weights(x.float())
            estimate = gradients(sleep.joint.expectation(weights, x.float()), model)
        errors.append(relative_error(estimate[None].double(), exact).rms)
    assert errors[0] < 0.6
    assert errors[1] == pytest.approx(errors[0], rel=0.05), errors

"""Sleep samples in chunks: the same numbers and gradients as all at once, with less to keep."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from models import LearntPrior, LinearGaussian, flat_gradient
from torch import Tensor, nn

from lightning_alws.chunks import ChunkedJoint, sleep_in_chunks
from lightning_alws.errors import UserError
from lightning_alws.generative import GenerativeModel, LatentVariableModel, Simulator, Sleep
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import Bernoulli, Likelihood
from lightning_alws.models.ica import IndependentComponents
from lightning_alws.models.neural_dynamics import NeuralDynamics
from lightning_alws.objectives import LogJointError, NaturalParameterError
from lightning_alws.regression import KernelRidge
from lightning_alws.windows import Windows


class TwoLatents(Simulator):
    """k ~ Bernoulli(½), u ~ N(0, 1), x ~ N(a k + u, 1) in two dimensions: latents by name."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64))

    def simulate(self, count: int) -> tuple[dict[str, Tensor], Tensor]:
        z = {"k": torch.randint(2, (count, 1)).double(), "u": torch.randn(count, 1, dtype=torch.float64)}
        return z, self.mean(z) + torch.randn(count, 2, dtype=torch.float64)

    def log_joint(self, z: Any, x: Tensor) -> Tensor:
        return -0.5 * (x - self.mean(z)).square().sum(1)

    def mean(self, z: Any) -> Tensor:
        return self.slope * z["k"] + z["u"]


class Deep(LatentVariableModel):
    """A wide decoder, whose activations are what chunks are for."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 4))

    def sample_prior(self, count: int) -> Tensor:
        return torch.randn(count, 2)

    def log_prior(self, z: Tensor) -> Tensor:
        return -0.5 * z.square().sum(1)

    def likelihood(self, z: Tensor) -> Likelihood:
        return Bernoulli(self.decoder(z))


MODELS = {
    "linear": LinearGaussian,
    "learnt prior": LearntPrior,
    "latents by name": TwoLatents,
    "Laplace": lambda: IndependentComponents((3,), 2, weight_std=0.5, residual=False).double(),
}


def both(model: GenerativeModel, count: int, size: int, direct: bool) -> tuple[Sleep, Sleep]:
    """The same samples, in chunks and at once."""
    chunked = sleep_in_chunks(model, count, size, direct)
    return chunked, Sleep(chunked.z, chunked.x, model.joint(chunked.z, chunked.x, direct))


@pytest.mark.parametrize("size", [1, 7, 20, 100])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_values_and_gradients_are_those_of_all_at_once(build, direct: bool, size: int) -> None:
    model = build()
    chunked, whole = both(model, 20, size, direct or model.direct_only)
    assert len(chunked.x) == 20
    weights = torch.randn(15, 6, dtype=torch.float64, requires_grad=True)
    x = whole.x[15:].repeat(2, 1)[:6]
    results = []
    for sleep in (chunked[:15], whole[:15]):
        expectation = sleep.joint.expectation(weights, x)
        loss = (expectation * torch.arange(1, 7)).sum() + sleep.joint.log_joint.square().sum()
        by_weights = torch.autograd.grad(loss, weights, retain_graph=True)[0]
        results.append((expectation, by_weights, flat_gradient(loss, model)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


def test_without_gradient_the_weights_still_have_theirs() -> None:
    model = LinearGaussian()
    chunked, whole = both(model, 20, 6, False)
    weights = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    ours, expected = (sleep.joint.detach().expectation(weights, whole.x[:3]).sum() for sleep in (chunked, whole))
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(value, [weights], allow_unused=True)[0] for value in (ours, expected)]
    torch.testing.assert_close(*gradients)
    again = chunked.joint.detach().expectation(weights, whole.x[:3]).sum()
    assert torch.autograd.grad(again, [*model.parameters()], allow_unused=True) == (None, None, None)


@pytest.mark.parametrize("objective", [None, LogJointError(), NaturalParameterError()], ids=["AL-F", "AL-A", "vector"])
@pytest.mark.parametrize("centring", [0.0, 1.0])
def test_a_step_has_the_gradient_of_all_at_once(monkeypatch, objective, centring: float) -> None:
    """With the same samples: those of the chunks, given whole to a module without."""
    learning = {
        "sleep_samples": 60,
        "held_out": 20,
        "centring": centring,
        "kernel_objective": objective,
        "regression": functools.partial(KernelRidge, ridge=0.1),
    }
    torch.manual_seed(0)
    chunked = AmortisedLearning(LinearGaussian(), Learning(**learning, chunk=16))
    whole = AmortisedLearning(LinearGaussian(), Learning(**learning))
    whole.load_state_dict(chunked.state_dict())

    drawn = chunked.draw(60 + chunked.learning.held_out_drawn, "sleep")
    assert isinstance(drawn.joint, ChunkedJoint)
    monkeypatch.setattr(chunked, "sleep", lambda: (drawn[:60], drawn[60:]))
    at_once = Sleep(drawn.z, drawn.x, whole.generative.joint(drawn.z, drawn.x, False))
    monkeypatch.setattr(whole, "sleep", lambda: (at_once[:60], at_once[60:]))
    gradients = []
    for module in (chunked, whole):
        module.log = lambda *args, **options: None  # type: ignore[method-assign]
        module.training_step(torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3), 0).backward()
        gradients.append({name: parameter.grad for name, parameter in module.named_parameters()})
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, rtol=1e-9, atol=1e-11)


def test_what_is_kept_for_the_gradient_does_not_grow_with_the_layers() -> None:
    model = Deep()
    chunked = sleep_in_chunks(model, 1000, 50, False)
    weights, x = torch.randn(1000, 5), torch.zeros(5, 4)
    kept = {}
    for name in ("chunks", "whole"):
        sizes: list[int] = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            joint = chunked.joint if name == "chunks" else model.joint(chunked.z, chunked.x, False)
            joint.expectation(weights, x).sum().backward()
        kept[name] = sizes
    # In chunks the layers are computed within the backward pass, 50 rows at a time, and then let go.
    assert max(kept["chunks"]) < 100_000
    assert max(kept["whole"]) >= 1000 * 300


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="chunk is 0"):
        AmortisedLearning(LinearGaussian(), Learning(chunk=0))
    with pytest.raises(UserError, match=r"model\.learning\.chunk is given, but Windows cannot compute"):
        AmortisedLearning(Windows(NeuralDynamics((5, 2)), 1, 1), Learning(chunk=10))
    with pytest.raises(UserError, match="no sum over the sleep samples; set"):
        AmortisedLearning(IndependentComponents((3,), 2, residual=True), Learning(chunk=10))

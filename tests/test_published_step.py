"""The published step that ours is timed against: the same gradients given the same samples, at the cost it claims."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import torch
from runs import image_model
from torch import Tensor

from lightning_alws.generative import Sleep
from lightning_alws.kernels import GaussianKernel, MedianKernel
from lightning_alws.models import ImageModel
from lightning_alws.networks import LinearFeatures
from lightning_alws.objectives import LogJointError
from lightning_alws.regression import AnnealedRidge, KernelRidge

sys.path[:0] = [str(Path(__file__).parents[1] / "benchmarks")]

from measuring import Passes, slope  # noqa: E402
from published_step import PublishedStep, difference_distances  # noqa: E402

FEATURES = functools.partial(LinearFeatures, width=5)
REGRESSIONS = {
    "published": functools.partial(KernelRidge, kernel=functools.partial(GaussianKernel, features=FEATURES), ridge=0.1),
    "as configured": functools.partial(AnnealedRidge, kernel=functools.partial(MedianKernel, features=FEATURES)),
}


def module(adaptive: bool, regression: str = "published") -> ImageModel:
    torch.manual_seed(0)
    objective = LogJointError() if adaptive else None
    return image_model(regression=REGRESSIONS[regression], kernel_objective=objective).double()


def gradients(loss: Tensor, parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return dict(zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True))


@pytest.mark.parametrize("regression", REGRESSIONS)
@pytest.mark.parametrize("adaptive", [False, True], ids=["AL-F", "AL-A"])
def test_gradients_are_ours_given_the_same_samples(adaptive: bool, regression: str, monkeypatch) -> None:
    ours = module(adaptive, regression)
    monkeypatch.setattr(ours, "log", lambda *_, **__: None)
    sleep, held_out = ours.draw(20, "sleep"), ours.draw(10, "sleep")
    if not adaptive:
        held_out = held_out[:0]
    monkeypatch.setattr(ours, "sleep", lambda: (sleep, held_out))
    x = (torch.rand(4, 1, 8, 8) < 0.5).double()
    ours.training_step(x, 0).backward()

    theirs = PublishedStep(ours, block=500)  # 20 × 20 × 5 differences, in blocks

    def again(samples: Sleep):
        return theirs.at(samples.z, samples.x)

    model = dict(theirs.decoder.named_parameters())
    expected = gradients(theirs.model_loss(again(sleep), x), model)
    for name, parameter in ours.generative.decoder.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)
    if adaptive:
        kernel = {n: p for n, p in theirs.regression.named_parameters() if n != "kernel.network.net.1.bias"}
        expected = gradients(theirs.kernel_loss(again(sleep), again(held_out)), kernel)
        for name, gradient in expected.items():
            torch.testing.assert_close(
                ours.regression.get_parameter(name).grad, gradient, rtol=1e-8, atol=1e-10, msg=name
            )


@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_distances_and_their_gradient_in_blocks(block: int) -> None:
    a, b = torch.randn(7, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    a.requires_grad_()
    distances = difference_distances(a, b, block)
    expected = torch.cdist(a, b).square()
    torch.testing.assert_close(distances, expected)
    weights = torch.randn(7, 5, dtype=torch.float64)
    ours, truth = (torch.autograd.grad((d * weights).sum(), a)[0] for d in (distances, expected))
    torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize(("adaptive", "detached", "forward", "backward"), [
    (False, False, 3 * 20, 2 * 20),
    (True, False, 3 * 20 + 3 * 30, 2 * 20 + 2 * 30),
    (True, True, 3 * 20 + 3 * 30, 2 * 20),
])  # fmt: skip
def test_passes_through_the_generator(adaptive: bool, detached: bool, forward: int, backward: int) -> None:
    """N = 20, N_v = 10: three forwards and two backwards for each set of samples."""
    theirs = PublishedStep(module(adaptive), detached)
    before = [part.clone() for part in theirs.decoder.parameters()]
    with Passes(theirs.decoder) as passes:
        theirs.step((torch.rand(4, 1, 8, 8) < 0.5).double())
    assert (passes.forward, passes.backward) == (forward, backward)
    assert passes.equivalents == forward + 2 * backward
    assert all(not torch.equal(old, new) for old, new in zip(before, theirs.decoder.parameters(), strict=True))


def test_the_exponent_of_a_power_law() -> None:
    assert slope([500, 2000, 5000], [3 * n**2.5 for n in (500, 2000, 5000)]) == pytest.approx(2.5)

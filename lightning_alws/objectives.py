"""What the kernel of adaptive amortised learning (AL-A) is trained for: predicting held-out sleep samples.

The published objective predicts the number log p_θ(z, x). The vector-valued one predicts what the model's gradient
is made of: each natural parameter η_d(z), and the log-normaliser. It is ours (benchmarks/RESULTS.md says what it buys).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.generative import Sleep
from lightning_alws.precision import full_precision
from lightning_alws.scope import Scope


class KernelObjective(ABC):
    """A loss of the kernel's parameters, through the weights alone; the model's parameters get no gradient from it.

    Attributes:
        pools: whether it is right under ``regression_scope: global``, where ``weights`` has the rows of one rank's
            samples: what is summed over them must be summed by ``sleep.joint.scope``.
    """

    pools: bool = False

    @abstractmethod
    def __call__(self, weights: Tensor, sleep: Sleep, held_out: Sleep) -> Tensor:
        """The loss, a scalar.

        Args:
            weights: W (N, N_v) of the held-out observations, differentiable in the kernel's parameters.
            sleep: the N samples the regression was fitted on.
            held_out: N_v further samples.
        """


class LogJointError(KernelObjective):
    """mean_v (Ĵ(x_v) − log p_θ(z_v, x_v))², per sample (Wenliang et al., ICML 2020, Algorithm 1)."""

    pools = True

    def __call__(self, weights: Tensor, sleep: Sleep, held_out: Sleep) -> Tensor:
        predicted = sleep.joint.detach().expectation(weights, held_out.x)
        return (predicted - held_out.joint.detach().log_joint).square().mean()


class NaturalParameterError(KernelObjective):
    """Σ_d error_d / Σ_d variance_d over η(z), plus the log-normaliser's error over its variance.

    Both are taken as deviations from their means over the samples fitted on: 1 is what predicting nothing gives, in
    each of the two parts. Uncentred, the log-normaliser's mean of some hundred nats against a standard deviation of a
    few would leave the objective little else to do than to make the weights sum to one. Components of η that do not
    depend on z are left out. Needs the plug-in form of the joint.

    Raises:
        UserError: the joint is in direct form and has no natural parameters.
    """

    pools = True

    def __call__(self, weights: Tensor, sleep: Sleep, held_out: Sleep) -> Tensor:
        fitted, truth = self._targets(sleep), self._targets(held_out)
        scope = sleep.joint.scope
        errors = [self._relative_error(weights, fitted[part], truth[part], scope) for part in (0, 1)]
        return torch.stack(errors).sum()

    @staticmethod
    def _relative_error(weights: Tensor, fitted: Tensor, truth: Tensor, scope: Scope) -> Tensor:
        centre = scope.mean(fitted)
        with full_precision(weights.device):
            error = scope.sum(weights.T @ (fitted - centre), alike=True) - (truth - centre)
        return error.square().mean(0).sum() / scope.variance(fitted).sum()

    @staticmethod
    @torch.no_grad()
    def _targets(sleep: Sleep) -> tuple[Tensor, Tensor]:
        targets = sleep.joint.targets
        if targets is None:
            raise UserError(
                "model.learning.kernel_objective is NaturalParameterError, but model.learning.mode is 'direct' and has "
                "no natural parameters; use LogJointError."
            )
        return targets

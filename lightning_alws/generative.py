"""What a latent-variable model must be able to do, and its sleep samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError
from lightning_alws.likelihoods import Likelihood, TensorMap
from lightning_alws.precision import at_least_float32, full_precision
from lightning_alws.scope import Scope

Latents = Tensor | dict[str, Tensor]


def map_latents(z: Latents, function: TensorMap) -> Latents:
    """The same latents with the function applied to each tensor."""
    return {name: function(part) for name, part in z.items()} if isinstance(z, dict) else function(z)


class Joint(ABC):
    """log p_θ(z_n, ·) of N sleep samples, as the target of a regression; differentiable in θ.

    Attributes:
        is_sum: whether a prediction is a sum over the samples, and so is 0 where all weights are.
        scope: whose samples predict together with these.
    """

    is_sum: bool = True
    scope: Scope = Scope()

    @abstractmethod
    def expectation(self, weights: Tensor, x: Tensor) -> Tensor:
        """Ĵ(x_b) = Σ_n W_nb log p_θ(z_n, ·) for weights (N, B) and observations x (B, *event), shape (B,)."""

    @property
    def targets(self) -> tuple[Tensor, Tensor] | None:
        """What is regressed in plug-in form: components of η(z_n) that depend on z, (N, K'), and Ψ(z_n), (N, 1).

        None in direct form.
        """
        return None

    @property
    @abstractmethod
    def log_joint(self) -> Tensor:
        """log p_θ(z_n, x_n) at the sleep samples themselves, shape (N,)."""

    @abstractmethod
    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        """The joint with ``rows`` applied to tensors with one row per sample, ``shared`` to what all samples share."""

    def __getitem__(self, rows: slice) -> Self:
        """The joint of a slice of the sleep samples."""
        return self.map(lambda tensor: tensor[rows], lambda tensor: tensor)

    def detach(self) -> Self:
        """The joint without gradient."""
        return self.map(Tensor.detach, Tensor.detach)


@dataclass(frozen=True)
class PlugIn(Joint):
    """Ĵ(x*) = Σ_n W_n log p_θ(z_n, x*): the conditional's natural parameters are regressed, x* is put in exactly.

    Attributes:
        x: sleep observations (N, *event).
        likelihood: p_θ(x|z_n), an exponential family.
        log_prior: log p_θ(z_n), shape (N,), or None where the prior has no parameters: it then has no gradient and
            would only be one more thing for the regression to predict (as the published code does).
    """

    x: Tensor
    likelihood: Likelihood
    log_prior: Tensor | None

    def expectation(self, weights: Tensor, x: Tensor) -> Tensor:
        with full_precision(weights.device):
            expected = self.likelihood.expectation(weights, x)
            return expected if self.log_prior is None else expected + weights.T @ self.log_prior

    @property
    def targets(self) -> tuple[Tensor, Tensor]:
        return self.likelihood.varying_parameters, self.likelihood.log_normaliser[:, None]

    @property
    def log_joint(self) -> Tensor:
        log_prob = self.likelihood.log_prob(self.x)
        return log_prob if self.log_prior is None else log_prob + self.log_prior

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        log_prior = None if self.log_prior is None else rows(self.log_prior)
        return type(self)(rows(self.x), self.likelihood.map(rows, shared), log_prior)


@dataclass(frozen=True)
class Direct(Joint):
    """Ĵ(x*) = Σ_n W_n log p_θ(z_n, x_n): needs no exponential family, only the number log p_θ(z_n, x_n).

    Attributes:
        values: log p_θ(z_n, x_n), shape (N,).
    """

    values: Tensor

    def expectation(self, weights: Tensor, x: Tensor) -> Tensor:
        with full_precision(weights.device):
            return weights.T @ self.values

    @property
    def log_joint(self) -> Tensor:
        return self.values

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        return type(self)(rows(self.values))


@dataclass(frozen=True)
class Sleep:
    """Sleep samples z_n, x_n ~ p_θ.

    Attributes:
        z: latents, one tensor (N, ...) or several by name, without gradient.
        x: observations (N, *event), without gradient.
        joint: log p_θ(z_n, ·), differentiable in θ.
    """

    z: Latents
    x: Tensor
    joint: Joint

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(map_latents(self.z, lambda part: part[rows]), self.x[rows], self.joint[rows])


class GenerativeModel(nn.Module, ABC):
    """p_θ(z, x) that can be simulated: what amortised learning needs of a model, and all it needs.

    Write one of the two kinds below: a :class:`LatentVariableModel` where p_θ(x|z) is an exponential family, a
    :class:`Simulator` where only the number log p_θ(z, x) can be computed. The contract, checked before the first
    step (:mod:`lightning_alws.contract`):

    * samples come from torch's generators, so that the seed governs them, and carry no gradient;
    * log p_θ(z, x) is finite, of shape (N,), and differentiable in every parameter of the module;
    * tensors are made on the device and in the dtype of the module's parameters.

    Attributes:
        direct_only: whether there is no exponential family to put x* into, only the number log p_θ(z_n, x_n).
    """

    direct_only: bool = False

    @abstractmethod
    def sleep(self, count: int, direct: bool = False) -> Sleep:
        """``count`` sleep samples with one pass through the generator.

        Args:
            direct: regress log p_θ(z_n, x_n) itself rather than the natural parameters.
        """

    def joint(self, z: Latents, x: Tensor, direct: bool) -> Joint:
        """log p_θ(z_n, ·) of sleep samples that were drawn before; what drawing in chunks needs.

        Its expectation must be a sum over the samples.

        Args:
            z: latents, one tensor (N, ...) or several by name.
            x: observations (N, *event).
            direct: regress log p_θ(z_n, x_n) itself rather than the natural parameters.
        """
        raise UserError(
            f"model.learning.chunk is given, but {type(self).__name__} cannot compute log p(z, x) of samples drawn "
            "before; leave it out."
        )

    def statistics(self, z: Latents) -> Latents:
        """Real numbers of z, one row each, whose posterior means mean something; by default z itself.

        A model with discrete latents gives indicators: their posterior means are probabilities.
        """
        return z

    def watched(self) -> dict[str, Tensor]:
        """Scalars worth a curve in TensorBoard, by name, such as a noise scale; by default the scalar parameters."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.numel() == 1}


class LatentVariableModel(GenerativeModel):
    """p_θ(z) p_θ(x|z): a prior that can be sampled and a likelihood from an exponential family.

    Attributes:
        prior_is_learnt: whether log p_θ(z) has parameters.
        latents_are_real: whether z has a density on the real numbers, which a Gaussian could approximate; false where
            some of z is discrete or confined to a curve.
    """

    prior_is_learnt: bool = False
    latents_are_real: bool = True

    @abstractmethod
    def sample_prior(self, count: int) -> Tensor:
        """z_n ~ p_θ(z), shape (count, ...), on the model's device, without gradient."""

    @abstractmethod
    def log_prior(self, z: Tensor) -> Tensor:
        """log p_θ(z_n), shape (N,)."""

    @abstractmethod
    def likelihood(self, z: Tensor) -> Likelihood:
        """p_θ(x|z_n) for z (N, ...), differentiable in θ."""

    def sleep(self, count: int, direct: bool = False) -> Sleep:
        """``count`` sleep samples; the joint is plug-in unless ``direct``."""
        z = self.sample_prior(count).detach()
        likelihood = self._likelihood(z)
        x = likelihood.sample().detach()
        return Sleep(z, x, self.joint_given(likelihood, z, x, direct))

    def joint(self, z: Latents, x: Tensor, direct: bool) -> Joint:
        assert isinstance(z, Tensor)
        return self.joint_given(self._likelihood(z), z, x, direct)

    def _likelihood(self, z: Tensor) -> Likelihood:
        """p_θ(x|z_n), where autocast lowered its parameters back in float32: sums over pixels need its digits."""
        return self.likelihood(z).map(at_least_float32, at_least_float32)

    def joint_given(self, likelihood: Likelihood, z: Tensor, x: Tensor, direct: bool) -> Joint:
        """log p_θ(z_n, ·) of sleep samples whose likelihood p_θ(x|z_n) is there."""
        log_prior = at_least_float32(self.log_prior(z)) if self.prior_is_learnt else None
        plug_in = PlugIn(x, likelihood, log_prior)
        return Direct(plug_in.log_joint) if direct else plug_in


class Simulator(GenerativeModel):
    """p_θ(z, x) that can be simulated and whose log density of what was simulated can be computed; nothing else.

    Learnt in direct mode: the numbers log p_θ(z_n, x_n) are regressed on x_n.
    """

    direct_only = True

    @abstractmethod
    def simulate(self, count: int) -> tuple[Latents, Tensor]:
        """z_n, x_n ~ p_θ: latents, one tensor (count, ...) or several by name, and observations (count, *event).

        Called without gradient.
        """

    @abstractmethod
    def log_joint(self, z: Latents, x: Tensor) -> Tensor:
        """log p_θ(z_n, x_n), shape (N,), differentiable in θ; terms without parameters may be left out."""

    def sleep(self, count: int, direct: bool = True) -> Sleep:
        if not direct:
            raise UserError(
                f"model.learning.mode is 'plug-in', but {type(self).__name__} has no exponential-family likelihood; "
                "use 'direct' or 'auto'."
            )
        with torch.no_grad():
            z, x = self.simulate(count)
        return Sleep(z, x, self.joint(z, x, direct))

    def joint(self, z: Latents, x: Tensor, direct: bool) -> Joint:
        return Direct(at_least_float32(self.log_joint(z, x)))

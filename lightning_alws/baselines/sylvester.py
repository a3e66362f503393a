"""The variational autoencoder with amortised Sylvester or planar flows.

    z_0 ~ N(location(x), scale(x)²),  z = f_F(… f_1(z_0; x) …; x),   log q(z|x) = log q(z_0|x) − Σ log |det ∂f/∂z|

Source: van den Berg, Hasenclever, Tomczak, Welling, "Sylvester normalizing flows for variational inference", UAI 2018
(https://arxiv.org/abs/1803.05649); the flows themselves, and why they are not a library's, in ``lightning_alws.flows``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_alws.baselines.drawn_bound import DrawnBound, Draws
from lightning_alws.baselines.image import EncoderBuilder
from lightning_alws.baselines.vae import GaussianPosterior, location_and_log_scale
from lightning_alws.errors import check_at_least
from lightning_alws.flows import Flow, amortised_flows, through
from lightning_alws.networks import ConvFeatures
from lightning_alws.precision import full_precision


class FlowVAE(DrawnBound):
    """A variational autoencoder whose Gaussian posterior goes through flows; a method gives the flows."""

    @abstractmethod
    def posterior(self, x: Tensor) -> tuple[GaussianPosterior, Sequence[Flow]]:
        """q(z_0|x) and the flows that follow, for images x (B, C, H, W)."""

    def draw(self, x: Tensor, samples: int) -> Draws:
        """z_K of ``samples`` draws z_0 for each image of x (B, C, H, W), and log q(z_K|x)."""
        first, flows = self.posterior(x)
        shape = (samples, *first.location.shape)
        repeated = GaussianPosterior(first.location.expand(shape), first.log_scale.expand(shape))
        z = repeated.sample()
        with full_precision(x.device):
            last, log_det = through(flows, z)
        return Draws(last, repeated.log_prob(z) - log_det, repeated, z)


class SylvesterVAE(FlowVAE):
    """:class:`~lightning_alws.baselines.vae.ImageVAE` with flows whose parameters are linear in the encoder's features.

    Args:
        encoder: builds the network from images to a vector of features.
        flow: "orthogonal", "householder" and "triangular" are the Sylvester flows by their matrix Q; or "planar".
        flows: how many, one after the other.
        columns: of Q where orthogonal; ``latent_dim`` where that is less.
        reflections: whose product Q is where Householder.
        settings: those of :class:`~lightning_alws.baselines.drawn_bound.DrawnBound`.

    Raises:
        UserError: a setting makes no sense.
    """

    def __init__(
        self,
        encoder: EncoderBuilder = ConvFeatures,
        flow: Literal["orthogonal", "householder", "triangular", "planar"] = "orthogonal",
        flows: int = 4,
        columns: int = 8,
        reflections: int = 8,
        **settings: Any,
    ) -> None:
        check_at_least("model", flows=(flows, 1))
        super().__init__(encoder, **settings)
        self.flows = amortised_flows(flow, self.latent_dim, columns, reflections)
        self.count = flows
        self.heads = nn.Linear(self.feature_width, 2 * self.latent_dim + flows * self.flows.size)

    def posterior(self, x: Tensor) -> tuple[GaussianPosterior, list[Flow]]:
        """q(z_0|x) and the flows that follow, all linear in the features of images x (B, C, H, W)."""
        output = self.heads(self.features(x)).to(x.dtype)
        base, parameters = output.tensor_split([2 * self.latent_dim], dim=-1)
        with full_precision(x.device):  # lower precision would lose the orthonormal columns of Q
            flows = self.flows(parameters.unflatten(-1, (self.count, self.flows.size)))
        return GaussianPosterior(*location_and_log_scale(base)), flows

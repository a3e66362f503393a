"""The variational autoencoder with planar flows that are the same for every image, the Langevin autoencoder's rival.

    z_0 ~ N(location(x), scale(x)²),  z = f_3(f_2(f_1(z_0))),   log q(z|x) = log q(z_0|x) − Σ log |det ∂f/∂z|

Source: the "VAE-flow" of Taniguchi, Iwasawa, Kumagai, Matsuo, "Langevin autoencoders for learning deep latent variable
models", NeurIPS 2022 (https://arxiv.org/abs/2209.07036). Its released flows lack the constraint wᵀû > −1, so that they
need not be invertible and log |det| no density: these have it. The flows are those of ``lightning_alws.flows``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_alws.baselines.image import EncoderBuilder
from lightning_alws.baselines.sylvester import FlowVAE
from lightning_alws.baselines.vae import GaussianPosterior, location_and_log_scale
from lightning_alws.errors import check_at_least
from lightning_alws.flows import PlanarFlow
from lightning_alws.networks import ConvFeatures

INITIAL_STEP = 0.1  # size of the initial u: flows begin near the identity, along w of about unit length


class PlanarFlowVAE(FlowVAE):
    """:class:`~lightning_alws.baselines.vae.ImageVAE` with planar flows whose parameters no encoder gives.

    Args:
        encoder: builds the network from images to a vector of features.
        flows: how many, one after the other.
        settings: those of :class:`~lightning_alws.baselines.drawn_bound.DrawnBound`.

    Raises:
        UserError: a setting makes no sense.
    """

    def __init__(self, encoder: EncoderBuilder = ConvFeatures, flows: int = 3, **settings: Any) -> None:
        check_at_least("model", flows=(flows, 1))
        super().__init__(encoder, **settings)
        self.heads = nn.Linear(self.feature_width, 2 * self.latent_dim)
        unit = self.latent_dim**-0.5
        self.u = nn.Parameter(INITIAL_STEP * unit * torch.randn(flows, self.latent_dim))
        self.w = nn.Parameter(unit * torch.randn(flows, self.latent_dim))
        self.b = nn.Parameter(torch.zeros(flows))

    def posterior(self, x: Tensor) -> tuple[GaussianPosterior, list[PlanarFlow]]:
        base = self.heads(self.features(x)).to(x.dtype)
        flows = [PlanarFlow(*part) for part in zip(self.u, self.w, self.b, strict=True)]
        return GaussianPosterior(*location_and_log_scale(base)), flows

"""What methods share whose q(z|x) has no divergence in closed form: bound and weights come from draws alone.

    L_K(x) = E_{z_1 … z_K ~ q(z|x)} log (1/K) Σ_k p_θ(x|z_k) [p_θ(z_k)/q(z_k|x)]^β

β rises from 0 to 1 over the first training steps where a source has it so; every bound that is logged has β = 1.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

from torch import Tensor

from lightning_alws.baselines.image import EncoderBuilder, ImageEncoderMethod
from lightning_alws.baselines.lower_bound import log_mean_weight
from lightning_alws.errors import check_at_least
from lightning_alws.generative import LatentVariableModel
from lightning_alws.networks import ConvFeatures


class DrawnBound(ImageEncoderMethod):
    """A method on images that estimates all of its bound from K draws of its q(z|x).

    Args:
        encoder: builds the network from images to a vector of features.
        samples: K, draws from q(z|x) for each image; with 1 the bound is the ELBO.
        warm_up: training steps in which β rises, linearly in the global step, so that a resumed run goes on as an uncut
            one would; 0 for none.
        settings: those of :class:`~lightning_alws.baselines.image.ImageMethod`.

    Raises:
        UserError: a setting makes no sense.
    """

    def __init__(
        self, encoder: EncoderBuilder = ConvFeatures, samples: int = 1, warm_up: int = 0, **settings: Any
    ) -> None:
        check_at_least("model", samples=(samples, 1), warm_up=(warm_up, 0))
        super().__init__(encoder, **settings)
        self.samples, self.warm_up = samples, warm_up

    @abstractmethod
    def draw(self, x: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """z_sb ~ q(z|x_b), (samples, B, latent_dim), and log q(z_sb|x_b), (samples, B), for images x (B, C, H, W).

        In place of q(z|x_b) a random density may stand, as long as E[f(z)/q] = ∫ f(z) dz.
        """

    @property
    def strength(self) -> float:
        """β in this training step."""
        return min(1.0, (self.global_step + 1) / self.warm_up) if self.warm_up else 1.0

    def log_weights(self, x: Tensor, samples: int, model: LatentVariableModel) -> Tensor:
        """log p_θ(z_sb, x_b) − log q(z_sb|x_b), z_sb ~ q, for images x (B, C, H, W), shape (samples, B)."""
        log_prob, log_ratio = self._terms(x, samples, model)
        return log_prob + log_ratio

    def bound(self, x: Tensor, model: LatentVariableModel) -> Tensor:
        """One estimate of L_K for images x (B, C, H, W), shape (B,), in nats."""
        return log_mean_weight(self.log_weights(x, self.samples, model))

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        """−mean bound of a batch, with the β of this step."""
        with self.noise("posterior"):
            log_prob, log_ratio = self._terms(x, self.samples, cast(LatentVariableModel, self.generative))
        self.log(f"train/{self.bound_name}", log_mean_weight(log_prob + log_ratio).mean().detach(), prog_bar=True)
        return -log_mean_weight(log_prob + self.strength * log_ratio).mean()

    def _terms(self, x: Tensor, samples: int, model: LatentVariableModel) -> tuple[Tensor, Tensor]:
        """log p_θ(x_b|z_sb) and log p_θ(z_sb) − log q(z_sb|x_b), both (samples, B)."""
        z, log_q = self.draw(x, samples)
        flat = z.flatten(0, 1)
        log_prob = model.likelihood(flat).log_prob(x.repeat(samples, *[1] * (x.ndim - 1)))
        return log_prob.view(log_q.shape), model.log_prior(flat).view(log_q.shape) - log_q

"""The importance weighted autoencoder.

    L_K(x) = E_{z_1 … z_K ~ q(z|x)} log (1/K) Σ_k p_θ(z_k, x) / q(z_k|x),   ELBO = L_1 ≤ L_2 ≤ … ≤ log p_θ(x)

Source: Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders", ICLR 2016, equation 8
(https://arxiv.org/abs/1509.00519). The gradient is that of the reparameterised bound, for the encoder too; its
signal-to-noise ratio there falls as K grows (Rainforth et al., ICML 2018), which is the method's own and left as it is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_alws.baselines.lower_bound import log_mean_weight
from lightning_alws.baselines.vae import ImageVAE
from lightning_alws.errors import check_at_least
from lightning_alws.generative import LatentVariableModel


class IWAE(ImageVAE):
    """:class:`~lightning_alws.baselines.vae.ImageVAE` trained by the importance weighted bound.

    Args:
        samples: K, draws from q(z|x) for each image; with 1 the bound is the ELBO, its divergence drawn too.
        settings: those of ``ImageVAE``.

    Raises:
        UserError: a setting makes no sense.
    """

    bound_name = "importance_weighted_bound"

    def __init__(self, samples: int = 10, **settings: Any) -> None:
        check_at_least("model", samples=(samples, 1))
        super().__init__(**settings)
        self.samples = samples

    def bound(self, x: Tensor, model: LatentVariableModel) -> Tensor:
        """One estimate of L_K for images x (B, C, H, W), shape (B,), in nats."""
        return log_mean_weight(self.log_weights(x, self.samples, model))

"""The matrix factorisation as a variational autoencoder with logistic-normal posterior.

    q(z|x): logit z_k = m_k(x) + s_k(x) ε_k,  ε ~ N(0, I);   ELBO = E_q[log p_θ(x|z)] − KL(q ‖ U(0, 1)^K)

In u = logit z the prior is the standard logistic distribution, so that with a Gaussian q the divergence is a sum of

    KL_k = −½ log(2πe s_k²) − m_k + 2 E_q[softplus(u_k)],

one integral over a Gaussian each, which Gauss-Hermite quadrature gives to many digits: only the reconstruction is
estimated by sampling. Sources: Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014
(https://arxiv.org/abs/1312.6114); Atchison and Shen, "Logistic-normal distributions", Biometrika 67, 1980.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lightning_alws.errors import UserError, check_at_least
from lightning_alws.likelihoods import LOG_2_PI
from lightning_alws.models.matrix_factorisation import PositiveFactors, Reconstruction, begin_at_data
from lightning_alws.module import LatentVariableModule
from lightning_alws.networks import mlp
from lightning_alws.penalties import Penalty

NODES = 24  # of the quadrature: for s ≤ 5 the error of E[softplus] is below 0.01 nats, for s ≤ 1 below 1e-7
DRAWS = 20  # posterior draws that E_q[μ(z)|x] is averaged over


class LogisticNormal:
    """q(z|x): logit z ~ N(mean, exp(2 log_scale)), each of shape (B, K)."""

    def __init__(self, mean: Tensor, log_scale: Tensor) -> None:
        self.mean, self.log_scale = mean, log_scale

    def sample(self) -> Tensor:
        """logit z, one draw for each row, (B, K), differentiable."""
        return self.mean + self.log_scale.exp() * torch.randn_like(self.mean)

    def divergence(self) -> Tensor:
        """KL(q ‖ U(0, 1)^K), shape (B,)."""
        rule = np.polynomial.hermite_e.hermegauss(NODES)
        nodes, weights = (self.mean.new_tensor(array)[:, None, None] for array in rule)
        softplus_mean = (weights * softplus(self.mean + self.log_scale.exp() * nodes)).sum(0) / math.sqrt(2 * math.pi)
        negative_entropy = -0.5 * (LOG_2_PI + 1) - self.log_scale
        return (negative_entropy - self.mean + 2 * softplus_mean).sum(-1)


class LogisticNormalVAE(LatentVariableModule):
    """The matrix factorisation trained by a variational bound, with the same generative part and penalties.

    Args:
        factors: K.
        initial_weight: bounds of the initial W, log-uniform between them.
        initial_bias: of every pixel; None for the log odds of the mean training image.
        hidden: widths of the encoder's layers.
        learning_rate: Adam's for W and b.
        encoder_learning_rate: Adam's for the encoder.
        penalties: log priors on the model's parameters, divided by the number of training data.
        image_shape: (C, H, W); comes from the data module.
        likelihood: must be "bernoulli"; comes from the data module.

    Raises:
        UserError: a setting makes no sense.
    """

    generative: PositiveFactors

    def __init__(
        self,
        factors: int = 100,
        initial_weight: tuple[float, float] = (0.01, 0.03),
        initial_bias: float | None = None,
        hidden: list[int] = [400, 400],  # noqa: B006
        learning_rate: float = 1e-3,
        encoder_learning_rate: float = 1e-3,
        penalties: list[Penalty] = [],  # noqa: B006
        image_shape: tuple[int, int, int] | None = None,
        likelihood: Literal["bernoulli", "gaussian"] | None = None,
    ) -> None:
        super().__init__(PositiveFactors(image_shape, likelihood, factors, initial_weight, initial_bias))
        for width in hidden:
            check_at_least("model", hidden=(width, 1))
        for name, rate in (("learning_rate", learning_rate), ("encoder_learning_rate", encoder_learning_rate)):
            if not rate > 0:
                raise UserError(f"model.{name} is {rate}; give a positive number, such as 0.001.")
        sizes = [math.prod(self.generative.image_shape), *hidden, 2 * factors]
        self.encoder = nn.Sequential(nn.Flatten(), mlp(sizes))
        self.rates, self.penalties = (learning_rate, encoder_learning_rate), penalties
        self.save_hyperparameters()

    def on_train_start(self) -> None:
        """Begin at the mean image, where no bias was given."""
        begin_at_data(self)

    def posterior(self, x: Tensor) -> LogisticNormal:
        """q(z|x) for images x (B, C, H, W)."""
        mean, log_scale = self.encoder(x).chunk(2, dim=1)
        return LogisticNormal(mean, log_scale)

    def elbo(self, x: Tensor) -> Tensor:
        """One-draw estimate of the bound for images x (B, C, H, W), shape (B,), in nats."""
        q = self.posterior(x)
        return self.generative.decode(q.sample()).log_prob(x) - q.divergence()

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        """−mean ELBO − log p(θ)/n of a batch."""
        with self.noise("posterior"):
            elbo = self.elbo(x).mean()
        self.log("train/elbo", elbo.detach(), prog_bar=True)
        return self.penalty(self.penalties) - elbo

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        """The bound on held-out images."""
        self._log_elbo("val", x, batch_idx)

    def test_step(self, x: Tensor, batch_idx: int) -> None:
        """The bound on test images."""
        self._log_elbo("test", x, batch_idx)

    def _log_elbo(self, split: str, x: Tensor, batch_idx: int) -> None:
        with self.noise(f"{split} posterior", batch_idx):
            elbo = self.elbo(x).mean()
        self.log(f"{split}/elbo", elbo, sync_dist=True, batch_size=len(x))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, index: int = 0) -> Reconstruction:
        """Images as the posterior sees them, for x (B, C, H, W).

        Args:
            index: of the noise.
        """
        model, q = self.generative, self.posterior(x)
        with self.noise("reconstruction", index):
            expected = torch.stack([model.decode(q.sample()).mean for _ in range(DRAWS)]).mean(0)
        return Reconstruction(expected, model.decode(q.mean).mean)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, one group for the model and one for the encoder."""
        groups = [
            {"params": [*module.parameters()], "lr": rate, "name": name}
            for name, module, rate in zip(
                ("model", "encoder"), (self.generative, self.encoder), self.rates, strict=True
            )
        ]
        return torch.optim.Adam(groups)

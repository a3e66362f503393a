"""The neural process trained by the evidence lower bound, as it usually is: the baseline of amortised learning.

    log p(y | context) ≥ E_q[log p(y | z)] − KL(q(z | all points) ‖ p(z | context)),   q by the context's own encoder

Source: Garnelo et al., "Neural Processes", 2018, equation 8 with all points as targets. The published comparison of
kevin-w-li/al-ws has the divergence's arguments the other way round.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.generative import PlugIn, Sleep
from lightning_alws.likelihoods import DiagonalGaussian
from lightning_alws.models.neural_process import NeuralProcess, check_points
from lightning_alws.module import LatentVariableModule
from lightning_alws.posterior import AmortisedPosterior

POSTERIOR_SAMPLES = 1000  # for predictions


class NeuralProcessELBO(LatentVariableModule):
    """The same network as NeuralProcessModel's, trained by reparameterised gradients of the ELBO.

    Args:
        latent_dim: dimension of z.
        width: of all hidden layers.
        samples: draws of z from q for each function and step.
        learning_rate: Adam's.
        averaging: decay of the averaged weights used for evaluation; 0 for none.
        event_shape: (T,); comes from the data module.

    Raises:
        UserError: a number makes no sense.
    """

    def __init__(
        self,
        latent_dim: int = 50,
        width: int = 50,
        samples: int = 1,
        learning_rate: float = 1e-3,
        averaging: float = 0.0,
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(NeuralProcess(event_shape, latent_dim, width), averaging)
        if samples < 1:
            raise UserError(f"model.samples is {samples}; give at least 1.")
        if not learning_rate > 0:
            raise UserError(f"model.learning_rate is {learning_rate}; give a positive number, such as 0.001.")
        self.samples, self.learning_rate = samples, learning_rate
        self.save_hyperparameters()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """−ELBO of the functions (B, T, 3), their mean."""
        check_points(batch)
        with self.noise("posterior"):
            bound = elbo(cast(NeuralProcess, self.generative), batch, self.samples).mean()
        self.log("train/elbo", bound.detach(), prog_bar=True)
        return -bound

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the ELBO of the model as it is evaluated."""
        with self.noise("validation", batch_idx), torch.no_grad():
            bound = elbo(cast(NeuralProcess, self.evaluation_model), batch, self.samples).mean()
        self.log("val/elbo", bound, sync_dist=True, batch_size=len(batch))

    def observe(self, batch: Tensor) -> Tensor:
        """The outputs (B, T) among the points of a batch (B, T, 3)."""
        return batch[..., 1]

    def predict_step(self, batch: Tensor, batch_idx: int) -> AmortisedPosterior:
        """Draws from q(z | all points) of one function (1, T, 3), all of one weight.

        Raises:
            UserError: the batch holds several functions.
        """
        check_points(batch)
        if len(batch) != 1:
            raise UserError(f"a batch holds {len(batch)} functions; set data.eval_batch_size to 1 to predict.")
        model = cast(NeuralProcess, self.evaluation_model)
        with self.noise("posterior", batch_idx), torch.no_grad():
            z = draw(*model.encode(batch, torch.ones_like(batch[..., 2])), POSTERIOR_SAMPLES)[0]
            mean, scale = model.decode(z, batch[0, :, 0])
        y = self.observe(batch)
        sleep = Sleep(z, y.expand(len(z), -1), PlugIn(y.expand(len(z), -1), DiagonalGaussian(mean, scale.log()), None))
        return AmortisedPosterior(sleep, z.new_full((len(z), 1), 1 / len(z)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as for amortised learning."""
        return torch.optim.Adam(self.generative.parameters(), lr=self.learning_rate)


def elbo(model: NeuralProcess, points: Tensor, samples: int) -> Tensor:
    """The bound of each function among points (B, T, 3), (B,), by ``samples`` reparameterised draws of z."""
    prior_mean, prior_scale = model.encode(points, points[..., 2])
    mean, scale = model.encode(points, torch.ones_like(points[..., 2]))
    centre, spread = model.decode(draw(mean, scale, samples), points[..., 0])
    y = points[:, None, :, 1].expand_as(centre)
    log_likelihood = torch.distributions.Normal(centre, spread).log_prob(y).sum(-1).mean(-1)
    posterior, prior = torch.distributions.Normal(mean, scale), torch.distributions.Normal(prior_mean, prior_scale)
    return log_likelihood - torch.distributions.kl_divergence(posterior, prior).sum(-1)


def draw(mean: Tensor, scale: Tensor, count: int) -> Tensor:
    """``count`` draws from each N(mean_b, scale_b²), (B, count, dim), differentiable in both."""
    noise = torch.randn(len(mean), count, mean.shape[1], device=mean.device, dtype=mean.dtype)
    return mean[:, None] + scale[:, None] * noise

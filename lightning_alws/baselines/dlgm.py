"""Short Langevin chains that begin at a VAE's encoder: the deep latent Gaussian model of Hoffman.

    φ ← ∇_φ ELBO(x; θ, φ)                                        the encoder as in a VAE, θ fixed
    θ ← ∇_θ log p_θ(x, z_T),  z_0 ~ q_φ(z|x),  T moves in z_t    the decoder at latents nearer to the posterior

Source: Hoffman, "Learning deep latent Gaussian models with Markov chain Monte Carlo", ICML 2017, with Langevin moves
instead of longer Hamiltonian paths, as the Langevin autoencoder's authors compare with it (iShohei220/LAE: two moves
of step 0.005, untested).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_alws.baselines.lower_bound import log_joint
from lightning_alws.baselines.vae import ImageVAE, elbo_at
from lightning_alws.errors import check_at_least
from lightning_alws.held import held
from lightning_alws.langevin import Langevin, Trajectory


class DLGM(ImageVAE):
    """:class:`~lightning_alws.baselines.vae.ImageVAE` whose decoder learns from latents that Langevin moves refine.

    Args:
        moves: T, for each image; with 0 it is the VAE.
        step_size: η, against −log p_θ(x, z) of one image.
        metropolis: whether each image's moves are tested.
        settings: those of ``ImageVAE``.

    Raises:
        UserError: a setting makes no sense.
    """

    def __init__(self, moves: int = 2, step_size: float = 0.005, metropolis: bool = False, **settings: Any) -> None:
        check_at_least("model", moves=(moves, 0))
        super().__init__(**settings)
        self.moves, self.langevin = moves, Langevin(step_size, metropolis)

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        """−mean ELBO for the encoder, −mean log p_θ(x, z_T) for the decoder."""
        with self.noise("posterior"):
            q = self.posterior(x)
            z = q.sample()
            with held(self.generative):
                bound = elbo_at(z, q, self.generative, x).mean()
            refined = self.refine(z.detach(), x)
        if self.moves:
            self.log("train/acceptance", refined.accepted.mean())
            z = refined.positions[-1]
        joint = log_joint(self.generative, z.detach()[None], x).mean()
        self.log(f"train/{self.bound_name}", bound.detach(), prog_bar=True)
        self.log("train/refined_log_joint", joint.detach())
        return -(bound + joint)

    def refine(self, z: Tensor, x: Tensor) -> Trajectory:
        """T moves from latents z (B, latent_dim) of images x (B, C, H, W), each image a chain of its own."""
        return self.langevin.run(lambda at: -log_joint(self.generative, at[None], x)[0], z, self.moves)

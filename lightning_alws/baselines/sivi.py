"""Semi-implicit variational inference: a Gaussian posterior whose mean is random, by a network fed with noise.

    q(z|x) = E_ψ N(z; ψ, σ(x)²),  ψ = μ(x, ε),     h(z) = (1/(J+1)) Σ_{j=0..J} N(z; ψ_j, σ(x)²),  z ~ N(ψ_0, σ(x)²)
    L_J(x) = E log p_θ(x, z)/h(z),     L_0 ≤ L_1 ≤ … → E_q log p_θ(x, z)/q(z|x) ≤ log p_θ(x)

Source: Yin, Zhou, "Semi-implicit variational inference", ICML 2018 (https://arxiv.org/abs/1805.11183). The mixture is
averaged as a logsumexp; the released code averages exponentials, which underflow.

The weights p_θ(x, z)/h(z) are unbiased for p_θ(x) whatever J. The ψ_j are independent and of one law, so that h is
unchanged when ψ_0 trades places with any ψ_j: E[N(z; ψ_0)/h(z)], integrated over z and averaged over which of the J + 1
gave z, is E[Σ_j N(z; ψ_j)/((J+1) h(z))] = 1 for every z. Any z drawn from any of the ψ_j will therefore do, and several
samples share one set of them; the source draws J more for its K.

A Gaussian density and an MLP: torch.distributions' MixtureSameFamily would compute the same sum, with checks of its
arguments that wait for the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from lightning_alws.baselines.drawn_bound import DrawnBound, Draws
from lightning_alws.baselines.image import EncoderBuilder
from lightning_alws.baselines.vae import LARGEST_LOG_SCALE, LEAST_LOG_SCALE, GaussianPosterior
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.networks import ConvFeatures, mlp


def glorot(module: nn.Module) -> None:
    """Glorot and Bengio's uniform initial weights, and no biases, for every linear layer."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class NoisyStage(nn.Module):
    """(h(x), what the stage before gave, Bernoulli(½) noise) → ReLU layers, one of them after the last.

    Weights are Glorot's and biases 0 at first, as published (slim.fully_connected's): through all the layers of three
    stages PyTorch's own, of a third of that variance or less, would hardly let anything pass.

    Args:
        features: width of h(x).
        before: width of what the stage before gives; 0 for the first.
        noise: how many random bits.
        widths: of the layers, two or more.
    """

    def __init__(self, features: int, before: int, noise: int, widths: list[int]) -> None:
        super().__init__()
        self.noise = noise
        # One layer in two parts: that of h(x) is computed once for all draws of an image.
        self.from_features = nn.Linear(features, widths[0])
        self.from_noise = nn.Linear(before + noise, widths[0], bias=False)
        self.rest = nn.Sequential(nn.ReLU(), mlp(widths), nn.ReLU())
        limit = math.sqrt(6 / (features + before + noise + widths[0]))  # of the one layer
        nn.init.uniform_(self.from_features.weight, -limit, limit)
        nn.init.uniform_(self.from_noise.weight, -limit, limit)
        nn.init.zeros_(self.from_features.bias)
        glorot(self.rest)

    def forward(self, features: Tensor, before: Tensor) -> Tensor:
        """(draws, B, widths[-1]) for h(x) (B, ·) and the output of the stage before (draws, B, ·)."""
        shape = (*before.shape[:2], self.noise)
        bits = torch.randint(2, shape, device=features.device, dtype=features.dtype)
        return self.rest(self.from_features(features) + self.from_noise(torch.cat([before, bits], dim=-1)))


class SIVI(DrawnBound):
    """A semi-implicit posterior around the same decoder and encoder as the other methods'.

    Where the source feeds the image into each of the three stages of its network, and into a network of σ(x), here goes
    the encoder's output h(x), of which log σ(x) is linear. Its layers are 500 wide, its random bits 150, 100 and 50.

    The stages are given h(x) normalised to mean 0 and variance 1 over its numbers. That of an untrained encoder is
    small (on Digits 0.04 is its spread over images, with ConvFeatures) where the pixels that the source feeds in are of
    the size of the bits: 150 of these drown it, ψ tells the decoder nothing, and q falls to the prior for thousands of
    steps.

    Args:
        encoder: builds the network from images to a vector of features h(x), which every stage is given.
        mixture: J, further draws of ψ in the mixture.
        noise: random bits of each stage of μ(x, ε); the output of all but the last has as many numbers as bits.
        hidden: widths of the layers within a stage.
        settings: those of :class:`~lightning_alws.baselines.drawn_bound.DrawnBound`.

    Raises:
        UserError: a setting makes no sense.
    """

    bound_name = "surrogate_bound"

    def __init__(
        self,
        encoder: EncoderBuilder = ConvFeatures,
        mixture: int = 50,
        noise: list[int] = [150, 100, 50],  # noqa: B006
        hidden: list[int] = [128, 128],  # noqa: B006
        **settings: Any,
    ) -> None:
        check_at_least("model", mixture=(mixture, 0))
        for name, widths in (("noise", noise), ("hidden", hidden)):
            if not widths or min(widths) < 1:
                raise UserError(f"model.{name} is {widths}; give one number or more, each at least 1.")
        super().__init__(encoder, **settings)
        self.mixture = mixture
        befores, afters = [0, *noise[:-1]], [*noise[:-1], hidden[-1]]  # the layer that gives ψ follows the last stage
        self.stages = nn.ModuleList(
            NoisyStage(self.feature_width, before, bits, [*hidden, after])
            for before, bits, after in zip(befores, noise, afters, strict=True)
        )
        self.location = nn.Linear(hidden[-1], self.latent_dim)
        glorot(self.location)
        self.log_scale = nn.Linear(self.feature_width, self.latent_dim)

    def means(self, features: Tensor, draws: int) -> Tensor:
        """ψ, independent draws for features (B, ·), shape (draws, B, latent_dim)."""
        state = features.new_zeros(draws, len(features), 0)
        normalised = layer_norm(features, features.shape[-1:])
        for stage in self.stages:
            state = stage(normalised, state)
        return self.location(state)

    def draw(self, x: Tensor, samples: int) -> Draws:
        """As many sets of J + 1 draws of ψ as hold the samples; each z has the mixture over its own set."""
        features = self.features(x)
        of_each = min(samples, self.mixture + 1)
        sets = math.ceil(samples / of_each)
        psi = self.means(features, sets * (self.mixture + 1)).to(x.dtype)
        psi = psi.unflatten(0, (sets, self.mixture + 1))
        log_scale = self.log_scale(features).to(x.dtype).clamp(LEAST_LOG_SCALE, LARGEST_LOG_SCALE)
        own = psi[:, :of_each]
        source = GaussianPosterior(own, log_scale.expand(own.shape))
        z = source.sample()
        log_h = GaussianPosterior(psi[:, None], log_scale).log_prob(z[:, :, None]).logsumexp(2)
        # The last set may give more than is wanted.
        z, log_h, own, scales = (part.flatten(0, 1)[:samples] for part in (z, log_h, own, source.log_scale))
        return Draws(z, log_h - math.log(self.mixture + 1), GaussianPosterior(own, scales), z)

"""One step of amortised learning on binary images as it was published, restated plainly to be timed against ours.

    sleep    three passes through the generator: for x_n, for Ψ(z_n) and for η(z_n)
    kernel   (AL-A) on sleep samples of its own: K by N × N × d differences, LU, mean_v (Ĵ(x_v) − log p(z_v, x_v))²
    model    on fresh sleep samples: Ĵ(x*) = ⟨Σ_n W_n* η(z_n), x*⟩ − Σ_n W_n* Ψ(z_n), W = (K + λI)⁻¹ k(x_n, x*)

What the two updates compute is what :class:`~lightning_alws.learning.AmortisedLearning` computes, given the same
samples (tests/test_published_step.py). Source: kevin-w-li/al-ws, February-March 2020, but for its BatchNorm.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_alws.learning import AmortisedLearning
from lightning_alws.models.image import SQUEEZE, ImageGenerator

BLOCK = 2**29  # numbers in one block of differences: 2 GB in float32


def difference_distances(a: Tensor, b: Tensor, block: int = BLOCK) -> Tensor:
    """Σ_d (a_id − b_jd)² for a (N, d) and b (M, d), shape (N, M), from N × M × d differences.

    Where these are more than ``block`` numbers they are made in blocks of rows, and made anew for the gradient.
    """

    def rows(part: Tensor) -> Tensor:
        return (part[:, None] - b[None]).square().sum(2)

    size = max(1, block // b.numel())
    if size >= len(a):
        return rows(a)
    parts = [cast(Tensor, checkpoint(rows, part, use_reentrant=False)) for part in a.split(size)]
    return torch.cat(parts)


class Samples(NamedTuple):
    """Sleep samples: z (N, latents), x (N, *event), η (N, pixels) and Ψ (N,)."""

    z: Tensor
    x: Tensor
    natural: Tensor
    normaliser: Tensor


class PublishedStep:
    """Trains copies of a module's decoder and kernel as the published code did.

    Args:
        module: amortised learning of binary images, with a Gaussian kernel.
        detached: whether the kernel's update leaves the decoder out. As released, its gradient goes back through the
            decoder too and is then set to zero.
        block: as in :func:`difference_distances`.
    """

    def __init__(self, module: AmortisedLearning, detached: bool = False, block: int = BLOCK) -> None:
        module = copy.deepcopy(module)
        generative = cast(ImageGenerator, module.generative)
        self.learning = module.learning
        self.decoder, self.latent_dim = generative.decoder, generative.latent_dim
        self.regression, self.kernel = module.regression, module.regression.kernel
        self.detached, self.block = detached, block
        self.model_optimiser = torch.optim.Adam(self.decoder.parameters(), self.learning.learning_rate)
        trained: list[nn.Parameter] = [*self.regression.parameters()]
        self.kernel_optimiser = torch.optim.Adam(trained, self.learning.kernel_learning_rate) if trained else None

    def step(self, x: Tensor) -> Tensor:
        """One update of the kernel, where it is trained, and one of the model on images x* (B, C, H, W); the loss."""
        if self.kernel_optimiser is not None:
            sleep, held_out = self.sleep(self.learning.sleep_samples), self.sleep(self.learning.held_out)
            self.kernel_optimiser.zero_grad()
            self.kernel_loss(sleep, held_out).backward()
            self.kernel_optimiser.step()
        self.model_optimiser.zero_grad()
        loss = self.model_loss(self.sleep(self.learning.sleep_samples), x)
        loss.backward()
        self.model_optimiser.step()
        return loss

    def sleep(self, count: int) -> Samples:
        """``count`` sleep samples, by three passes through the decoder."""
        parameter = next(self.decoder.parameters())
        z = torch.randn(count, self.latent_dim, device=parameter.device, dtype=parameter.dtype)
        with torch.no_grad():
            x = torch.bernoulli(self.mean(z))
        return self.at(z, x)

    def at(self, z: Tensor, x: Tensor) -> Samples:
        """Given samples with η(z_n) and Ψ(z_n), a pass through the decoder for each of the two."""
        normaliser = -(1 - self.mean(z)).log().flatten(1).sum(1)
        mean = self.mean(z).flatten(1)
        return Samples(z, x, mean.log() - (1 - mean).log(), normaliser)

    def mean(self, z: Tensor) -> Tensor:
        """E[x|z] in [1e-4, 1 − 1e-4]."""
        return SQUEEZE + (1 - 2 * SQUEEZE) * self.decoder(z).sigmoid()

    def kernel_loss(self, sleep: Samples, held_out: Samples) -> Tensor:
        """The squared error of log p(x|z) at the held-out samples, a scalar."""
        if self.detached:
            sleep, held_out = (Samples(*(part.detach() for part in samples)) for samples in (sleep, held_out))
        truth = (held_out.natural * held_out.x.flatten(1)).sum(1) - held_out.normaliser
        return (self.predict(self.weights(sleep.x, held_out.x), sleep, held_out.x) - truth).square().mean()

    def model_loss(self, sleep: Samples, x: Tensor) -> Tensor:
        """−mean Ĵ(x*), a scalar."""
        with torch.no_grad():
            weights = self.weights(sleep.x, x)
        return -self.predict(weights, sleep, x).mean()

    def predict(self, weights: Tensor, sleep: Samples, x: Tensor) -> Tensor:
        """Ĵ(x_b) for weights (N, B) and images x (B, C, H, W), shape (B,)."""
        return ((weights.T @ sleep.natural) * x.flatten(1)).sum(1) - weights.T @ sleep.normaliser

    def weights(self, x: Tensor, query: Tensor) -> Tensor:
        """(K + λI)⁻¹ k(x_n, x*) by a general solve, shape (N, B)."""
        features, wanted = self.kernel.network(x), self.kernel.network(query)
        self.kernel.observe(features)  # a bandwidth that follows the samples
        width = 2 * self.kernel.bandwidth.square()
        gram = torch.exp(-difference_distances(features, features, self.block) / width)
        cross = torch.exp(-difference_distances(features, wanted, self.block) / width)
        return torch.linalg.solve(gram + self.regression.ridge * torch.eye(len(x)).to(gram), cross)

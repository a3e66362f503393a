"""Images whose contrast varies from place to place: a scale mixture as a decoder, and kernel features that see it.

    output = b + W_0 z_0 + e^{g − Var g} ⊙ W_1 z_1,   g = U G c,   z = (z_0, z_1, c)

Natural images, given their local contrast, are close to Gaussian, and that contrast varies widely between images and
between the parts of one. No Gaussian has it, and hardly any of the features of a network with few layers. Source:
Wainwright, Simoncelli, "Scale mixtures of Gaussians and the statistics of natural images", NIPS 1999.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from lightning_alws.errors import UserError, check_at_least
from lightning_alws.kernels import ModelFeatures
from lightning_alws.likelihoods import TensorMap
from lightning_alws.likelihoods.family import LOG_2_PI
from lightning_alws.residual import Reference

CONTRAST_RATE = 0.2  # G over its parameter: Adam would otherwise learn a wild contrast before the image
LEAST_ENERGY = 1e-3  # of images in [−1, 1]: a flat part is as good as one of faint contrast
BINARY_VARIANCE = 0.25  # of pixels without a noise scale: the most that 0 and 1 can have


def _check_image(event_shape: tuple[int, ...], name: str) -> None:
    if len(event_shape) != 3:
        raise UserError(f"{name} is for images (C, H, W), but the data's shape is {tuple(event_shape)}; take another.")


class ContrastDecoder(nn.Module):
    """z (N, latent_dim) → (N, C, H, W): a linear image with flat contrast, and one whose contrast varies over it.

    The last ``contrast`` latents, c, set the log contrast at ``cells`` × ``cells`` places, between which it is
    interpolated (U, bilinear); the first ``flat`` latents, z_0, are out of its reach: they are for what has none, such
    as an image's brightness and colour. The gain has a mean square of 1 under z ~ N(0, I), so that W alone makes the
    variances, and G how far the contrast departs from them. Without contrast latents it is a linear decoder, and the
    model with Gaussian pixels without bounds probabilistic principal component analysis.

    Args:
        latent_dim: of z.
        event_shape: (C, H, W).
        contrast: latents that set the contrast; 0 for none.
        flat: latents whose part of the image has the same contrast in all images.
        cells: places along each side.
        weight_std: standard deviation of the initial W_0 and W_1.
        linear_start: whether W, b and the noise scale begin at the maximum-likelihood probabilistic principal
            components of some training images (Tipping and Bishop, 1999), so that learning starts from the Gaussian
            that this decoder with a gain of 1 can best be.
        residual: regress what the linear posterior leaves unexplained (:class:`ContrastReference`), where pixels are
            Gaussian of one scale and without bounds; has no effect on other pixels.

    Raises:
        UserError: the latents do not suffice, or a number makes no sense.
    """

    def __init__(
        self,
        latent_dim: int,
        event_shape: tuple[int, ...],
        contrast: int = 8,
        flat: int = 24,
        cells: int = 4,
        weight_std: float = 0.03,
        linear_start: bool = False,
        residual: bool = True,
    ) -> None:
        super().__init__()
        _check_image(event_shape, "ContrastDecoder")
        check_at_least("model.decoder", contrast=(contrast, 0), flat=(flat, 0), cells=(cells, 1))
        if contrast + flat >= latent_dim:
            raise UserError(
                f"model.latent_dim is {latent_dim}, of which model.decoder takes {contrast} for the contrast and "
                f"{flat} for images of flat contrast; give more than {contrast + flat}."
            )
        if not weight_std > 0:
            raise UserError(f"model.decoder.weight_std is {weight_std}; give a positive number, such as 0.03.")
        self.event_shape, self.flat, self.cells = tuple(event_shape), flat, cells
        self.linear_start = linear_start
        self.linear_dim, self.residual = latent_dim - contrast, residual
        self.weight = nn.Parameter(weight_std * torch.randn(math.prod(event_shape), self.linear_dim))
        self.bias = nn.Parameter(torch.zeros(self.event_shape))
        if contrast:
            # A log contrast of standard deviation 0.2, whatever the number of latents.
            self.log_contrast = nn.Parameter(0.2 / CONTRAST_RATE * contrast**-0.5 * torch.randn(cells**2, contrast))

    @torch.no_grad()
    def start_from(self, images: Tensor) -> float:
        """Set b to the mean of images (n, C, H, W) and W to √(λ_i − σ²) v_i of their leading principal components.

        Returns σ, σ² the mean of the other eigenvalues. Where there are fewer components than columns, the rest of W
        becomes 0.
        """
        flat = images.flatten(1).double().cpu()
        count = min(self.linear_dim, len(flat) - 1, flat.shape[1] - 1)
        centred = (flat - flat.mean(0)) / (len(flat) - 1) ** 0.5
        # By the smaller of the two matrices of products, which have the same eigenvalues.
        few = len(flat) < flat.shape[1]
        values, vectors = torch.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
        directions = (centred.T @ vectors if few else vectors)[:, -count:].flip(1)
        directions = directions / directions.norm(dim=0).clamp_min(1e-12)
        variance = (centred.square().sum() - values[-count:].sum()).clamp_min(0) / (flat.shape[1] - count)
        # Of a fixed sign, which no eigenvector has: the largest entry is positive.
        sign = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
        self.weight.zero_()
        lengths = (values[-count:].flip(0) - variance).clamp_min(0).sqrt()
        self.weight[:, :count] = (lengths * sign * directions).to(self.weight)
        self.bias.copy_(flat.mean(0).view(self.event_shape))
        return float(variance.sqrt())

    def contrast_maps(self) -> Tensor:
        """U G, the log contrast at every pixel for each of its latents, shape (contrast, H · W)."""
        places = CONTRAST_RATE * self.log_contrast.T.unflatten(1, (1, self.cells, self.cells))
        return interpolate(places, self.event_shape[1:], mode="bilinear", align_corners=False).flatten(1)

    def gain(self, z: Tensor) -> Tensor:
        """e^{g − Var g} of the log contrast g = U G c for z (N, latent_dim), shape (N, 1, H, W); of mean square 1."""
        maps = self.contrast_maps()
        log_gain = z[:, self.linear_dim :] @ maps - maps.square().sum(0)
        return log_gain.exp().unflatten(1, (1, *self.event_shape[1:]))

    def forward(self, z: Tensor) -> Tensor:
        """The output (N, C, H, W) for latents z (N, latent_dim)."""
        linear, flat = z[:, : self.linear_dim], self.flat
        if z.shape[1] == self.linear_dim:
            return (linear @ self.weight.T).unflatten(1, self.event_shape) + self.bias
        varying = (linear[:, flat:] @ self.weight[:, flat:].T).unflatten(1, self.event_shape)
        even = (linear[:, :flat] @ self.weight[:, :flat].T).unflatten(1, self.event_shape)
        return self.bias + even + self.gain(z) * varying

    @torch.no_grad()
    def linear_posterior(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """B (linear_dim, D) and C of z_0, z_1|x ~ N(B(x − b), C), exact for a gain of 1 and noise σ²; no gradient."""
        precision = self.weight.T @ self.weight / variance
        precision = precision + torch.eye(len(precision), dtype=precision.dtype, device=precision.device)
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        return covariance @ self.weight.T / variance, covariance

    def reference(self, log_scale: Tensor) -> ContrastReference:
        """The reference for pixels N(output, σ²I), log σ a scalar."""
        posterior = self.linear_posterior((2 * log_scale).exp())
        bias = self.bias.flatten()
        return ContrastReference(self.weight, bias, log_scale, bias.detach(), *posterior)


@dataclass(frozen=True)
class ContrastReference(Reference):
    """E[η] and E[Ψ] of a decoder with a gain of 1, N(b + W z, σ²I), under z ~ N(B(x − b), C), its own posterior.

    What amortised learning then regresses is what the contrast changes. Without a reference, ∇_W is the difference of
    x zᵀ and W z zᵀ, 1/σ² times over, each predicted with an error: with 100 latents and as few samples as 500 its sign
    was wrong along W itself, and the samples' variance ran away. Neither is the mean of the gain to stand in place of
    1, which would make the two differ again.

    Attributes:
        weight: W (D, linear_dim), differentiable.
        bias: b (D,), differentiable.
        log_scale: log σ, differentiable.
        centre: b (D,), held fixed.
        posterior_gain: B (linear_dim, D), held fixed.
        covariance: C, held fixed.
    """

    weight: Tensor
    bias: Tensor
    log_scale: Tensor
    centre: Tensor
    posterior_gain: Tensor
    covariance: Tensor

    def expectation(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E[η] (B, D + 1) and E[Ψ] (B,) for images x (B, C, H, W), differentiable in W, b and log σ."""
        precision = (-2 * self.log_scale).exp()
        mean = self.bias + (x.flatten(1) - self.centre) @ self.posterior_gain.T @ self.weight.T
        spread = ((self.weight @ self.covariance) * self.weight).sum()
        dimension = len(self.weight)
        normaliser = 0.5 * (precision * (mean.square().sum(1) + spread) + dimension * (LOG_2_PI + 2 * self.log_scale))
        return torch.cat([mean * precision, (-0.5 * precision).expand(len(x), 1)], dim=1), normaliser

    def map(self, function: TensorMap) -> Self:
        return replace(self, weight=function(self.weight), bias=function(self.bias), log_scale=function(self.log_scale))


class ContrastFeatures(ModelFeatures):
    """x → what a :class:`ContrastDecoder`'s latents can be told from: (N, linear_dim + cells²) numbers.

    The linear posterior means E[z_0, z_1|x], what they would be with a gain of 1 and means without bounds, as the model
    stands in training, give

    * the scores, each mean over its standard deviation over x, all over the root of their number;
    * the log energies: logs of the mean square of W_1 E[z_1|x], the image of varying contrast less the noise, in
      ``cells`` × ``cells`` parts; ``weight`` times, over the root of their number.

    Args:
        event_shape: (C, H, W).
        cells: parts along each side.
        weight: of the log energies.

    Raises:
        UserError: the data are no images, or the model's decoder another.
    """

    def __init__(self, event_shape: tuple[int, ...], cells: int = 4, weight: float = 1.0) -> None:
        super().__init__()
        _check_image(event_shape, "ContrastFeatures")
        check_at_least("ContrastFeatures", cells=(cells, 1))
        if not weight >= 0:
            raise UserError(f"ContrastFeatures has weight={weight}; give 0 or more, such as 1.")
        self.cells, self.weight = cells, weight

    def attach(self, model: nn.Module) -> None:
        decoder = getattr(model, "decoder", None)
        if not isinstance(decoder, ContrastDecoder):
            raise UserError(
                f"ContrastFeatures follow the model's ContrastDecoder, but the decoder is a {type(decoder).__name__}; "
                "take MLPFeatures or LinearFeatures."
            )
        super().attach(model)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Scores and log energies side by side, for images (N, C, H, W)."""
        means, spread = self.posterior_means(x)
        energies = self.energies(means)
        scores = means / spread / means.shape[1] ** 0.5
        return torch.cat([scores, self.weight * energies / energies.shape[1] ** 0.5], dim=1)

    @torch.no_grad()
    def posterior_means(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E[z_0, z_1|x] (N, linear_dim) for images x (N, C, H, W), and their standard deviations (linear_dim,)."""
        model: Any = self.model
        weight = model.decoder.weight.to(x)
        products = weight.T @ weight
        precision = products + self._noise(model).to(x) * torch.eye(len(products), dtype=x.dtype, device=x.device)
        centre = model.pixels.mean(model.decoder.bias) if hasattr(model.pixels, "mean") else 0.5
        lower = torch.linalg.cholesky(precision)
        # Var E[z|x] = I − Var(z|x) = (WᵀW + σ²I)⁻¹ WᵀW.
        spread = torch.cholesky_solve(products, lower).diagonal().clamp_min(1e-6).sqrt()
        return torch.cholesky_solve(weight.T @ (x - centre).flatten(1).T, lower).T, spread

    @torch.no_grad()
    def energies(self, means: Tensor) -> Tensor:
        """Log energies (N, cells²) of posterior means (N, linear_dim), cell by cell."""
        decoder: Any = self.model.decoder  # type: ignore[union-attr]
        varying = means[:, decoder.flat :] @ decoder.weight[:, decoder.flat :].to(means).T
        square = varying.unflatten(1, decoder.event_shape).square().mean(1, keepdim=True)
        return (adaptive_avg_pool2d(square, self.cells).flatten(1) + LEAST_ENERGY).log()

    @staticmethod
    def _noise(model: Any) -> Tensor:
        """σ² of the pixels, a scalar."""
        scale = getattr(model.pixels, "scale", None)
        return torch.tensor(BINARY_VARIANCE) if scale is None else scale.detach().square().mean()

"""A Gaussian over images whose covariance has fixed principal directions, in bands that become stronger or fainter."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from lightning_alws.likelihoods.family import LOG_2_PI, Likelihood, TensorMap


class SpectralGaussian(Likelihood):
    """x|z ~ N(m, C(z)), C = Σ_j e^{2 g_b(j)} s_j² v_j v_jᵀ + e^{2 g_b(rest)} s_rest² (I − VVᵀ), g the gains of bands.

    With coordinates c = Vᵀ(x − m) and what is left of ‖x − m‖² as the last square, an exponential family in as many
    numbers as there are bands:

        η_b = −½ e^{−2 g_b},   S_b(x) = Σ_{j in b} c_j²/s_j²,   Ψ = Σ_b n_b g_b + Σ_j log s_j + D/2 log 2π

    The statistics carry s, which all rows share and which is learnt through them. The last square is found as a
    difference, to some 1e-6 of ‖x − m‖² in float32.

    Args:
        log_gain: g, shape (N, J).
        log_scale: log s of the k directions and, last, of every direction orthogonal to them, shape (k + 1,).
        band: in which of the J bands each of these lies, int64 (k + 1,); every band has one at least.
        centre: m, shape (*event).
        directions: V, orthonormal columns, shape (D, k), k < D.
    """

    def __init__(self, log_gain: Tensor, log_scale: Tensor, band: Tensor, centre: Tensor, directions: Tensor) -> None:
        self.log_gain, self.log_scale, self.band = log_gain, log_scale, band
        self.centre, self.directions = centre, directions

    @property
    def mean(self) -> Tensor:
        return self.centre.expand(len(self.log_gain), *self.centre.shape)

    @property
    def _multiplicity(self) -> Tensor:
        """For how many dimensions each scale stands, shape (k + 1,)."""
        size, count = self.directions.shape
        ones = torch.ones_like(self.log_scale)
        ones[-1] = size - count
        return ones

    @property
    def sizes(self) -> Tensor:
        """Dimensions n_b of each band, shape (J,)."""
        return self.log_gain.new_zeros(self.log_gain.shape[1]).index_add(0, self.band, self._multiplicity)

    @property
    def natural_parameters(self) -> Tensor:
        return -0.5 * (-2 * self.log_gain).exp()

    @property
    def log_normaliser(self) -> Tensor:
        flat = (self._multiplicity * self.log_scale).sum() + 0.5 * len(self.directions) * LOG_2_PI
        return self.log_gain @ self.sizes + flat

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        """S_b(x) (B, J) for images x (B, *event); differentiable in the scales."""
        x = x.flatten(1) - self.centre.flatten()
        squares = (x @ self.directions).square()
        rest = (x.square().sum(1, keepdim=True) - squares.sum(1, keepdim=True)).clamp_min(0)
        squares = torch.cat([squares, rest], dim=1) * (-2 * self.log_scale).exp()
        return squares.new_zeros(len(x), self.log_gain.shape[1]).index_add(1, self.band, squares)

    @torch.no_grad()
    def sample(self) -> Tensor:
        """One image for each row, (N, *event), without gradient."""
        # x = m + C^½ ε by the symmetric root: what V takes of ε is multiplied by other scales than the rest.
        scale = (self.log_scale + self.log_gain[:, self.band]).exp()
        inside, rest = scale[:, :-1], scale[:, -1:]
        noise = torch.randn(len(scale), len(self.directions), dtype=scale.dtype, device=scale.device)
        coordinates = (inside - rest) * (noise @ self.directions)
        return self.centre + (rest * noise + coordinates @ self.directions.T).unflatten(1, self.centre.shape)

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        centre, directions = shared(self.centre), shared(self.directions)
        return type(self)(rows(self.log_gain), shared(self.log_scale), self.band, centre, directions)

"""First-order statistics of images: pixels and the responses of small derivative filters, and how peaked they are.

Derivatives of natural images have far heavier tails than a Gaussian; source: Field, "Relations between the statistics
of natural images and the response properties of cortical cells", Journal of the Optical Society of America A 4, 1987;
Simoncelli and Olshausen, "Natural image statistics and neural representation", Annual Review of Neuroscience 24, 2001.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import avg_pool2d


def responses(images: Tensor) -> dict[str, Tensor]:
    """All responses, flat, by filter, to the mean over channels of images (N, C, H, W).

    "pixels" are the values themselves, "horizontal" and "vertical" differences of neighbours, "diagonal" the difference
    of those of two rows, "coarse" horizontal differences of averages over 4 × 4 pixels (of fewer, in small images).
    """
    grey = images.float().mean(1, keepdim=True)
    horizontal = grey[..., 1:] - grey[..., :-1]
    coarse = avg_pool2d(grey, min(4, grey.shape[-1] // 2))
    parts = {
        "pixels": grey,
        "horizontal": horizontal,
        "vertical": grey[..., 1:, :] - grey[..., :-1, :],
        "diagonal": horizontal[..., 1:, :] - horizontal[..., :-1, :],
        "coarse": coarse[..., 1:] - coarse[..., :-1],
    }
    return {name: part.flatten() for name, part in parts.items()}


def kurtosis(values: Tensor) -> float:
    """E(v − Ev)⁴ / (E(v − Ev)²)²: 3 for a Gaussian, larger for heavier tails; NaN where nothing varies."""
    centred = values.double() - values.double().mean()
    variance = centred.square().mean()
    return float(centred.pow(4).mean() / variance.square()) if variance > 0 else float("nan")

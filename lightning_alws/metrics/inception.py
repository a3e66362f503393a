"""The published FID's features: Inception v3 with TensorFlow's weights of 2015-12-05, as torch-fidelity has them.

Source: Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, NeurIPS 2017 (https://arxiv.org/abs/1706.08500). Images are
resized to 299 × 299 as TensorFlow 1 did, bilinear, not antialiased and not centred on pixels: what torchmetrics does
with ``antialias=False``. Another resize gives other figures (Parmar, Zhang, Zhu, CVPR 2022,
https://arxiv.org/abs/2104.11222).
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError
from lightning_alws.metrics.extractors import Extractor, ExtractorData, FeatureExtractor
from lightning_alws.metrics.pixels import as_colour, to_levels

FILE = "weights-inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
CHECKSUM = "6726825d"  # first digits of the SHA-256, as its name gives them
WIDTH = 2048
RESIZE = "299 x 299, bilinear as TensorFlow 1 (antialias=False)"
BATCH = 100  # images at a time: at 299 x 299 they need some 3 GB of activations


class InceptionV3(nn.Module):
    """Images of the data's space → colours in 256 levels → Inception's 2048 features.

    Args:
        network: takes uint8 (B, 3, H, W) and returns a tuple with features (B, 2048).
        likelihood: of the data.
    """

    def __init__(self, network: nn.Module, likelihood: str) -> None:
        super().__init__()
        self.network, self.likelihood = network, likelihood

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), grey or colour, to features (B, 2048); NaN for images that hold a NaN or an infinity."""
        levels = as_colour(to_levels(x, self.likelihood))
        whole = x.isfinite().flatten(1).all(1, keepdim=True)
        bytes_ = levels.nan_to_num(0).to(torch.uint8)
        parts = []
        for batch in bytes_.split(BATCH):
            output = self.network(batch)
            parts.append((output[0] if isinstance(output, tuple) else output).flatten(1))
        return torch.cat(parts).float().masked_fill(~whole, torch.nan)


class InceptionFeatures(FeatureExtractor):
    """Inception v3, whose FID and KID the literature gives for colour images; grey ones are repeated to three channels.

    Needs the package torch-fidelity and a file of weights, 92 MB. It is looked for where torch keeps downloads
    ($TORCH_HOME/hub/checkpoints) unless ``weights`` names it, fetched there if missing, and checked by its SHA-256.

    Args:
        weights: the file; needed where there is no network.
    """

    def __init__(self, weights: str | None = None) -> None:
        self.weights = weights

    def build(self, data: ExtractorData) -> Extractor:
        """The network; UserError if package or file are missing, or the file is damaged."""
        path = self._file()
        checksum = self._checked(path)
        with torch.inference_mode(False):
            module = InceptionV3(load_network(path), data.likelihood).eval().requires_grad_(False)
        return Extractor(module, "inception-v3-2015-12-05", checksum[:12], None, WIDTH, RESIZE)

    def _file(self) -> Path:
        if self.weights is not None:
            path = Path(self.weights).expanduser()
            if not path.is_file():
                raise UserError(
                    f"fid_kid.extractor.weights is {self.weights}, but there is no such file; get it from {ADDRESS}."
                )
            return path
        path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
        if not path.is_file():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(f".{os.getpid()}")
                torch.hub.download_url_to_file(ADDRESS, str(partial), hash_prefix=CHECKSUM, progress=False)
                os.replace(partial, path)
            except (OSError, urllib.error.URLError, RuntimeError) as error:
                raise UserError(
                    f"the weights of InceptionFeatures are not in {path} and cannot be fetched ({error}); get {FILE} "
                    f"from {ADDRESS} and give its place as fid_kid.extractor.weights."
                ) from error
        return path

    @staticmethod
    def _checked(path: Path) -> str:
        with open(path, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if not checksum.startswith(CHECKSUM):
            raise UserError(
                f"the weights of InceptionFeatures in {path} are damaged or others (their SHA-256 begins with "
                f"{checksum[:8]}, not {CHECKSUM}); get {FILE} from {ADDRESS}."
            )
        return checksum


def load_network(path: Path) -> nn.Module:
    """torch-fidelity's network with the weights of a file; UserError without the package, or for another file."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UserError(
            "fid_kid.extractor is InceptionFeatures, which needs the package torch-fidelity; install it "
            "(pip install 'alws[inception]'), or choose another extractor."
        ) from error
    try:
        # The package itself would run whatever a pickle says; a file that is no mere set of tensors stops here.
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return FeatureExtractorInceptionV3("inception", [str(WIDTH)], feature_extractor_weights_path=str(path))
    except Exception as error:  # of any kind, from a damaged file
        raise UserError(f"the weights of InceptionFeatures in {path} cannot be read ({error}).") from error

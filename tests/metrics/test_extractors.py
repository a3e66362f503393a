"""Feature extractors without labels, and Inception by a stub: deterministic, named, exact about pixels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError
from lightning_alws.metrics import inception
from lightning_alws.metrics.distances import kernel_distance
from lightning_alws.metrics.extractors import ExtractorData, FeatureExtractor, PrincipalComponents, RandomFeatures
from lightning_alws.metrics.inception import ADDRESS, FILE, InceptionFeatures
from lightning_alws.metrics.lenet import LeNetFeatures
from lightning_alws.metrics.pixels import as_colour, to_levels
from lightning_alws.noise import generator


def made(
    shape: tuple[int, int, int] = (3, 16, 16), count: int = 120, likelihood: str = "gaussian", classes: int = 0
) -> ExtractorData:
    images = 2 * torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)) - 1
    images[: count // 2] *= torch.linspace(0, 1, shape[-1])
    labels = torch.arange(count) % max(classes, 1)
    return ExtractorData(
        name="made",
        likelihood=likelihood,
        count=lambda split: count,
        images=lambda split, rows: images[rows],
        labels=(lambda split: labels) if classes else None,
    )


def test_levels_are_clamped_and_rounded_and_never_wrapped() -> None:
    images = torch.tensor([-50.0, -1.004, -1.0, -1 + 0.9 / 255, 0.0, 1 - 0.9 / 255, 1.0, 1.004, 50.0])
    assert to_levels(images, "gaussian").tolist() == [0, 0, 0, 0, 128, 255, 255, 255, 255]  # 127.5 rounds to even
    every = torch.arange(256)
    assert torch.equal(to_levels(every / 255 * 2 - 1, "gaussian").to(torch.uint8), every.to(torch.uint8))
    assert to_levels(torch.tensor([0.0, 1.0, 1.01]), "bernoulli").tolist() == [0, 255, 255]
    assert to_levels(torch.tensor([-9.0, 0.0, 3.0]), "gaussian_unbounded").tolist() == [0, 128, 255]
    assert to_levels(torch.tensor([float("nan")]), "gaussian").isnan().all()


EXTRACTORS = [RandomFeatures(width=5), PrincipalComponents(width=7)]
KIND = pytest.mark.parametrize("kind", EXTRACTORS, ids=lambda kind: type(kind).__name__)


@KIND
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 64)], ids=str)
@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian_unbounded"])
def test_features_are_the_same_whenever_built(
    kind: FeatureExtractor, shape: tuple[int, int, int], likelihood: str
) -> None:
    data = made(shape, 20, likelihood)
    torch.manual_seed(3)
    first = kind.build(data)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    second = kind.build(data)
    assert torch.equal(torch.get_rng_state(), state)  # global draws are not touched
    images = data.images("train", torch.arange(9))
    features = first.features(images)
    assert features.shape == (9, first.width)
    torch.testing.assert_close(features, second.features(images))
    torch.testing.assert_close(features, first.features(images, batch_size=2))
    assert (first.name, first.hash) == (second.name, second.hash)
    assert first.accuracy is None
    assert all(not parameter.requires_grad for parameter in first.module.parameters())
    torch.testing.assert_close(
        first.features(data.images("train", torch.arange(20))).square().mean(), torch.tensor(1.0), rtol=0.1, atol=0
    )
    broken = images.clone()
    broken[2, 0, 1, 1] = float("nan")
    assert first.features(broken)[2].isnan().any()


def test_other_seeds_widths_and_data_are_other_extractors() -> None:
    built = [
        RandomFeatures(5).build(made()),
        RandomFeatures(5, seed=1).build(made()),
        RandomFeatures(6).build(made()),
        PrincipalComponents(5).build(made()),
        PrincipalComponents(6).build(made()),
        PrincipalComponents(5).build(made((1, 16, 16))),
    ]
    assert len({extractor.hash for extractor in built}) == len(built)


def test_principal_components_are_those_of_sklearn() -> None:
    from sklearn.decomposition import PCA

    data = made((1, 8, 8), 90)
    extractor = PrincipalComponents(6).build(data)
    images = data.images("train", torch.arange(90))
    flat = (to_levels(images, "gaussian") / 127.5 - 1).flatten(1).double().numpy()
    reference = torch.from_numpy(PCA(6, svd_solver="full").fit_transform(flat))
    features = extractor.features(images).double()
    features = features * (reference.square().mean() / features.square().mean()).sqrt()
    torch.testing.assert_close(features @ features.T, reference @ reference.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [RandomFeatures, PrincipalComponents])
def test_another_law_of_pixels_is_at_a_distance(kind: type[FeatureExtractor]) -> None:
    data = made((3, 16, 16), 400)
    extractor = kind().build(data)
    images = data.images("train", torch.arange(400))
    first, second = extractor.features(images[::2]), extractor.features(images[1::2])
    darker = extractor.features(images[::2] - 0.5)
    same, other = (kernel_distance(second, one, 100, 10, generator(0, "test"))[0] for one in (first, darker))
    assert other > 5 * abs(same)


@pytest.mark.parametrize("build", [
    lambda: RandomFeatures().build(made((1, 4, 4))),
    lambda: PrincipalComponents(64).build(made(count=30)),
    lambda: PrincipalComponents(80).build(made((1, 8, 8))),
    lambda: LeNetFeatures().build(made()),
    lambda: RandomFeatures(0),
    lambda: PrincipalComponents(0),
    lambda: LeNetFeatures(0),
])  # fmt: skip
def test_what_cannot_be_is_said(build: Any) -> None:
    with pytest.raises(UserError):
        build()


def test_lenet_takes_colours_and_any_number_of_classes(tmp_path: Path) -> None:
    data = made((3, 16, 16), 90, classes=3)
    data = ExtractorData(**{**data.__dict__, "cache_dir": str(tmp_path)})
    extractor = LeNetFeatures(8).build(data)
    assert extractor.features(data.images("train", torch.arange(4))).shape == (4, 8)
    assert extractor.module.head.out_features == 3  # type: ignore[union-attr]


class Stub(nn.Module):
    """Stands for torch-fidelity's network: 2048 numbers of uint8 images with three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor]:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        self.seen.append(x)
        return (x.float().mean((2, 3)).repeat(1, 683)[:, :2048],)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    monkeypatch.setattr(inception, "CHECKSUM", hashlib.sha256(b"weights").hexdigest()[:8])
    monkeypatch.setattr(inception, "load_network", lambda path: Stub())
    return path


def test_inception_gets_rounded_colours(weights: Path) -> None:
    extractor = InceptionFeatures(str(weights)).build(made())
    grey = torch.tensor([-7.0, -1.0, 0.004, 1.0, 1.01]).view(5, 1, 1, 1).expand(5, 1, 8, 8).clone()
    features = extractor.features(grey)
    assert features.shape == (5, 2048)
    assert features[:, 0].tolist() == [0, 0, 128, 255, 255]
    network: Any = extractor.module
    assert torch.equal(network.network.seen[0][:, 0], network.network.seen[0][:, 2])
    grey[1, 0, 3, 3] = float("inf")
    assert extractor.features(grey).isnan().any(1).tolist() == [False, True, False, False, False]
    assert extractor.hash == hashlib.sha256(b"weights").hexdigest()[:12]
    assert "antialias=False" in extractor.resize
    assert torch.equal(as_colour(grey)[:, 0], as_colour(grey)[:, 2])


def test_inception_weights_are_checked(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.write_bytes(b"weightz")
    with pytest.raises(UserError, match=f"damaged or others .*; get {FILE} from {ADDRESS}"):
        InceptionFeatures(str(weights)).build(made())
    with pytest.raises(UserError, match=f"there is no such file; get it from {ADDRESS}"):
        InceptionFeatures(str(tmp_path / "none.pth")).build(made())


def test_inception_without_a_network_says_where_the_weights_are(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(inception, "ADDRESS", "http://127.0.0.1:9/weights.pth")
    with pytest.raises(UserError, match=f"checkpoints/{FILE} and cannot be fetched .* fid_kid.extractor.weights"):
        InceptionFeatures().build(made())


def test_inception_finds_its_weights_where_torch_keeps_them(weights: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(weights.read_bytes())
    assert InceptionFeatures().build(made()).width == 2048


def test_inception_without_the_package_or_with_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = tmp_path / "weights.pth"
    torch.save({"not": torch.ones(1)}, path)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match="needs the package torch-fidelity"):
        inception.load_network(path)


@pytest.mark.slow
def test_inception_of_torch_fidelity_with_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real network, its resize included, against torchmetrics' own with ``antialias=False``."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    from torchmetrics.image.fid import NoTrainInceptionV3

    path = tmp_path / "weights.pth"
    with monkeypatch.context() as patched:
        patched.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        torch.save(module.FeatureExtractorInceptionV3("inception", ["2048"]).state_dict(), path)
    monkeypatch.setattr(inception, "CHECKSUM", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    data = made((3, 32, 32), 3)
    images = data.images("train", torch.arange(3))
    features = InceptionFeatures(str(path)).build(data).features(images)
    reference = NoTrainInceptionV3("inception", ["2048"], str(path), antialias=False)
    torch.testing.assert_close(features, reference(to_levels(images, "gaussian").to(torch.uint8)))
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="cannot be read .it holds a list."):
        inception.load_network(path)

"""FID and KID in a run: the right figures under the right names, on every process, and no trace elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks.fid_kid import FIDKID
from lightning_alws.errors import UserError
from lightning_alws.likelihoods import Gaussian
from lightning_alws.metrics.distances import frechet_distance, kernel_distance
from lightning_alws.noise import generator

SIZES = {"train": 200, "val": 41, "test": 120}
KEYS = ("fid_samples", "kid_samples", "fid_means", "kid_means")


def draw(count: int, contrast: float = 1.0) -> tuple[Tensor, Tensor]:
    """Stripes, horizontal (0) or vertical (1), in noise: (count, 1, 8, 8) and (count,)."""
    labels = torch.randint(2, (count,))
    stripes = (torch.arange(8) % 2).float().expand(1, 8, 8)
    patterns = torch.where(labels.view(-1, 1, 1, 1) == 0, stripes, stripes.mT)
    return contrast * patterns + 0.2 * torch.randn(count, 1, 8, 8), labels


class Stripes(pl.LightningDataModule):
    image_shape = (1, 8, 8)
    num_classes = 2
    name = "Stripes"

    def __init__(self, sizes: dict[str, int] | None = None) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.splits = {split: draw(count) for split, count in (sizes or SIZES).items()}

    def images(self, split: str) -> Tensor:
        return self.splits[split][0]

    def labels(self, split: str) -> Tensor:
        return self.splits[split][1]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.images("train"), batch_size=100)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.images("val"), batch_size=100)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.images("test"), batch_size=100)  # type: ignore[arg-type]


class Painter(nn.Module):
    """The law of the data, but for the contrast of its stripes."""

    def __init__(self, contrast: float) -> None:
        super().__init__()
        self.contrast = nn.Parameter(torch.tensor(contrast))
        self.draws: list[Tensor] = []

    def sample_prior(self, count: int) -> Tensor:
        z = torch.randn(count, 1)
        self.draws.append(z)
        return z

    def likelihood(self, z: Tensor) -> Gaussian:
        stripes = (torch.arange(8) % 2).float().expand(1, 8, 8)
        patterns = torch.where(z.view(-1, 1, 1, 1) < 0, stripes, stripes.mT)
        return Gaussian(self.contrast * patterns, torch.tensor(0.2).log())


class Module(pl.LightningModule):
    def __init__(self, contrast: float = 1.0, painter: nn.Module | None = None) -> None:
        super().__init__()
        self.evaluation_model = Painter(contrast) if painter is None else painter
        self.bias = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return self.bias.square()

    def validation_step(self, batch: Tensor, index: int) -> None:
        pass

    def test_step(self, batch: Tensor, index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.bias], lr=0.1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def callback(cache: str, **changes: Any) -> FIDKID:
    return FIDKID(cache_dir=cache, kid_subsets=changes.pop("kid_subsets", 10), **changes)


def trainer(folder: Path, callbacks: list[pl.Callback], **changes: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "callbacks": callbacks,
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
    }
    return pl.Trainer(**(settings | changes))


def test_fit_logs_the_validation_in_time_for_a_checkpoint(tmp_path: Path, cache: str) -> None:
    fid_kid = callback(cache)
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/fid_samples", filename="best")
    run = trainer(tmp_path, [checkpoint, fid_kid], max_epochs=2)
    module = Module()
    run.fit(module, datamodule=Stripes())
    assert {key for key in run.callback_metrics if "id_" in key} == {f"val/{key}" for key in KEYS}
    assert checkpoint.best_model_score is not None
    assert float(checkpoint.best_model_score) == float(run.callback_metrics["val/fid_samples"])
    provenance = fid_kid.provenance()["fid_kid"]
    assert provenance["images_compared"] == {"val": 41}
    assert provenance["kid_subset_size"] == {"val": 20}
    assert provenance["extractor"] == "lenet-Stripes-64"  # few training images: fewer features than asked for
    assert provenance["extractor_accuracy"] > 0.9
    assert len(provenance["extractor_hash"]) == 12
    assert set(module.state_dict()) == {"bias", "evaluation_model.contrast"}
    assert set(torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]) == set(module.state_dict())


def test_figures_are_those_of_the_images(tmp_path: Path, cache: str) -> None:
    data, module, fid_kid = Stripes(), Module(0.7), callback(cache, feature_width=16, num_samples=100)
    run = trainer(tmp_path, [fid_kid])
    (logged,) = run.test(module, datamodule=data, verbose=False)
    assert fid_kid._extractor is not None
    features = fid_kid._extractor.features

    def subset(split: str) -> Tensor:
        order = torch.randperm(SIZES[split], generator=generator(0, "fid", split))
        return features(data.images(split)[order[:100]])

    real, z = subset("test"), module.evaluation_model.draws[-1]
    assert len(z) == 100
    means = features(module.evaluation_model.likelihood(z).mean.detach())
    assert logged["test/fid_means"] == pytest.approx(frechet_distance(real, means), rel=1e-4)
    kid, _ = kernel_distance(real, means, 50, 10, generator(0, "kid", "test"))
    assert logged["test/kid_means"] == pytest.approx(kid, rel=1e-4)
    assert logged["test/fid_floor"] == pytest.approx(frechet_distance(real, subset("train")), rel=1e-4)
    assert logged["test/fid_pixels"] > 5 * logged["test/fid_floor"]
    assert logged["test/fid_samples"] != logged["test/fid_means"]
    assert fid_kid.provenance()["fid_kid"]["images_compared"] == {"test": 100, "floor": 100}


def test_independent_pixels_keep_every_pixels_law_and_nothing_else(cache: str) -> None:
    data, fid_kid = Stripes(), callback(cache)
    pixels = SimpleNamespace(features=lambda images: images.flatten(1))
    shuffled = fid_kid._independent_pixels(SimpleNamespace(datamodule=data), pixels, 10**6)
    train = data.images("train").flatten(1)
    torch.testing.assert_close(shuffled.sort(0).values, train.sort(0).values)
    independent, real = (
        torch.corrcoef(images.T).nan_to_num().fill_diagonal_(0).abs().max() for images in (shuffled, train)
    )
    assert independent < 0.5 * real


def test_figures_fall_towards_the_law_of_the_data(tmp_path: Path, cache: str) -> None:
    logged = [
        trainer(tmp_path, [callback(cache)]).test(Module(contrast), datamodule=Stripes(), verbose=False)[0]
        for contrast in (0.0, 0.5, 1.0)
    ]
    for name in ("test/fid_samples", "test/kid_samples"):
        far, nearer, equal = (figures[name] for figures in logged)
        assert far > 1.2 * nearer > 5 * equal
    # Without the noise, even the right stripes are not the data.
    assert logged[2]["test/fid_means"] > logged[2]["test/fid_samples"]
    assert logged[2]["test/fid_samples"] < 3 * logged[2]["test/fid_floor"]


class Copyist(Painter):
    """Gives back the real images that the callback chooses."""

    def __init__(self, images: Tensor) -> None:
        super().__init__(1.0)
        self.images = images

    def likelihood(self, z: Tensor) -> Gaussian:
        order = torch.randperm(len(self.images), generator=generator(0, "fid", "test"))
        return Gaussian(self.images[order[: len(z)]], torch.tensor(0.2).log())


def test_real_images_are_at_no_distance_from_themselves(tmp_path: Path, cache: str) -> None:
    data = Stripes()
    module = Module(painter=Copyist(data.images("test")))
    (logged,) = trainer(tmp_path, [callback(cache)]).test(module, datamodule=data, verbose=False)
    assert logged["test/fid_means"] == pytest.approx(0, abs=1e-4)
    assert logged["test/fid_samples"] > 0.01


def test_global_random_state_is_untouched(tmp_path: Path, cache: str) -> None:
    states = []
    for callbacks in ([], [callback(cache, feature_width=9)]):  # a width of its own: this run trains the LeNet
        torch.manual_seed(3)
        run = trainer(tmp_path, callbacks)
        data = Stripes()
        run.fit(Module(), datamodule=data)
        run.test(Module(), datamodule=data, verbose=False)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_the_same_run_gives_the_same_figures_and_another_seed_others(tmp_path: Path, cache: str) -> None:
    first, again, other = (
        trainer(tmp_path, [callback(cache, seed=seed)]).test(Module(), datamodule=Stripes(), verbose=False)[0]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first["test/fid_samples"] != other["test/fid_samples"]


class Scalars(pl.LightningDataModule):
    """Data that are no labelled images."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(5, 1))  # type: ignore[arg-type]

    val_dataloader = train_dataloader


class Numbers(Painter):
    """Observations that are no images of the data's shape."""

    def likelihood(self, z: Tensor) -> Gaussian:
        return Gaussian(z, torch.tensor(0.0))


@pytest.mark.parametrize("case", ["other data", "other observations", "no model", "fast_dev_run", "val_samples=0"])
def test_does_nothing_where_it_does_not_apply(tmp_path: Path, case: str) -> None:
    data: pl.LightningDataModule = Scalars() if case == "other data" else Stripes()
    module = Module(painter=Numbers(1.0) if case == "other observations" else None)
    changes: dict[str, Any] = {}
    fid_kid = FIDKID(cache_dir=str(tmp_path / "cache"), val_samples=0 if case == "val_samples=0" else 2000)
    if case == "no model":
        module.evaluation_model = None  # type: ignore[assignment]
    if case == "fast_dev_run":
        changes["fast_dev_run"] = True
    run = trainer(tmp_path, [fid_kid], **changes)
    run.fit(module, datamodule=data)
    assert not run.callback_metrics
    assert fid_kid.provenance() == {}
    assert not (tmp_path / "cache").exists()


def test_too_few_images_stop_the_run_at_its_start(tmp_path: Path, cache: str) -> None:
    with pytest.raises(UserError, match="the val split has 3"):
        trainer(tmp_path, [callback(cache)]).fit(Module(), datamodule=Stripes(SIZES | {"val": 3}))


@pytest.mark.parametrize("name", ["num_samples", "val_samples", "kid_subset_size", "kid_subsets", "feature_width"])
def test_senseless_numbers_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"fid_kid.{name} is -1"):
        FIDKID(**{name: -1})  # type: ignore[arg-type]


def test_a_diverged_model_does_not_stop_the_run(tmp_path: Path, cache: str) -> None:
    (logged,) = trainer(tmp_path, [callback(cache)]).test(Module(float("nan")), datamodule=Stripes(), verbose=False)
    assert logged["test/fid_samples"] != logged["test/fid_samples"]
    assert logged["test/fid_floor"] > 0


class Witness(pl.Callback):
    """Writes what each process saw."""

    def __init__(self, fid_kid: FIDKID, folder: Path) -> None:
        self.fid_kid, self.folder = fid_kid, folder

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            content = {
                "figures": self.fid_kid.figures,  # before Lightning's own averaging over the processes
                "z": pl_module.evaluation_model.draws[-1],  # type: ignore[union-attr, index]
                "hash": self.fid_kid.provenance()["fid_kid"]["extractor_hash"],
            }
            torch.save(content, self.folder / f"rank{trainer.global_rank}.pt")


def test_two_processes_share_the_work_and_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a forked process must not wait for threads it has not inherited
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fid_kid = callback(str(tmp_path / "cache"))
        run = trainer(tmp_path, [fid_kid, Witness(fid_kid, tmp_path)], strategy="ddp_fork", devices=2)
        run.fit(Module(), datamodule=Stripes())
    finally:
        torch.set_num_threads(threads)
    zero, one = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert set(zero["figures"]) == {f"val/{key}" for key in KEYS}
    assert zero["figures"] == one["figures"]
    assert zero["hash"] == one["hash"]
    assert len(zero["z"]) == len(one["z"]) == 21  # of 41 images
    assert not torch.isin(zero["z"], one["z"]).any()


def test_figures_of_two_processes_are_those_of_one_up_to_sampling(
    tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The distance between training and test images to rounding; of samples, within the spread over seeds."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a forked process must not wait for threads it has not inherited

    def figures(seed: int, **changes: Any) -> dict[str, float]:
        run = trainer(tmp_path, [callback(cache, seed=seed)], **changes)
        (logged,) = run.test(Module(), datamodule=Stripes(), verbose=False)
        return {name: value for name, value in logged.items() if "id_" in name}

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ones = [figures(seed) for seed in range(5)]
        two = figures(0, strategy="ddp_fork", devices=2)
    finally:
        torch.set_num_threads(threads)
    assert two.keys() == ones[0].keys() > {"test/fid_samples", "test/kid_samples", "test/fid_floor"}
    for name, value in two.items():
        values = torch.tensor([one[name] for one in ones], dtype=torch.float64)
        assert abs(value - float(values.mean())) <= 5 * float(values.std()) + 1e-4 * float(values.abs().max()), name
        if name == "test/fid_floor":
            assert value == pytest.approx(float(values[0]), rel=1e-4)

"""``alws export``: the weights that are evaluated, in a file without code, from which the same samples are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_cli import QUICKSTART, fit

from cli import AlwsCLI, LatentVariableModule, LightningDataModule, Parser, main, resolve
from lightning_alws.errors import UserError
from lightning_alws.export import choose_weights
from lightning_alws.models import ImageModel
from lightning_alws.noise import seeded


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps with averaged weights, not tested."""
    folder = tmp_path_factory.mktemp("runs")
    assert fit(folder, "--trainer.max_steps", "10", "--test_after_fit", "false") == 0
    return folder / "run"


def exported(run: Path, *more: str, ckpt_path: str = "best") -> int:
    return main(["export", "--config", str(run / "config.yaml"), "--ckpt_path", ckpt_path, *more])


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def freshly_built(run: Path) -> ImageModel:
    """The model of the run's config, untrained, from the seed of another run."""
    command = AlwsCLI(
        LatentVariableModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=5,
        save_config_callback=None,
        parser_class=Parser,
        args=["fit", "--config", str(run / "config.yaml"), "--seed_everything", "5", "--trainer.fast_dev_run", "1",
              "--trainer.limit_train_batches", "0", "--trainer.limit_val_batches", "0"],
    )  # fmt: skip
    assert isinstance(command.model, ImageModel)
    return command.model


def samples(model: ImageModel) -> torch.Tensor:
    generative = model.evaluation_model
    with torch.no_grad(), seeded(torch.device("cpu"), 3, "export"):
        return generative.likelihood(generative.sample_prior(20)).sample()


@pytest.mark.parametrize("which", ["best", pytest.param("last", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_freshly_built_model_draws_the_same_samples(run: Path, tmp_path: Path, which: str, capsys) -> None:
    out = tmp_path / "weights.safetensors"
    assert exported(run, "--out", str(out), ckpt_path=which) == 0
    assert str(out) in capsys.readouterr().out
    checkpoint = torch.load(run / "checkpoints" / f"{which}.ckpt", weights_only=True)
    trained, fresh = freshly_built(run), freshly_built(run)
    assert trained.averaged is not None
    trained.load_state_dict(checkpoint["state_dict"])
    assert not torch.equal(samples(fresh), samples(trained))
    fresh.evaluation_model.load_state_dict(load_file(out))
    assert torch.equal(samples(fresh), samples(trained))
    told = metadata(out)
    assert told["class_path"] == "lightning_alws.models.ImageModel"
    assert (told["part"], told["averaged"], told["alws_version"]) == ("generative", "true", "0.1.0")
    assert int(told["step"]) == checkpoint["global_step"]
    assert json.loads(told["hyper_parameters"])["latent_dim"] == 8


def test_the_whole_module(run: Path) -> None:
    assert exported(run, "--part", "module", ckpt_path=str(run / "checkpoints" / "last.ckpt")) == 0
    file = run / "checkpoints" / "last_module.safetensors"
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weights = load_file(file)
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in state)
    assert metadata(file)["part"] == "module"
    file.unlink()


def test_raw_weights_where_none_are_averaged_and_tensors_that_share_memory() -> None:
    weight = torch.arange(6.0).view(2, 3)
    state = {"generative.a": weight, "generative.b": weight.T, "regression.ridge": torch.ones(())}
    weights, averaged = choose_weights(state, "generative", Path("x"))
    assert (set(weights), averaged) == ({"a", "b"}, False)
    assert weights["b"].is_contiguous()
    assert weights["a"].data_ptr() != weights["b"].data_ptr()
    with pytest.raises(UserError, match="no tensor"):
        choose_weights({"generative.a": 3}, "generative", Path("x"))
    with pytest.raises(UserError, match="--part module"):
        choose_weights({"other": weight}, "generative", Path("x"))


class Planted:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return (Path.mkdir, (self.folder,))


def test_code_in_a_checkpoint_is_not_run(run: Path, tmp_path: Path, capsys) -> None:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save({**checkpoint, "planted": Planted(tmp_path / "proof")}, tmp_path / "bad.ckpt")
    assert exported(run, ckpt_path=str(tmp_path / "bad.ckpt")) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["bad.ckpt"]


def test_a_moved_run_and_one_under_another_folder(run: Path, tmp_path: Path) -> None:
    """The config's own folder comes first; a config that lies elsewhere names its run."""
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    assert main(["export", "--config", str(tmp_path / "config.yaml"), "--ckpt_path", "best"]) == 0
    (run / "checkpoints" / "best.safetensors").unlink()
    run.rename(tmp_path / "moved")
    try:
        assert exported(tmp_path / "moved") == 0
    finally:
        (tmp_path / "moved").rename(run)
    (run / "checkpoints" / "best.safetensors").unlink()


def test_full_disk_keeps_what_was_there(run: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "a.safetensors"
    out.write_bytes(b"before")
    monkeypatch.setattr("os.fsync", full)
    assert exported(run, "--out", str(out)) == 2
    assert "No space left on device; free some space, or give another --out" in capsys.readouterr().err
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --config, --ckpt_path"),
        (["--config", QUICKSTART, "--ckpt_path", "best"], "is of no run; give RUNS/NAME/config.yaml"),
        (["--config", "no_such.yaml", "--ckpt_path", "best"], "no_such.yaml"),
        (["--config", QUICKSTART, "--ckpt_path", "https://somewhere/x.ckpt"], "local file only"),
        (["--config", QUICKSTART, "--ckpt_path", "no_such.ckpt"], "there is no file no_such.ckpt"),
        (["--config", QUICKSTART, "--ckpt_path", QUICKSTART], "cannot be read"),
        (["--config", QUICKSTART, "--ckpt_path", QUICKSTART, "--out", "x.ckpt"], "ends in .safetensors"),
        (["--config", QUICKSTART, "--ckpt_path", "best", "--part", "kernel"], "invalid choice: 'kernel'"),
        (["--config", QUICKSTART, "--ckpt_path", "best", "more"], "unrecognized arguments: more"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len([line for line in error.splitlines() if line.startswith("alws: ")]) == 1


def test_checkpoint_of_another_class(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = str(Path(QUICKSTART).parent / "images" / "vae.yaml")
    assert resolve(["fit", "--config", other])["model"]["class_path"].endswith("VAE")
    last = str(run / "checkpoints" / "last.ckpt")
    assert main(["export", "--config", other, "--ckpt_path", last]) == 2
    assert "is of the model lightning_alws.models.ImageModel, but --model is" in capsys.readouterr().err

"""Compiled networks: the same run to rounding, whose checkpoints and copies know nothing of it."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from runs import ADAPTIVE, Images, forked, image_model, named, trainer
from safetensors.torch import load_file
from test_cli import fit
from torch import nn

from callbacks import Compile
from callbacks.compile import chains
from cli import main
from lightning_alws.baselines import ImageVAE
from lightning_alws.errors import UserError
from lightning_alws.models import ImageModel
from lightning_alws.networks import MLPDecoder, MLPFeatures
from lightning_alws.objectives import LogJointError

EAGER = functools.partial(Compile, networks=True, backend="eager")


def model(**more: Any) -> ImageModel:
    torch.manual_seed(0)
    return image_model(regression=ADAPTIVE, kernel_objective=LogJointError(), averaging=0.5, **more)


def compiled(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if part._compiled_call_impl is not None]


def test_the_networks_are_found_and_their_copies_left_out() -> None:
    module = model()
    names = {id(part): name for name, part in module.named_modules()}
    assert [names[id(chain)] for chain in chains(module)] == ["generative.decoder.net", "regression.kernel.network.net"]
    vae = ImageVAE(encoder=MLPFeatures, latent_dim=2, decoder=MLPDecoder, image_shape=(1, 8, 8), likelihood="bernoulli")
    names = {id(part): name for name, part in vae.named_modules()}
    assert len([names[id(chain)] for chain in chains(vae)]) == 2


@pytest.mark.parametrize("more", [{}, {"chunk": 7}], ids=["all at once", "chunks"])
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_run_is_the_same_and_its_checkpoint_has_the_same_names(tmp_path: Path, backend: str, more: dict) -> None:
    found = []
    for networks in (False, True):
        module = model(**more)
        run = trainer(tmp_path, [Compile(networks, backend)], max_steps=3)
        run.fit(module, datamodule=Images())
        assert compiled(module) == (["generative.decoder.net", "regression.kernel.network.net"] if networks else [])
        run.save_checkpoint(tmp_path / f"{networks}.ckpt")
        found.append(torch.load(tmp_path / f"{networks}.ckpt", weights_only=True)["state_dict"])
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name)


@pytest.mark.slow
def test_a_run_is_resumed_with_and_without(tmp_path: Path) -> None:
    """Of three parts, only the middle one is compiled; the numbers are those of an uncut run."""
    whole = model()
    trainer(tmp_path, max_steps=4, max_epochs=-1).fit(whole, datamodule=Images())
    path = None
    for steps, callbacks in ((1, []), (3, [EAGER()]), (4, [])):
        module = model()
        run = trainer(tmp_path, callbacks, max_steps=steps, max_epochs=-1)
        run.fit(module, datamodule=Images(batch_size=4), ckpt_path=path, weights_only=True)
        path = tmp_path / f"{steps}.ckpt"
        run.save_checkpoint(path)
    assert named(module).keys() == named(whole).keys()
    assert module.state_dict().keys() == whole.state_dict().keys()


def test_copies_are_plain_modules() -> None:
    module = model()
    for chain in chains(module):
        chain.compile(backend="eager")
    assert compiled(module)
    assert compiled(copy.deepcopy(module)) == []


def test_nothing_is_compiled_unless_asked_for_nor_in_a_test(tmp_path: Path) -> None:
    module = model()
    trainer(tmp_path, [Compile()], max_steps=1).fit(module, datamodule=Images())
    assert compiled(module) == []
    trainer(tmp_path, [EAGER()]).test(module, datamodule=Images(), verbose=False)
    assert compiled(module) == []


class Equal(pl.Callback):
    """Notes the parameters of each process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.save((named(pl_module), compiled(pl_module)), self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_stay_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = forked(tmp_path, [EAGER(), Equal(tmp_path)], monkeypatch, max_steps=3)
    run.fit(model(), datamodule=Images(batch_size=2))
    (zero, names), (one, others) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert names == others == ["generative.decoder.net", "regression.kernel.network.net"]
    assert all(torch.equal(zero[name], one[name]) for name in zero)


@pytest.mark.slow
def test_every_one_of_many_networks_is_compiled(tmp_path: Path) -> None:
    """Also at other batch sizes and without gradient: torch's own limit is 8 variants of them all."""
    graphs = []

    def counting(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    class Many(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            widths = range(2, 8)
            self.networks = nn.ModuleList([nn.Sequential(nn.Linear(w, w), nn.Linear(w, 1)) for w in widths])

        def training_step(self, x: torch.Tensor, _: int) -> torch.Tensor:
            inputs = [torch.ones(len(x), network[0].in_features) for network in self.networks]
            with torch.no_grad():
                _ = [network(one[:1]) for network, one in zip(self.networks, inputs, strict=True)]
            return torch.stack([network(one).sum() for network, one in zip(self.networks, inputs, strict=True)]).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer(tmp_path, [Compile(True, counting)], max_steps=2, limit_val_batches=0).fit(Many(), datamodule=Images())
    assert len(graphs) >= 2 * 6


def broken(*_: Any) -> Any:
    raise RuntimeError("no compiler found.\nand much more")


@pytest.mark.parametrize(("backend", "reason"), [("nonesuch", "nonesuch"), (broken, "no compiler found")])
def test_where_torch_cannot_it_is_one_sentence(tmp_path: Path, backend: Any, reason: str) -> None:
    with pytest.raises(UserError, match=r"compile\.networks is true, but torch cannot compile") as error:
        trainer(tmp_path, [Compile(True, backend)], max_steps=1).fit(model(), datamodule=Images())
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_on_the_command_line_with_resume_and_export(tmp_path: Path) -> None:
    compiling = ("--compile.networks", "true", "--compile.backend", "eager", "--test_after_fit", "false")
    assert fit(tmp_path, *compiling, "--trainer.max_steps", "5") == 0
    assert fit(tmp_path, *compiling, "--trainer.max_steps", "10", "--ckpt_path", "last") == 0
    config = str(tmp_path / "run" / "config.yaml")
    assert main(["export", "--config", config, "--ckpt_path", "last"]) == 0
    weights = load_file(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert not any("_orig_mod" in name for name in weights)
    assert main(["test", "--config", config, "--ckpt_path", "last"]) == 0

"""Memory that runs out in a step ends the run in one sentence with the numbers and the settings."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from runs import Images, image_model, trainer
from torch import Tensor

from callbacks import FIDKID, LogLikelihood, Predictions, ResultsFile
from lightning_alws.baselines import IWAE, WGANGP, ImageVAE
from lightning_alws.errors import UserError
from lightning_alws.feature_ridge import RandomFeatureRidge
from lightning_alws.kernels import GaussianKernel
from lightning_alws.memory import asked_for, installed, memory_sentence, out_of_memory
from lightning_alws.messages import ending
from lightning_alws.networks import MLPCritic, MLPDecoder, MLPFeatures

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.50 GiB. GPU 0 has a total capacity of 79 GiB.")
CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
MORE_THAN_THERE_IS = 2**47  # numbers


def raises(error: Exception) -> Callable[..., Any]:
    def raising(*args: Any, **settings: Any) -> Any:
        raise error

    return raising


class FailingBackward(torch.autograd.Function):
    """Asks for more memory than there is in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] + torch.empty(MORE_THAN_THERE_IS)


@pytest.mark.parametrize("error", [CUDA, MemoryError(), CUBLAS], ids=["CUDA", "MemoryError", "cuBLAS"])
@pytest.mark.parametrize("where", ["fit", "weights"])
def test_a_step_names_the_numbers_and_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    model = image_model()
    if where == "fit":
        monkeypatch.setattr(model.regression, "fit", raises(error))
    else:
        monkeypatch.setattr(model, "wake", raises(error))
    with pytest.raises(UserError) as raised:
        trainer(tmp_path, limit_val_batches=0).fit(model, datamodule=Images())
    said, status = ending(raised.value, "--runs") or ("", 0)
    assert status == 2
    amount = " (12.50 GiB more were asked for)" if error is CUDA else ""
    assert said == (
        f"memory ran out{amount} in step 0 with model.learning.sleep_samples 20, and model.learning.chunk not set; set "
        "model.learning.chunk, such as 2, which bounds the generator's memory, choose RandomFeatureRidge for "
        "model.learning.regression (KernelRidge keeps an N × N matrix), or lower sleep_samples or the batch size."
    )


def test_what_the_allocator_itself_raises_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the backward pass, with a chunk, and a regression whose memory is linear in N."""
    linear = functools.partial(RandomFeatureRidge, kernel=functools.partial(GaussianKernel, bandwidth=4.0), count=10)
    model = image_model(chunk=8, regression=linear)
    likelihood = model.generative.likelihood
    monkeypatch.setattr(
        model.generative,
        "likelihood",
        lambda z: likelihood(z).map(FailingBackward.apply, lambda shared: shared),
    )
    with pytest.raises(UserError) as raised:
        trainer(tmp_path, limit_val_batches=0).fit(model, datamodule=Images())
    assert str(raised.value) == (
        "memory ran out (5.24e+05 GiB more were asked for) in step 0 with model.learning.sleep_samples 20, and "
        "model.learning.chunk 8; lower model.learning.chunk, or lower sleep_samples or the batch size."
    )


def test_what_is_largest_comes_first() -> None:
    model = image_model(sleep_samples=20, held_out=50, centring=1.0)
    assert "; lower model.learning.held_out (50), set model.learning.chunk, such as 2" in model.too_large()
    many = functools.partial(RandomFeatureRidge, kernel=functools.partial(GaussianKernel, bandwidth=4.0), count=100)
    model = image_model(sleep_samples=20, regression=many)
    assert "; lower model.learning.regression.count (100), set model.learning.chunk" in model.too_large()


def test_a_matrix_larger_than_all_memory_is_refused_before_it_is_made(tmp_path: Path) -> None:
    """Linux promises memory that there is not, and ends the process once it is written to."""
    with pytest.raises(UserError) as raised:
        trainer(tmp_path).fit(image_model(sleep_samples=10_000_000), datamodule=Images())
    assert str(raised.value).startswith(
        "model.learning.sleep_samples is 10000000, and the Gram matrix of 10000000 sleep samples and its factor take "
        "7.45e+05 GiB, more than the "
    )
    assert (installed(torch.device("cpu")) or 2**27) >= 2**27
    model = image_model(sleep_samples=20)
    model._check_memory(2 * 20 * 20 * 4)
    model._check_memory(None)
    with pytest.raises(UserError, match="NystromRidge or RandomFeatureRidge for model.learning.regression"):
        model._check_memory(2 * 20 * 20 * 4 - 1)


def test_in_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = image_model()
    monkeypatch.setattr(model.regression, "fit", raises(CUDA))
    with pytest.raises(UserError, match=r"memory ran out .*\.sleep_samples 20"):
        trainer(tmp_path).validate(model, datamodule=Images(), verbose=False)


def test_other_errors_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert not out_of_memory(ValueError("out of memory"))
    assert asked_for(RuntimeError("shapes do not match")) == ""
    model = image_model()
    monkeypatch.setattr(model.regression, "fit", raises(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer(tmp_path, limit_val_batches=0).fit(model, datamodule=Images())


RIVAL: dict[str, Any] = {"latent_dim": 2, "decoder": functools.partial(MLPDecoder, hidden=[6]),
                         "image_shape": (1, 8, 8), "likelihood": "bernoulli"}  # fmt: skip
ENCODER = functools.partial(MLPFeatures, hidden=[], width=8)


@pytest.mark.parametrize(
    ("make", "step", "said"),
    [
        (lambda: ImageVAE(ENCODER, **RIVAL), 0, "in step 0 of ImageVAE; lower the batch size or the size of the netw"),
        (
            lambda: IWAE(samples=5, encoder=ENCODER, **RIVAL),
            1,
            "in step 1 of IWAE with model.samples 5; lower the batch size, model.samples or the size of the networks.",
        ),
        (lambda: WGANGP(functools.partial(MLPCritic, hidden=[8]), **RIVAL), 0, "in step 0 of WGANGP; lower the batch"),
    ],
    ids=["VAE", "IWAE", "WGAN-GP"],
)
def test_rivals_too_name_where_and_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any], step: int, said: str
) -> None:
    """In the networks, below the step; the record has the sentence as well."""
    model = make()
    decoder = model.generative.decoder.forward

    def forward(z: Tensor) -> Tensor:
        if model._trainer is not None and model.trainer.training and model.global_step == step:
            torch.empty(MORE_THAN_THERE_IS)
        return decoder(z)

    monkeypatch.setattr(model.generative.decoder, "forward", forward)
    with pytest.raises(RuntimeError) as raised:
        trainer(tmp_path, [ResultsFile()], limit_val_batches=0).fit(model, datamodule=Images())
    sentence, status = ending(raised.value, "--runs") or ("", 0)
    assert status == 2
    assert sentence.startswith(f"memory ran out (5.24e+05 GiB more were asked for) {said}")
    record = json.loads((tmp_path / "results.json").read_text())
    assert (record["status"], record["error"]) == ("failed", f"RuntimeError: {sentence}")


class Greedy(pl.Callback):
    """A user's callback that asks for too much."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise MemoryError


@pytest.mark.parametrize(
    ("callback", "command", "said"),
    [
        (FIDKID(num_samples=9, val_samples=0), "test", "in the figures of fid_kid, with at most 0 images in a valid"),
        (LogLikelihood(num_samples=9, max_images=5), "test", "in the estimate of the log-likelihood of at most 5 imag"),
        (Predictions(num_samples=9), "predict", "in the predictions, with 9 samples and 64 observations; lower pred"),
        (Greedy(), "validate", "in the callback Greedy; lower what it counts or draws, or leave it out."),
    ],
    ids=["fid_kid", "log_likelihood", "predictions", "a user's"],
)
def test_callbacks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callback: pl.Callback, command: str, said: str
) -> None:
    """Though it is the model that they ask where memory runs out."""
    model = image_model()
    if not isinstance(callback, Greedy):
        monkeypatch.setattr(model.generative, "sample_prior", raises(CUDA))
    with pytest.raises((MemoryError, RuntimeError)) as raised:
        getattr(trainer(tmp_path, [callback]), command)(model, datamodule=Images())
    sentence, status = ending(raised.value, "--runs") or ("", 0)
    assert status == 2
    amount = "" if isinstance(callback, Greedy) else " (12.50 GiB more were asked for)"
    assert sentence.startswith(f"memory ran out{amount} {said}")


class Large(Images):
    """Data that do not fit."""

    def setup(self, stage: str) -> None:
        raise MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000, 1000000)")


def test_data_and_other_places_too(tmp_path: Path) -> None:
    with pytest.raises(MemoryError) as raised:
        trainer(tmp_path).fit(image_model(), datamodule=Large())
    assert ending(raised.value, "--runs") == (
        "memory ran out (7.28 TiB more were asked for) in the data Large; give fewer or smaller data, or a machine "
        "with more memory.",
        2,
    )
    with pytest.raises(RuntimeError) as raised:  # before the model knows of its own settings
        image_model(latent_dim=MORE_THAN_THERE_IS)
    assert "in the model ImageModel; lower the batch size" in str(memory_sentence(raised.value))
    assert memory_sentence(torch.OutOfMemoryError(str(CUDA))) == (
        "memory ran out (12.50 GiB more were asked for) in this command; lower the batch size, the counts of samples "
        "or the size of the networks."
    )
    assert memory_sentence(ValueError("shapes do not match")) is None
    assert ending(CUDA, "--runs", debug=True) is None

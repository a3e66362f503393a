"""Memory that runs out in a step ends the run in one sentence with the numbers and the settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Images, image_model, trainer
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.feature_ridge import RandomFeatureRidge
from lightning_alws.kernels import GaussianKernel
from lightning_alws.memory import asked_for, out_of_memory
from lightning_alws.messages import ending

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

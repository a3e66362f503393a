"""Short Langevin chains: which gradient goes where, the VAE without moves, and moves that keep the posterior."""

from __future__ import annotations

import functools

import pytest
import torch
from models import Curve, distance_to_grid
from torch import Tensor

from lightning_alws.baselines import DLGM, ImageVAE
from lightning_alws.baselines.vae import elbo
from lightning_alws.errors import UserError
from lightning_alws.networks import MLPDecoder, MLPFeatures

SETTINGS = {
    "latent_dim": 2,
    "decoder": functools.partial(MLPDecoder, hidden=[6]),
    "encoder": functools.partial(MLPFeatures, hidden=[], width=8),
    "image_shape": (1, 2, 3),
    "likelihood": "gaussian",
}


def made(family: type[ImageVAE], **settings) -> ImageVAE:
    torch.manual_seed(0)
    module = family(**(SETTINGS | settings)).double()
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    return module


def images() -> Tensor:
    return 2 * torch.rand(5, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 1


def gradients(module: ImageVAE) -> dict[str, Tensor]:
    """Of one training step with the same draws each time."""
    module.zero_grad()
    torch.manual_seed(3)
    module.training_step(images(), 0).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("posterior", ["gaussian", "laplace"])
def test_without_moves_it_is_the_vae(posterior: str) -> None:
    ours, vae = (
        gradients(made(family, posterior=posterior, **moves))
        for family, moves in ((DLGM, {"moves": 0}), (ImageVAE, {}))
    )
    assert ours.keys() == vae.keys() == dict(made(DLGM).named_parameters()).keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, vae[name], msg=name)
    moved = gradients(made(DLGM, posterior=posterior))
    assert not any(torch.allclose(moved[name], vae[name]) for name in moved if name.startswith("generative"))


@pytest.mark.parametrize("metropolis", [False, True])
def test_decoder_learns_at_refined_latents_and_encoder_by_the_bound(metropolis: bool) -> None:
    module, x = made(DLGM, moves=3, step_size=0.05, metropolis=metropolis), images()
    found = gradients(module)
    torch.manual_seed(3)
    z = module.posterior(x).sample().detach()
    refined = module.refine(z, x)
    assert refined.positions.shape == (3, 5, 2)
    z = refined.positions[-1]
    model = module.generative
    joint = (model.log_prior(z) + model.likelihood(z).log_prob(x)).mean()
    torch.manual_seed(3)
    bound = elbo(module.posterior(x), model, x).mean()
    for name, parameter in module.named_parameters():
        target = joint if name.startswith("generative") else bound
        (gradient,) = torch.autograd.grad(-target, parameter, retain_graph=True)
        torch.testing.assert_close(found[name], gradient, msg=name)
    assert all(p.requires_grad for p in module.parameters())


def test_tested_moves_keep_each_posterior() -> None:
    """Latents drawn with x from the joint density are posterior draws, and remain so; untested moves drift off."""
    count = 6000
    model = Curve(lambda z: 0.8 * z.square() + 0.3 * z, 0.6)
    x = torch.tensor([1.0], dtype=torch.float64)
    line = torch.linspace(-8, 8, 16_001, dtype=torch.float64)
    law = model.log_posterior(x, line).softmax(0)
    torch.manual_seed(0)
    z = line[torch.multinomial(law, count, replacement=True)][:, None]
    for metropolis in (True, False):
        module = made(DLGM, moves=20, step_size=0.1, metropolis=metropolis)
        module.generative = model  # type: ignore[assignment]
        moved = module.refine(z, x.expand(count, 1))  # type: ignore[operator]
        distance = distance_to_grid(moved.positions[-1, :, 0], functools.partial(model.log_posterior, x))
        assert (distance < 1.95 / count**0.5) == metropolis
        assert (moved.positions[-1] != z).all()


def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(UserError, match=r"model\.moves is -1"):
        made(DLGM, moves=-1)
    with pytest.raises(UserError, match=r"model\.step_size is 0"):
        made(DLGM, step_size=0.0)

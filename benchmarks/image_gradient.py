"""Why amortised learning is behind in likelihood on images: errors of its gradient on an image model as it is trained.

    python benchmarks/image_gradient.py [--data Digits] [--steps 1000] [--json FILE]

Trains a decoder with IWAE-10, so that neither method's own optimum is measured, and takes for the truth the mean
gradient of log p(x) over 100 images by draws from p(z|x): for training images annealed importance sampling's chains,
resampled and moved on by Hamiltonian Monte Carlo; for images of the model itself chains from the z they were made of,
which are exact. Printed for each estimate, over the exact gradient's length: its root mean square error over repeats,
its bias, its length along the exact gradient, and the cosines with it, of one estimate and of their mean.

    IWAE-10         from the encoder it was trained with
    plug-in         ridge regression on N prior draws: the kernel of configs/images/al_c.yaml
    centred         the same less the mean over N/2 held-out samples; the kernel on pixels, or
    … learnt        on features trained to predict the natural parameters of the model's samples (al_c_trained.yaml)
    … encoder       on the posterior means of IWAE's encoder
    near            plug-in, half or nine tenths of the N about the encoder's posteriors of the images; weighted by what
                    the prior is to the law they are drawn from, or as if that law were the prior
    own images      plug-in at images of the model, over the same length: what is left where data are like samples
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

import datamodules
from datamodules.images import ImageDataModule
from lightning_alws.allocation import keep_freed
from lightning_alws.baselines import IWAE
from lightning_alws.baselines.vae import GaussianPosterior, Posterior
from lightning_alws.kernels import MedianKernel
from lightning_alws.metrics.annealed import Annealing, Chains, anneal, tune
from lightning_alws.metrics.hamiltonian import State, Target, differentiable, transition
from lightning_alws.models.image import ImageGenerator
from lightning_alws.networks import DCGANDecoder, LinearFeatures, MLPFeatures
from lightning_alws.objectives import NaturalParameterError
from lightning_alws.regression import KernelRidge, freeze

# Last: among the tests is a folder of the same name as datamodules. What differentiates models lives there.
sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

from models import flat_gradient  # noqa: E402
from runs import trainer  # noqa: E402
from sample_use import errors  # noqa: E402

BATCH, LATENTS = 100, 16
RIDGE, MULTIPLE, MEANS_MULTIPLE = 0.1, 0.5, 0.25  # of the kernel of al_c.yaml, and on the encoder's means
CHAINS, LEAPFROG, APART, KEPT = 8, 2, 25, 4  # moves between draws that are kept, and how often
KERNEL_RATE = 3e-4  # that of al_c_trained.yaml, for its features

Estimate = Callable[[], Tensor]


def gradient(model: ImageGenerator, z: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    """∇_θ of the mean over images of Σ_n W_nb log p_θ(x_b|z_n), (P,), a thousand latents at a time."""
    total: Tensor | float = 0.0
    for rows in torch.arange(len(z)).split(1000):
        value = model.likelihood(z[rows]).expectation(weights[rows], x).mean()
        total = total + flat_gradient(value, model)
    assert isinstance(total, Tensor)
    return total


def posterior_draws(model: ImageGenerator, x: Tensor, z: Tensor | None, temperatures: int) -> Tensor:
    """Draws from p(z|x_b) of images (B, C, H, W), (B, S, latent_dim).

    Args:
        z: one exact draw for each image, where there is one.
        temperatures: of the annealing otherwise.
    """
    with differentiable(model, x.device):
        moves = [move.repeated(CHAINS) for move in tune(model, x, Annealing(CHAINS, temperatures, LEAPFROG))]
        target = Target(model, x.repeat_interleave(CHAINS, dim=0))
        if z is None:
            state = resampled(target, anneal(target, model.sample_prior(len(target.x)), moves, LEAPFROG))
        else:
            state = target(z.repeat_interleave(CHAINS, dim=0))
        kept = []
        for move in range(1, APART * KEPT + 1):
            state, _ = transition(target, state, 1.0, moves[-1], LEAPFROG)
            if move % APART == 0:
                kept.append(state.z.view(len(x), CHAINS, -1))
    return torch.cat(kept, dim=1)


def resampled(target: Target, ended: Chains) -> State:
    """The chains of each image drawn again by their weights."""
    chosen = ended.log_weights.view(-1, CHAINS).softmax(1).multinomial(CHAINS, replacement=True)
    first = torch.arange(len(chosen), device=chosen.device)[:, None] * CHAINS
    return target(ended.state.z[(first + chosen).flatten()])


def exact(model: ImageGenerator, x: Tensor, draws: Tensor) -> tuple[Tensor, float]:
    """Mean gradient of log p(x_b) from draws (B, S, latent_dim), and the cosine of what either half of them gives."""
    sets = []
    for part in draws.chunk(2, dim=1):
        each = [model.likelihood(z).log_prob(x).mean() for z in part.unbind(1)]
        value = torch.stack(each).mean()
        sets.append(flat_gradient(value, model))
    return (sets[0] + sets[1]) / 2, float(torch.cosine_similarity(sets[0], sets[1], dim=0))


class PosteriorMean(nn.Module):
    """The posterior means of a trained autoencoder as a kernel's features."""

    def __init__(self, posterior: Callable[[Tensor], Posterior]) -> None:
        super().__init__()
        self.posterior = posterior  # a method, so that its module's parameters are not the kernel's

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.posterior(x).location


class GivenImportance(KernelRidge):
    """Ridge regression that minimises Σ_n w_n (y_n − f(x_n))² + λ‖f‖² with w given before each fit."""

    given: Tensor | None = None

    def importance(self, features: Tensor, wake: Tensor | None) -> Tensor | None:
        return self.given


def ridge(
    shape: tuple[int, ...],
    features: Callable[[tuple[int, ...]], nn.Module] = LinearFeatures,
    multiple: float = MULTIPLE,
) -> GivenImportance:
    """The regression of al_c.yaml at the end of its annealing, on other features where given."""
    return GivenImportance(shape, functools.partial(MedianKernel, features=features, multiple=multiple), RIDGE)


def learnt_ridge(model: ImageGenerator, shape: tuple[int, ...], count: int, steps: int) -> KernelRidge:
    """That of al_c_trained.yaml: features that predict the natural parameters of the model's own samples."""
    regression, objective = ridge(shape, MLPFeatures), NaturalParameterError()
    optimiser = torch.optim.Adam(regression.parameters(), lr=KERNEL_RATE)
    for _ in range(steps):
        with torch.no_grad():
            sleep, held_out = model.sleep(count), model.sleep(count // 2)
        loss = objective(regression.fit(sleep.x).weights(held_out.x), sleep, held_out)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return regression


def ridge_estimate(
    model: ImageGenerator, x: Tensor, regression: KernelRidge, count: int, held_out: int = 0
) -> Estimate:
    """∇_θ of the plug-in estimate at images x, from N prior draws; with held-out samples, sleep-centred."""
    freeze(regression)

    def estimate() -> Tensor:
        with torch.no_grad():
            sleep, away = model.sleep(count), model.sleep(held_out) if held_out else None
            fitted = regression.fit(sleep.x)
        assert isinstance(sleep.z, Tensor)
        found = gradient(model, sleep.z, fitted.weights(x), x)
        return found if away is None else found - gradient(model, sleep.z, fitted.weights(away.x), away.x)

    return estimate


def near_estimate(
    model: ImageGenerator,
    q: Posterior,
    x: Tensor,
    regression: GivenImportance,
    count: int,
    share: float,
    weigh: Callable[[Tensor], Tensor],
) -> Estimate:
    """∇_θ of the plug-in estimate at images x, from draws of which a share is about the encoder's posteriors of them.

    Args:
        weigh: makes weights in the regression of the importance weights p(z)/r(z), r the law of all draws: they
            themselves, so that it predicts what it would from prior draws, or ones, as if r were the prior.
    """
    freeze(regression)

    def estimate() -> Tensor:
        with torch.no_grad():
            chosen = torch.randint(len(x), (int(share * count),))
            about = GaussianPosterior(q.location[chosen], q.log_scale[chosen]).sample()
            z = torch.cat([model.sample_prior(count - len(about)), about])
            prior = model.log_prior(z)
            mixture = q.log_prob(z[:, None]).logsumexp(1) - math.log(len(x))
            drawn = torch.logaddexp(prior + math.log(1 - share), mixture + math.log(share))
            regression.given = weigh((prior - drawn).exp())
            fitted = regression.fit(model.likelihood(z).sample())
        return gradient(model, z, fitted.weights(x), x)

    return estimate


def row(estimate: Estimate, truth: Tensor, repeats: int) -> dict[str, float]:
    """The figures of one estimate over repeats, and seconds each."""
    torch.manual_seed(1)
    start = time.perf_counter()
    found = torch.stack([estimate() for _ in range(repeats)])
    seconds = (time.perf_counter() - start) / repeats
    rms, bias = errors(found, truth)
    return {
        "rms": rms,
        "bias": bias,
        "along": float((found @ truth).mean() / truth.square().sum()),
        "cosine": float(torch.cosine_similarity(found, truth[None]).mean()),
        "cosine_of_mean": float(torch.cosine_similarity(found.mean(0), truth, dim=0)),
        "seconds": seconds,
    }


def table(module: IWAE, x: Tensor, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Rows by name, printed as they are found."""
    model, shape = module.generative, tuple(x.shape[1:])
    truth, agreement = exact(model, x, posterior_draws(model, x, None, arguments.temperatures))
    with torch.no_grad():
        z = model.sample_prior(BATCH)
        own = model.likelihood(z).sample()
        q = module.posterior(x)
    own_truth, _ = exact(model, own, posterior_draws(model, own, z, arguments.temperatures))
    print(f"exact gradient: length {float(truth.norm()):.3g}, its halves' cosine {agreement:.3f}")
    learnt = learnt_ridge(model, shape, arguments.samples[0], arguments.kernel_steps)
    estimates: dict[str, tuple[Estimate, Tensor]] = {
        "IWAE-10": (lambda: flat_gradient(module.bound(x, model).mean(), model), truth)
    }

    def on_means() -> GivenImportance:
        return ridge(shape, lambda shape: PosteriorMean(module.posterior), MEANS_MULTIPLE)

    near = {
        "half, weighted": (ridge(shape), 0.5, torch.clone),
        "half": (ridge(shape), 0.5, torch.ones_like),
        "nine tenths": (ridge(shape), 0.9, torch.ones_like),
        "nine tenths, encoder": (on_means(), 0.9, torch.ones_like),
    }
    for count in arguments.samples:
        estimates[f"plug-in, N = {count}"] = (ridge_estimate(model, x, ridge(shape), count), truth)
        for name, regression in {"pixels": ridge(shape), "learnt": learnt, "encoder": on_means()}.items():
            estimate = ridge_estimate(model, x, regression, count, count // 2)
            estimates[f"centred, {name}, N = {count}"] = (estimate, truth)
        for name, (given, share, weigh) in near.items():
            estimate = near_estimate(model, q, x, given, count, share, weigh)
            estimates[f"near, {name}, N = {count}"] = (estimate, truth)
        estimates[f"own images, N = {count}"] = (ridge_estimate(model, own, ridge(shape), count), own_truth)
    rows = {}
    for name, (estimate, reference) in estimates.items():
        rows[name] = found = row(estimate, reference, arguments.repeats)
        if reference is own_truth:  # in the same units; a cosine with what is nearly nothing would say nothing
            scale = float(own_truth.norm() / truth.norm())
            rows[name] = found = {key: found[key] * scale for key in ("rms", "bias")}
        print(f"{name:40s}" + "".join(f"  {key} {value:6.2f}" for key, value in found.items()), flush=True)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="BinarizedMNIST", choices=["BinarizedMNIST", "Digits"])
    parser.add_argument("--steps", type=int, default=1000, help="of IWAE-10")
    parser.add_argument("--kernel-steps", type=int, default=500, help="of training the kernel's features")
    parser.add_argument("--channels", type=int, default=16, help="ngf of the decoder")
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, 2000], help="N")
    parser.add_argument("--repeats", type=int, default=4, help="at least 2")
    parser.add_argument("--temperatures", type=int, default=200, help="of the annealing")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    arguments = parser.parse_args()
    keep_freed()
    pl.seed_everything(0, verbose=False)
    data: ImageDataModule = getattr(datamodules, arguments.data)()
    data.prepare_data()
    data.setup("fit")
    decoder = functools.partial(DCGANDecoder, ngf=arguments.channels)
    module = IWAE(latent_dim=LATENTS, decoder=decoder, image_shape=data.image_shape, likelihood=data.likelihood)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer(Path(folder), max_steps=arguments.steps, limit_val_batches=0).fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    x = data.images("train")[:BATCH]
    with torch.no_grad():
        bound = float(module.bound(x, module.generative).mean())
    print(f"{arguments.data}, {arguments.steps} steps of IWAE-10 in {seconds:.0f} s, bound {bound:.1f} nats")
    rows = table(module, x, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps({"bound": bound, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()

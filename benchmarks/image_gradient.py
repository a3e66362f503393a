"""Why amortised learning is behind in likelihood on images: errors of its gradient on an image model as it is trained.

    python benchmarks/image_gradient.py [--data BinarizedMNIST] [--steps 500] [--repeats 5] [--json FILE]

Trains a decoder with IWAE-10, so that neither method's own optimum is measured, and takes for the truth the mean
gradient of log p(x) over 100 images by draws from p(z|x): for training images annealed importance sampling's chains,
resampled and moved on by Hamiltonian Monte Carlo; for images of the model itself chains from the z they were made of,
which are exact. Printed for each estimate, over the exact gradient's length: its root mean square error over repeats,
its bias, its length along the exact gradient, and the cosines with it, of one estimate and of their mean.

    IWAE-10         from the encoder it was trained with
    plug-in         ridge regression on N prior draws: the kernel of configs/images/al_c.yaml
    centred         the same less the mean over N/2 held-out samples
    encoder         centred, the kernel on the posterior means of IWAE's encoder
    near            plug-in, half of the N about the encoder's posteriors of the images, weighted by p(z)/q(z); and not
    own images      plug-in at images of the model, over the same length: what is left where data are like samples
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import datamodules
from datamodules.images import ImageDataModule
from lightning_alws.allocation import keep_freed
from lightning_alws.baselines.lower_bound import log_joint, log_mean_weight
from lightning_alws.baselines.vae import Encoder, GaussianPosterior
from lightning_alws.kernels import MedianKernel
from lightning_alws.metrics.annealed import Annealing, schedule, tune
from lightning_alws.metrics.hamiltonian import Move, State, Target, differentiable, transition
from lightning_alws.models.image import ImageGenerator
from lightning_alws.networks import DCGANDecoder, LinearFeatures
from lightning_alws.regression import KernelRidge, freeze

# Last: among the tests is a folder of the same name as datamodules. What differentiates models lives there.
sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

from models import flat_gradient  # noqa: E402
from sample_use import errors  # noqa: E402

BATCH, DRAWS, LATENTS = 100, 10, 16
RIDGE, MULTIPLES = 0.1, (0.5, 0.25)  # of the kernel of al_c.yaml, and of the encoder's
CHAINS, LEAPFROG, APART, KEPT = 8, 2, 25, 4  # moves between draws that are kept, and how often
HIDDEN = [256, 256]

Estimate = Callable[[], Tensor]


def train(model: ImageGenerator, encoder: Encoder, x: Tensor, steps: int) -> None:
    """Raise the importance weighted bound of ten draws on images (n, C, H, W)."""
    optimiser = torch.optim.Adam([*model.parameters(), *encoder.parameters()], lr=1e-3)
    for _ in range(steps):
        loss = -importance_weighted(model, encoder, x[torch.randint(len(x), (BATCH,))])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def importance_weighted(model: ImageGenerator, encoder: Encoder, x: Tensor) -> Tensor:
    """The mean bound of images (B, C, H, W), a scalar."""
    mean, log_scale = encoder(x)
    q = GaussianPosterior(mean.expand(DRAWS, -1, -1), log_scale.expand(DRAWS, -1, -1))
    z = q.sample()
    return log_mean_weight(log_joint(model, z, x) - q.log_prob(z)).mean()


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
        state = annealed(model, target, moves) if z is None else target(z.repeat_interleave(CHAINS, dim=0))
        kept = []
        for move in range(1, APART * KEPT + 1):
            state, _ = transition(target, state, 1.0, moves[-1], LEAPFROG)
            if move % APART == 0:
                kept.append(state.z.view(len(x), CHAINS, -1))
    return torch.cat(kept, dim=1)


def annealed(model: ImageGenerator, target: Target, moves: list[Move]) -> State:
    """Chains annealed from the prior, those of each image resampled by their weights."""
    betas = schedule(len(moves) + 1).tolist()
    state = target(model.sample_prior(len(target.x)))
    log_weights = torch.zeros_like(state.log_likelihood)
    for t in range(len(moves) + 1):
        log_weights += (betas[t + 1] - betas[t]) * state.log_likelihood
        if t < len(moves):
            state, _ = transition(target, state, betas[t + 1], moves[t], LEAPFROG)
    chosen = log_weights.view(-1, CHAINS).softmax(1).multinomial(CHAINS, replacement=True)
    first = torch.arange(len(chosen), device=chosen.device)[:, None] * CHAINS
    return target(state.z[(first + chosen).flatten()])


def exact(model: ImageGenerator, x: Tensor, draws: Tensor) -> tuple[Tensor, float]:
    """Mean gradient of log p(x_b) from draws (B, S, latent_dim), and the cosine of what either half of them gives."""
    sets = []
    for part in draws.chunk(2, dim=1):
        each = [model.likelihood(z).log_prob(x).mean() for z in part.unbind(1)]
        value = torch.stack(each).mean()
        sets.append(flat_gradient(value, model))
    return (sets[0] + sets[1]) / 2, float(torch.cosine_similarity(sets[0], sets[1], dim=0))


class EncoderMean(nn.Module):
    """The posterior means of an encoder as a kernel's features."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)[0].detach()


def ridge_estimate(
    model: ImageGenerator,
    x: Tensor,
    count: int,
    held_out: int = 0,
    features: Callable[[tuple[int, ...]], nn.Module] = LinearFeatures,
    multiple: float = MULTIPLES[0],
) -> Estimate:
    """∇_θ of the plug-in estimate at images x, from N prior draws; with held-out samples, sleep-centred."""
    shape = tuple(x.shape[1:])
    regression = KernelRidge(shape, functools.partial(MedianKernel, features=features, multiple=multiple), RIDGE)
    freeze(regression)

    def estimate() -> Tensor:
        with torch.no_grad():
            sleep, away = model.sleep(count), model.sleep(held_out) if held_out else None
            fitted = regression.fit(sleep.x)
        assert isinstance(sleep.z, Tensor)
        found = gradient(model, sleep.z, fitted.weights(x), x)
        return found if away is None else found - gradient(model, sleep.z, fitted.weights(away.x), away.x)

    return estimate


def near_estimate(model: ImageGenerator, encoder: Encoder, x: Tensor, count: int, weighted: bool) -> Estimate:
    """∇_θ of the plug-in estimate at images x, from draws of which half are about the encoder's posteriors of them.

    The regression minimises Σ_n w_n (y_n − f(x_n))² + λ‖f‖² with w = p(z)/q(z) and so predicts the same; without
    weights, what it would were q the prior.
    """
    regression = KernelRidge(
        tuple(x.shape[1:]), functools.partial(MedianKernel, features=LinearFeatures, multiple=MULTIPLES[0]), RIDGE
    )
    freeze(regression)
    mean, log_scale = encoder(x)
    posterior = GaussianPosterior(mean, log_scale)

    def estimate() -> Tensor:
        with torch.no_grad():
            chosen = torch.randint(len(x), (count // 2,))
            about = GaussianPosterior(mean[chosen], log_scale[chosen]).sample()
            z = torch.cat([model.sample_prior(count - len(about)), about])
            prior = model.log_prior(z)
            mixture = posterior.log_prob(z[:, None]).logsumexp(1) - math.log(len(x))
            importance = (prior - torch.logaddexp(prior, mixture) + math.log(2)).exp()
            regression.importance = lambda features, wake: importance if weighted else None  # type: ignore[method-assign]
            fitted = regression.fit(model.likelihood(z).sample())
        return gradient(model, z, fitted.weights(x), x)

    return estimate


def iwae_estimate(model: ImageGenerator, encoder: Encoder, x: Tensor) -> Estimate:
    """∇_θ of the importance weighted bound at images x."""

    def estimate() -> Tensor:
        value = importance_weighted(model, encoder, x)
        return flat_gradient(value, model)

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


def table(
    model: ImageGenerator, encoder: Encoder, x: Tensor, counts: list[int], repeats: int, temperatures: int
) -> dict[str, dict[str, float]]:
    """Rows by name, printed as they are found."""
    truth, agreement = exact(model, x, posterior_draws(model, x, None, temperatures))
    with torch.no_grad():
        z = model.sample_prior(BATCH)
        own = model.likelihood(z).sample()
    own_truth, _ = exact(model, own, posterior_draws(model, own, z, temperatures))
    print(f"exact gradient: length {float(truth.norm()):.3g}, its halves' cosine {agreement:.3f}")
    means = functools.partial(EncoderMean, encoder)
    estimates = {"IWAE-10": (iwae_estimate(model, encoder, x), truth)}
    for count in counts:
        half = count // 2
        estimates[f"plug-in, N = {count}"] = (ridge_estimate(model, x, count), truth)
        estimates[f"centred, N = {count}"] = (ridge_estimate(model, x, count, half), truth)
        for multiple in MULTIPLES:
            name = f"encoder, {multiple:g} median, N = {count}"
            estimates[name] = (ridge_estimate(model, x, count, half, lambda shape: means(), multiple), truth)
        for weighted in (True, False):
            name = f"near, {'weighted' if weighted else 'unweighted'}, N = {count}"
            estimates[name] = (near_estimate(model, encoder, x, count, weighted), truth)
        estimates[f"own images, N = {count}"] = (ridge_estimate(model, own, count), own_truth)
    rows = {}
    for name, (estimate, reference) in estimates.items():
        rows[name] = found = row(estimate, reference, repeats)
        if reference is own_truth:  # in the same units; a cosine with what is nearly nothing would say nothing
            scale = float(own_truth.norm() / truth.norm())
            rows[name] = found = {key: found[key] * scale for key in ("rms", "bias")}
        print(f"{name:34s}" + "".join(f"  {key} {value:6.2f}" for key, value in found.items()), flush=True)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="BinarizedMNIST", choices=["BinarizedMNIST", "Digits"])
    parser.add_argument("--steps", type=int, default=500, help="of IWAE-10")
    parser.add_argument("--channels", type=int, default=16, help="ngf of the decoder")
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, 2000], help="N")
    parser.add_argument("--repeats", type=int, default=5, help="at least 2")
    parser.add_argument("--temperatures", type=int, default=300, help="of the annealing")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    arguments = parser.parse_args()
    keep_freed()
    torch.manual_seed(0)
    data: ImageDataModule = getattr(datamodules, arguments.data)()
    data.prepare_data()
    data.setup("fit")
    images = data.images("train")
    model = ImageGenerator(
        data.image_shape, data.likelihood, LATENTS, functools.partial(DCGANDecoder, ngf=arguments.channels)
    )
    encoder = Encoder(data.image_shape, LATENTS, HIDDEN)
    start = time.perf_counter()
    train(model, encoder, images, arguments.steps)
    with torch.no_grad():
        bound = float(importance_weighted(model, encoder, images[:BATCH]))
    seconds = time.perf_counter() - start
    print(f"{arguments.data}, {arguments.steps} steps of IWAE-10 in {seconds:.0f} s, bound {bound:.1f} nats")
    encoder.requires_grad_(False)
    rows = table(model, encoder, images[:BATCH], arguments.samples, arguments.repeats, arguments.temperatures)
    if arguments.json:
        arguments.json.write_text(json.dumps({"bound": bound, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()

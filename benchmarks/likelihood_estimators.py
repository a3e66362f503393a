"""Estimates of log p(x) at equal seconds: prior samples, importance sampling with two encoders, and annealing.

    python benchmarks/likelihood_estimators.py [--seconds 2 10] [--images 20] [--steps 1500] [--ckpt FILE]

Trains a VAE on binarised Digits, 8 latents and an MLP decoder, or takes the generative model of such a run
(``--ckpt``, without the row of the VAE's own encoder), and prints for each method what it found on the first test
images, its mean and root-mean-square deviation from a reference of very many prior samples, and processor seconds. Each
method's count is found by a short run of its own, so that all take about the same time; a fitted encoder spends half of
it on fitting. The seconds of annealing are those of its lower bound; the gap takes about three times as long.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from datamodules import Digits
from lightning_alws.baselines.vae import Encoder, GaussianPosterior
from lightning_alws.metrics.annealed import Annealing, annealed_log_likelihood, simulated_bounds
from lightning_alws.metrics.likelihood import (
    LikelihoodEstimate,
    WeightAccumulator,
    chunks,
    encoder_for,
    fit_encoder,
    importance_log_likelihood,
    monte_carlo_log_likelihood,
)
from lightning_alws.models.image import ImageGenerator
from lightning_alws.networks import MLPDecoder

LATENTS = 8
CHAINS = 4
LEAPFROG_STEPS = 3


def train(model: ImageGenerator, x: Tensor, steps: int) -> Encoder:
    """Maximises the ELBO on images (n, 1, 8, 8); returns the encoder."""
    encoder = Encoder((1, 8, 8), LATENTS, [256, 256])
    optimiser = torch.optim.Adam([*model.parameters(), *encoder.parameters()], lr=1e-3)
    for _ in range(steps):
        batch = x[torch.randint(len(x), (100,))]
        q = GaussianPosterior(*encoder(batch))
        z = q.sample()
        elbo = model.likelihood(z).log_prob(batch) - q.divergence(model.prior)
        optimiser.zero_grad()
        (-elbo.mean()).backward()
        optimiser.step()
    return encoder.eval()


@torch.no_grad()
def own_encoder(model: ImageGenerator, encoder: nn.Module, x: Tensor, samples: int) -> LikelihoodEstimate:
    """Importance sampling with the Gaussian posterior a VAE was trained with."""
    weights = WeightAccumulator(len(x), x.device)
    for size in chunks(samples, 100):
        q = GaussianPosterior(*encoder(x.repeat_interleave(size, dim=0)))
        z = q.sample()
        log_prob = model.likelihood(z).log_prob(x.repeat_interleave(size, dim=0))
        weights.add((log_prob + model.log_prior(z) - q.log_prob(z)).view(len(x), size))
    return weights.estimate()


def fitted_encoder(model: ImageGenerator, x: Tensor, share: int) -> LikelihoodEstimate:
    """An encoder fitted for ``share`` steps, then ten samples an image for each step, which takes about as long."""
    encoder = fit_encoder(model, encoder_for((1, 8, 8), LATENTS), share, 200)
    return importance_log_likelihood(model, encoder, x, 10 * share)


def seconds_of(estimate: Callable[[int], LikelihoodEstimate], count: int) -> tuple[LikelihoodEstimate, float]:
    """The estimate with a count, and the processor seconds it took."""
    start = time.process_time()
    found = estimate(count)
    return found, time.process_time() - start


def main() -> None:
    """Parse the arguments, make the model, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 10.0])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1500, help="of training the VAE")
    parser.add_argument("--reference", type=int, default=2_000_000, help="prior samples")
    parser.add_argument("--ckpt", type=Path, help="of an ImageModel on Digits, 8 latents, an MLP decoder of 256, 256")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data = Digits()
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    model = ImageGenerator((1, 8, 8), "bernoulli", LATENTS, MLPDecoder)
    encoder = None
    if arguments.ckpt:
        state = torch.load(arguments.ckpt, map_location="cpu", weights_only=True)["state_dict"]
        prefix = "averaged.module." if any(name.startswith("averaged.module.") for name in state) else "generative."
        model.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    else:
        encoder = train(model, data.images("train"), arguments.steps)
    model.eval()
    x = data.images("test")[: arguments.images]
    reference, seconds = seconds_of(lambda n: monte_carlo_log_likelihood(model, x, n, 20_000), arguments.reference)
    print(
        f"reference: {float(reference.log_likelihood.mean()):.3f} nats from {arguments.reference} prior samples, of "
        f"which {float(reference.effective_samples.median()):.0f} count (least {reference.effective_samples.min():.0f}"
        f"), {seconds:.1f} s",
        flush=True,
    )

    def annealed(temperatures: int) -> LikelihoodEstimate:
        return annealed_log_likelihood(model, x, Annealing(CHAINS, temperatures, LEAPFROG_STEPS))

    methods: list[tuple[str, Callable[[int], LikelihoodEstimate], int]] = [
        ("prior samples", lambda n: monte_carlo_log_likelihood(model, x, n, 20_000), 40_000),
        ("fitted encoder", lambda n: fitted_encoder(model, x, n), 30),
        (f"annealing, {CHAINS} chains", annealed, 50),
    ]
    if encoder is not None:
        methods.insert(1, ("VAE's encoder", lambda n: own_encoder(model, encoder, x, n), 300))
    print("\n| method | count | seconds | mean, nats | bias | rms error | effective samples |")
    print("|---|---|---|---|---|---|---|")
    for name, estimate, trial in methods:
        estimate(min(trial, 50))  # warms up
        rate = trial / seconds_of(estimate, trial)[1]
        for budget in arguments.seconds:
            count = max(1, round(rate * budget))
            found, seconds = seconds_of(estimate, count)
            error = found.log_likelihood - reference.log_likelihood
            print(
                f"| {name} | {count} | {seconds:.1f} | {float(found.log_likelihood.mean()):.3f} | "
                f"{float(error.mean()):+.3f} | {float(error.square().mean().sqrt()):.3f} | "
                f"{float(found.effective_samples.median()):.1f} |",
                flush=True,
            )
            if name.startswith("annealing"):
                gap = simulated_bounds(model, len(x), Annealing(CHAINS, count, LEAPFROG_STEPS)).gap
                print(f"|  its gap on simulated images |  |  |  | {float(gap.mean()):.3f} |  |  |", flush=True)


if __name__ == "__main__":
    main()

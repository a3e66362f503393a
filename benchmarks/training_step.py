"""Time and memory of a training step on images of binarised MNIST's shape, beside honest references, in one run.

    python benchmarks/training_step.py [--device cuda] [--sleep-samples 500 2000 5000] [--channels 64] [--json FILE]

For AL-F and AL-A (kernel as in configs/images/al_f.yaml and al_a.yaml) and each N, one after the other in each round,
on random images, batches of 100:

    ours                one training step of the real module: loss, gradient, guard, optimiser
    published           the algorithm as released, restated in published_step.py
    published, detached the same without the kernel update's needless gradient of the decoder (AL-A)
    bare parts          the linear algebra and networks that no implementation can do without, each for itself:
                        decoder forwards and backwards on N, gemm (N, N, d), cholesky_ex (N), cholesky_solve (N, B); for
                        AL-A also cholesky_solve (N, N_v), gemm (N, N_v, N), two gemm (N, N, d), feature network;
                        the decoder forwards on the N_v held-out samples is counted in a second R only
    VAE                 a step of the same decoder on as many draws, N/B for each image

Medians over rounds, and medians of the ratios within a round: R = ours / bare parts, and the gain = published / ours,
beside the gain that the passes through the decoder alone would give (counted in the run; a backward counts as two).
Peak memory is what a step needs beyond what is there before it. Besides: what each part of our step takes, the
exponents of time and memory in N, the share of a step that its data take, and the seconds until the command line has
shown its help and ended its first step (``--start-up false`` leaves these out). ``--profile`` prints the top of torch's
profile of our step.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from datamodules import BatchLoader
from lightning_alws.allocation import keep_freed
from lightning_alws.baselines import ImageVAE
from lightning_alws.kernels import MedianKernel
from lightning_alws.learning import Learning
from lightning_alws.models import ImageModel
from lightning_alws.models.image import ImageGenerator
from lightning_alws.networks import ConvFeatures, DCGANDecoder, LinearFeatures
from lightning_alws.objectives import LogJointError
from lightning_alws.regression import AnnealedRidge

sys.path[:0] = [str(Path(__file__).parent)]

from measuring import Clock, Passes, slope  # noqa: E402
from published_step import BLOCK, PublishedStep  # noqa: E402

SHAPE, BATCH, HELD_OUT = (1, 32, 32), 100, 200  # 28 × 28 with a border of two
METHODS = ("AL-F", "AL-A")
OURS, PUBLISHED, DETACHED, BARE, VAE = "ours", "published", "published, detached", "bare parts", "VAE"
WITH_HELD_OUT, HELD_OUT_FORWARDS = "bare parts, held-out", "decoder forwards (N_v)"
FIRST_STEP = """
import os, sys
from cli import main
from lightning_alws.learning import AmortisedLearning
AmortisedLearning.on_train_batch_end = lambda *arguments: os._exit(0)
main(sys.argv[1:])
"""


class Ours:
    """A step of the real module, as the trainer makes it, without trainer and logging."""

    def __init__(self, module: ImageModel, clock: Clock) -> None:
        self.module, self.clock = module, clock
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        self.optimiser = cast(torch.optim.Optimizer, module.configure_optimizers())

    def step(self, x: Tensor) -> None:
        self.optimiser.zero_grad()
        self.finish(self.module.training_step(x, 0))

    def finish(self, loss: Tensor) -> None:
        self.module.on_before_backward(loss)
        loss.backward()
        self.module.on_before_optimizer_step(self.optimiser)
        self.optimiser.step()

    def parts(self, x: Tensor) -> dict[str, float]:
        """Seconds of each part of a step; the four are those of ``AmortisedLearning.training_step``."""
        module, marks = self.module, [self.clock.now()]

        def done(value: Any) -> Any:
            marks.append(self.clock.now())
            return value

        self.optimiser.zero_grad()
        sleep, held_out = done(module.sleep())
        regression = done(module.regress(sleep, x))
        expectation = done(module.wake(regression, sleep, x))
        loss = done(module.update(expectation, regression, sleep, held_out))
        module.on_before_backward(loss)
        done(loss.backward())
        done(module.on_before_optimizer_step(self.optimiser))
        done(self.optimiser.step())
        names = ("sleep", "regress", "wake", "update", "backward", "guard", "optimiser")
        return {name: after - before for name, before, after in zip(names, marks, marks[1:], strict=False)}


class BareParts:
    """The parts that no implementation can do without, by the calls that do nothing else."""

    def __init__(self, module: ImageModel, count: int, clock: Clock) -> None:
        module = copy.deepcopy(module)
        self.decoder, self.features = cast(ImageGenerator, module.generative).decoder, module.regression.kernel.network
        self.adaptive, self.clock = module.learning.kernel_objective is not None, clock
        device = clock.device
        self.z = torch.randn(count, 16, device=device)
        self.x = torch.randint(0, 2, (count + HELD_OUT, *SHAPE), device=device).float()
        self.g = torch.randn(count, 100, device=device)
        self.gram = torch.exp(-0.5 * torch.cdist(self.g, self.g).square() / 200) + torch.eye(count, device=device)
        self.lower = torch.linalg.cholesky(self.gram)
        self.wake, self.held_out = (torch.randn(count, width, device=device) for width in (BATCH, HELD_OUT))
        self.in_features = torch.randn(count + HELD_OUT, 100, device=device)
        self.in_pixels = torch.randn(count, *SHAPE, device=device)

    def parts(self) -> dict[str, float]:
        """Seconds of each."""
        time = self.clock.time
        seconds = {
            "decoder": time(self._decoder),
            "gemm (N, N, d)": time(lambda: self.g @ self.g.T),
            "cholesky_ex (N)": time(lambda: torch.linalg.cholesky_ex(self.gram)),
            "cholesky_solve (N, B)": time(lambda: torch.cholesky_solve(self.wake, self.lower)),
        }
        if self.adaptive:
            seconds |= {
                "cholesky_solve (N, N_v)": time(lambda: torch.cholesky_solve(self.held_out, self.lower)),
                "gemm (N, N_v, N)": time(lambda: self.held_out @ self.held_out.T),
                "two gemm (N, N, d)": time(lambda: (self.gram @ self.g, self.gram.T @ self.g)),
                "feature network": time(self._features),
                HELD_OUT_FORWARDS: time(self._held_out),
            }
        return seconds

    def _decoder(self) -> None:
        self.decoder.zero_grad()
        self.decoder(self.z).backward(self.in_pixels)

    @torch.no_grad()
    def _held_out(self) -> None:
        self.decoder(self.z[:HELD_OUT])

    def _features(self) -> None:
        self.features.zero_grad()
        self.features(self.x).backward(self.in_features)


class VAEStep:
    """A step of the variational autoencoder with N/B draws for each of B images."""

    def __init__(self, decoder: functools.partial, count: int, device: torch.device) -> None:
        encoder = functools.partial(ConvFeatures, width=256)
        self.module = ImageVAE(
            encoder=encoder, latent_dim=16, decoder=decoder, image_shape=SHAPE, likelihood="bernoulli"
        ).to(device)
        self.optimiser = cast(torch.optim.Optimizer, self.module.configure_optimizers())
        self.draws = count // BATCH

    def step(self, x: Tensor) -> None:
        self.optimiser.zero_grad()
        model = cast(Any, self.module.generative)
        (-self.module.log_weights(x, self.draws, model).mean()).backward()
        self.optimiser.step()


def made(method: str, count: int, decoder: functools.partial, device: torch.device) -> ImageModel:
    """The module of a method."""
    kernel = functools.partial(MedianKernel, multiple=0.5, features=LinearFeatures)
    learning = Learning(
        sleep_samples=count,
        held_out=HELD_OUT,
        regression=functools.partial(AnnealedRidge, kernel=kernel, start=5, steps=800, ridge=0.1),
        kernel_objective=LogJointError() if method == "AL-A" else None,
    )
    return ImageModel(16, decoder, learning, image_shape=SHAPE, likelihood="bernoulli").to(device)


class Comparison:
    """All contenders for one method and one N, measured in turns.

    Args:
        method: AL-F or AL-A.
        count: N.
        given: the command line's options.
    """

    def __init__(self, method: str, count: int, given: argparse.Namespace) -> None:
        device = torch.device(given.device)
        torch.manual_seed(0)
        self.method, self.count, self.clock = method, count, Clock(device, given.clock == "processor")
        decoder = functools.partial(DCGANDecoder, ngf=given.channels)
        module = made(method, count, decoder, device)
        inner = torch.randint(0, 2, (BATCH, 1, 28, 28)).float()
        self.x = nn.functional.pad(inner, (2, 2, 2, 2)).to(device)
        references = {PUBLISHED: False} | ({DETACHED: True} if method == "AL-A" else {})
        references = references if given.references == "true" else {}
        theirs = {name: PublishedStep(module, detached, given.block) for name, detached in references.items()}
        self.bare, self.ours = BareParts(module, count, self.clock), Ours(copy.deepcopy(module), self.clock)
        vae = VAEStep(decoder, count, device)
        self.steps: dict[str, Callable[[Tensor], object]] = {
            OURS: self.ours.step,
            **{name: one.step for name, one in theirs.items()},
            VAE: vae.step,
        }
        decoders = {
            OURS: cast(ImageGenerator, self.ours.module.generative).decoder,
            **{name: one.decoder for name, one in theirs.items()},
            VAE: cast(ImageGenerator, vae.module.generative).decoder,
        }
        self.passes: dict[str, Passes] = {}
        for name, step in self.steps.items():  # a warm-up as well
            with Passes(decoders[name]) as self.passes[name]:
                step(self.x)
        self.bare.parts()

    def measure(self, rounds: int) -> dict[str, Any]:
        """Medians and ratios over the rounds, in milliseconds and megabytes."""
        seconds: dict[str, list[float]] = {name: [] for name in (*self.steps, BARE, WITH_HELD_OUT)}
        bare: list[dict[str, float]] = []
        parts: list[dict[str, float]] = []
        for _ in range(rounds):
            for name, step in self.steps.items():
                seconds[name].append(self.clock.time(functools.partial(step, self.x)))
            bare.append(self.bare.parts())
            seconds[WITH_HELD_OUT].append(sum(bare[-1].values()))
            seconds[BARE].append(seconds[WITH_HELD_OUT][-1] - bare[-1].get(HELD_OUT_FORWARDS, 0.0))
            parts.append(self.ours.parts(self.x))

        def ratio(above: str, below: str) -> float:
            return statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))

        references = [name for name in (PUBLISHED, DETACHED) if name in self.steps]
        return {
            "method": self.method,
            "N": self.count,
            "rounds": rounds,
            "ms": {name: 1000 * statistics.median(times) for name, times in seconds.items()},
            "all ms": {name: [1000 * one for one in times] for name, times in seconds.items()},
            "R": ratio(OURS, BARE),
            "R with held-out": ratio(OURS, WITH_HELD_OUT),
            "over VAE": ratio(OURS, VAE),
            "gain": {name: ratio(name, OURS) for name in references},
            "predicted gain": {
                name: self.passes[name].equivalents / self.passes[OURS].equivalents for name in references
            },
            "passes / N": {
                name: [one.forward / self.count, one.backward / self.count] for name, one in self.passes.items()
            },
            "parts, ms": _medians(parts),
            "bare parts, ms": _medians(bare),
            "peak MB": {
                name: self.clock.peak_memory(functools.partial(step, self.x)) for name, step in self.steps.items()
            },
        }

    def profile(self) -> str:
        """The top of torch's table for two of our steps."""
        kinds = [torch.profiler.ProfilerActivity.CPU]
        on_gpu = self.clock.device.type == "cuda"
        kinds += [torch.profiler.ProfilerActivity.CUDA] if on_gpu else []
        with torch.profiler.profile(activities=kinds) as profile:
            for _ in range(2):
                self.clock.time(functools.partial(self.ours.step, self.x))
        key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        return profile.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=60)


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: 1000 * statistics.median(row[name] for row in rows) for name in rows[0]}


def batch_seconds(device: torch.device, batches: int = 50) -> float:
    """The median time in which the loader hands out a batch of 55 000 stored images."""
    rows = torch.randint(0, 2, (55_000, *SHAPE), dtype=torch.uint8).to(device)
    loader = BatchLoader(rows, lambda chosen, seed: chosen.float(), BATCH, shuffle=True)
    clock, iterator = Clock(device), iter(loader)
    next(iterator)
    return statistics.median(clock.time(functools.partial(next, iterator)) for _ in range(batches))


def start_up() -> dict[str, float]:
    """Seconds until ``alws --help`` has ended, and until ``alws fit`` of the quickstart has made its first step."""
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryDirectory() as folder:
        fit = ["fit", "--config", str(root / "configs/quickstart.yaml"), "--runs", folder, "--name", "start"]
        commands = {
            "alws --help": [sys.executable, str(root / "cli.py"), "--help"],
            "alws fit, first step": [sys.executable, "-c", FIRST_STEP, *fit, "--trainer.enable_progress_bar", "false"],
        }
        seconds = {}
        for name, command in commands.items():
            before = time.perf_counter()
            subprocess.run(command, env=environment, check=True, capture_output=True)
            seconds[name] = time.perf_counter() - before
    return seconds


def report(row: dict[str, Any]) -> None:
    """Print what was measured for one method and one N."""
    print(f"\n{row['method']}, N = {row['N']}, median of {row['rounds']} rounds")
    print(f"{'':22}{'ms':>10}{'peak MB':>10}{'forwards / N':>14}{'backwards / N':>15}{'gain':>8}{'predicted':>11}")
    for name, milliseconds in row["ms"].items():
        memory = f"{row['peak MB'][name]:10.0f}" if name in row["peak MB"] else " " * 10
        passes = "".join(
            f"{number:{width}.2f}" for number, width in zip(row["passes / N"].get(name, []), (14, 15), strict=False)
        )
        gain = f"{row['gain'][name]:8.2f}{row['predicted gain'][name]:11.2f}" if name in row["gain"] else ""
        print(f"{name:22}{milliseconds:10.1f}{memory}{passes:29}{gain}")
    print(
        f"R = ours / bare parts = {row['R']:.3f}, with the held-out samples' forwards {row['R with held-out']:.3f}; "
        f"ours / VAE = {row['over VAE']:.2f}"
    )
    for title in ("parts, ms", "bare parts, ms"):
        print(f"{title}: " + ", ".join(f"{name} {value:.1f}" for name, value in row[title].items()), flush=True)


def exponents(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How time and memory grow with N, for each method and contender."""
    found: dict[str, dict[str, float]] = {}
    for method in {row["method"]: None for row in rows}:
        own = [row for row in rows if row["method"] == method]
        if len(own) < 2:
            continue
        counts = [row["N"] for row in own]
        for name in own[0]["ms"]:
            found[f"{method}, {name}"] = {"time": slope(counts, [row["ms"][name] for row in own])}
            if name in own[0]["peak MB"]:
                found[f"{method}, {name}"]["memory"] = slope(counts, [row["peak MB"][name] for row in own])
    return found


def options() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sleep-samples", type=int, nargs="+", default=[500, 2000, 5000], metavar="N")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--channels", type=int, default=64, help="ngf of the decoder (64 as published)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=int, default=BLOCK, help="most numbers in the published step's differences")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument(
        "--clock", choices=("wall", "processor"), default="wall", help="processor: for a CPU with other work"
    )
    parser.add_argument("--references", choices=("true", "false"), default="true", help="the published steps")
    parser.add_argument("--start-up", choices=("true", "false"), default="true")
    parser.add_argument("--keep-freed", choices=("true", "false"), default="true", help="as alws does for a training")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def main() -> None:
    """Measure, print and write."""
    given = options().parse_args()
    kept = keep_freed() if given.keep_freed == "true" else False
    if given.threads:
        torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    if given.clock == "processor" and device.type != "cpu":
        sys.exit("--clock processor counts nothing of what a GPU does; leave it out")
    about = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "clock": given.clock,
        "channels": given.channels,
        "freed memory kept": kept,
        "load before": os.getloadavg()[0],
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    rows = []
    for count in given.sleep_samples:
        for method in given.methods:
            comparison = Comparison(method, count, given)
            rows.append(comparison.measure(given.rounds))
            report(rows[-1])
            if given.profile:
                print(comparison.profile(), flush=True)
            del comparison
    growth = exponents(rows)
    if growth:
        print("\nexponents in N")
        for name, one in growth.items():
            print(f"{name:32}" + ", ".join(f"{what} {value:.2f}" for what, value in one.items()))
    batch = batch_seconds(device)
    fastest = min(row["ms"][OURS] for row in rows)
    print(f"\na batch takes {1000 * batch:.2f} ms, {100 * 1000 * batch / fastest:.2f} % of the fastest step of ours")
    started = start_up() if given.start_up == "true" else {}
    for name, seconds in started.items():
        print(f"{name}: {seconds:.1f} s")
    about["load after"] = os.getloadavg()[0]
    print(f"load {about['load before']:.1f} before, {about['load after']:.1f} after")
    if given.json:
        found = {"about": about, "rows": rows, "exponents": growth, "batch ms": 1000 * batch, "start-up s": started}
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""How a training step scales with processes: measured on CPU processes, and a cost model of many GPUs.

    python benchmarks/scaling.py measure [--processes 1 2 4] [--sleep-samples 500] [--steps 9] [--json FILE]
    python benchmarks/scaling.py rates [--device cuda]
    python benchmarks/scaling.py model [--gpus 1 8 64] [--network-tflops ... ] [--json FILE]

``measure`` trains AL-F on random images of binarised MNIST's shape on so many processes, joined by gloo and DDP, with
both scopes of the regression and both of its forms. Weak scaling: N sleep samples and B images for each process,
efficiency t(1)/t(R). Strong scaling: N and B shared out over the processes, speed-up t(1)/t(R). Medians over steps of
rank 0, all ranks starting each step together. Where there are more processes than cores the row says so. Mind what is
compared: the rank scope, strongly scaled, regresses on N/R samples, and is a worse estimate and not the same one.

``model`` counts what each rank computes and communicates in a step, and divides by rates that are given. It is a MODEL:
no figure of it is measured but for the rates, which ``rates`` measures on the device at hand; it assumes that nothing
overlaps, rings for the collectives, and one link for each GPU, slower between nodes than within.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from lightning_alws.feature_ridge import RandomFeatureRidge
from lightning_alws.kernels import MedianKernel, full_precision
from lightning_alws.learning import Learning
from lightning_alws.models import ImageModel
from lightning_alws.networks import DCGANDecoder
from lightning_alws.noise import mix_seed
from lightning_alws.regression import KernelRidge
from lightning_alws.scope import scope_named

SHAPE = (1, 32, 32)  # 28 × 28 with a border of two
PIXELS = math.prod(SHAPE)
EXACT, FEATURES = "exact", "random features"
SCOPES = ("rank", "global")
WARM_UP = 2


# Measured


@dataclass(frozen=True)
class Case:
    """One row: what each of so many processes does in a step."""

    scaling: str
    scope: str
    regression: str
    processes: int
    sleep_samples: int
    batch: int


class Step(nn.Module):
    """A training step as a forward pass, which DDP can wrap."""

    def __init__(self, module: ImageModel) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module.training_step(x, 0)


def build(regression: str, scope: str, sleep_samples: int, features: int, channels: int) -> ImageModel:
    """AL-F with a DCGAN decoder, in no trainer."""
    torch.manual_seed(0)
    forms: dict[str, Any] = {EXACT: KernelRidge, FEATURES: functools.partial(RandomFeatureRidge, count=features)}
    learning = Learning(
        sleep_samples=sleep_samples,
        regression=functools.partial(forms[regression], kernel=MedianKernel),
        regression_scope=scope,  # type: ignore[arg-type]
    )
    decoder = functools.partial(DCGANDecoder, ngf=channels)
    module = ImageModel(latent_dim=20, decoder=decoder, learning=learning, image_shape=SHAPE, likelihood="bernoulli")
    module.log = lambda *arguments, **settings: None  # type: ignore[method-assign]
    return module


def work(rank: int, cases: list[Case], steps: int, features: int, channels: int, folder: str) -> None:
    """One process: the steps of each case in turn, of which rank 0 writes the seconds."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=cases[0].processes
    )
    seconds = [run(case, rank, steps, features, channels) for case in cases]
    if rank == 0:
        Path(folder, "seconds.json").write_text(json.dumps(seconds))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def run(case: Case, rank: int, steps: int, features: int, channels: int) -> list[float]:
    """Seconds of each step of a case, on this rank."""
    module = build(case.regression, case.scope, case.sleep_samples, features, channels)
    module.scope = scope_named(case.scope)
    replica = DistributedDataParallel(Step(module))
    optimiser = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 1e-3)
    torch.manual_seed(mix_seed("scaling", rank))
    x = torch.rand(case.batch, *SHAPE).round()
    seconds = []
    for _ in range(WARM_UP + steps):
        torch.distributed.barrier()
        before = time.perf_counter()
        optimiser.zero_grad()
        replica(x).backward()
        optimiser.step()
        seconds.append(time.perf_counter() - before)
    return seconds[WARM_UP:]


def time_cases(cases: list[Case], settings: argparse.Namespace) -> list[list[float]]:
    """Seconds of each step of the cases, all of as many processes, which are started for them."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (cases, settings.steps, settings.features, settings.channels, folder)
        torch.multiprocessing.spawn(work, arguments, nprocs=cases[0].processes)
        return json.loads(Path(folder, "seconds.json").read_text())


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """Weak and strong scaling, printed row by row."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"CPU processes of one thread, joined by gloo; {cores} cores; torch {torch.__version__}")
    print(f"{'scaling':8}{'scope':8}{'regression':17}{'R':>3}{'N':>7}{'B':>5}{'s/step':>9}{'t(1)/t(R)':>11}")
    rows = []
    first: dict[tuple[str, str, str], float] = {}
    for processes in settings.processes:
        shares = {"weak": 1, "strong": processes}
        cases = [
            Case(scaling, scope, form, processes, settings.sleep_samples // share, max(settings.batch // share, 1))
            for scaling, share in shares.items()
            for scope in SCOPES
            for form in (EXACT, FEATURES)
        ]
        for case, seconds in zip(cases, time_cases(cases, settings), strict=True):
            median = statistics.median(seconds)
            ratio = first.setdefault((case.scaling, case.scope, case.regression), median) / median
            crowded = processes > cores
            times = {"median": median, "ratio": ratio, "oversubscribed": crowded, "seconds": seconds}
            rows.append(asdict(case) | times)
            print(
                f"{case.scaling:8}{case.scope:8}{case.regression:17}{processes:3}{case.sleep_samples:7}{case.batch:5}"
                f"{median:9.3f}{ratio:11.2f}" + (f"  oversubscribed: {cores} cores" if crowded else ""),
                flush=True,
            )
    return {"cores": cores, "features": settings.features, "channels": settings.channels, "rows": rows}


# Modelled


@dataclass(frozen=True)
class Cost:
    """What one rank does in a step.

    Attributes:
        network: flops of the generator's passes.
        products: flops of matrix products: Gram matrix, features, solves with a triangle, predictions.
        cholesky: flops of the factorisation.
        communicated: bytes that leave a rank, in rings.
        collectives: how many operations.
        memory: bytes of the largest matrices, without the generator's activations.
    """

    network: float
    products: float
    cholesky: float
    communicated: float
    collectives: int
    memory: float


def cost(
    ranks: int,
    sleep_samples: int,
    batch: int,
    scope: str,
    regression: str,
    forward_flops: float,
    parameters: int,
    features: int = 2000,
    pixels: int = PIXELS,
) -> Cost:
    """Of AL-F with a kernel on the pixels, in float32; one backward pass is two forward ones."""
    n, d, size = sleep_samples, pixels, 4
    pooled = scope == "global" and ranks > 1
    fitted, queries = (ranks * n, ranks * batch) if pooled else (n, batch)
    if regression == EXACT:
        products = 2 * fitted**2 * d + 2 * fitted * queries * d + 2 * fitted**2 * queries
        cholesky, memory = fitted**3 / 3, size * (2 * fitted**2 + fitted * queries)
    else:
        products = n * d * features + 2 * n * features**2 + 2 * features**2 * queries + 2 * n * features * queries
        cholesky, memory = features**3 / 3, size * (2 * features**2 + n * features + n * queries)
    products += 3 * 2 * n * queries * d  # the prediction of natural parameters, forwards and backwards
    ring = (ranks - 1) / ranks
    communicated, collectives = 2 * ring * size * parameters, 1 if ranks > 1 else 0
    if pooled:
        gathered = queries * d + (fitted * d if regression == EXACT else 0)
        summed = queries + (0 if regression == EXACT else features**2)
        communicated += ring * size * (gathered + 2 * summed)
        collectives += 4
    return Cost(3 * n * forward_flops, products, cholesky, communicated, collectives, memory)


@dataclass(frozen=True)
class Device:
    """Rates of one GPU and its links: flops, bytes and seconds.

    Attributes:
        network_flops: per second, in the generator's forward and backward passes.
        product_flops: per second, in float32 matrix products of the regression.
        cholesky_flops: per second, in the factorisation.
        within: bytes per second from a GPU to another of its node.
        between: bytes per second from a GPU to one of another node.
        latency: seconds of a collective operation, for each doubling of the GPUs.
        node: GPUs in a node.
    """

    network_flops: float
    product_flops: float
    cholesky_flops: float
    within: float
    between: float
    latency: float
    node: int

    def seconds(self, cost: Cost, ranks: int) -> dict[str, float]:
        """Of each part of a step; nothing overlaps."""
        link = self.within if ranks <= self.node else self.between
        return {
            "network": cost.network / self.network_flops,
            "products": cost.products / self.product_flops,
            "cholesky": cost.cholesky / self.cholesky_flops,
            "communication": cost.communicated / link + cost.collectives * self.latency * math.log2(max(ranks, 2)),
        }


def generator_size(channels: int) -> tuple[float, int]:
    """Flops of one sample's forward pass through the decoder, counted by torch, and its parameters."""
    decoder = DCGANDecoder(20, SHAPE, ngf=channels)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder(torch.randn(8, 20))
    return counter.get_total_flops() / 8, sum(parameter.numel() for parameter in decoder.parameters())


def model(settings: argparse.Namespace) -> dict[str, Any]:
    """What to expect of many GPUs, printed row by row."""
    forward, parameters = generator_size(settings.channels)
    device = Device(
        settings.network_tflops * 1e12,
        settings.product_tflops * 1e12,
        settings.cholesky_tflops * 1e12,
        settings.within_gbytes * 1e9,
        settings.between_gbytes * 1e9,
        settings.latency_us * 1e-6,
        settings.node,
    )
    print("A MODEL, not a measurement: counted flops and bytes over the rates given; nothing overlaps.")
    print("; ".join(f"{name} {value:.3g}" for name, value in asdict(device).items()))
    print(f"decoder: {forward / 1e6:.1f} Mflop a sample forwards, {parameters} parameters; D = {settings.features}")
    print(
        f"{'scaling':8}{'scope':8}{'regression':17}{'R':>4}{'N':>8}{'N total':>9}{'ms/step':>9}{'t(1)/t(R)':>11}"
        f"{'network':>9}{'products':>9}{'Cholesky':>9}{'communic.':>10}{'MB sent':>9}{'GB':>7}"
    )
    rows, first = [], {}
    for scaling in ("weak", "strong"):
        for scope in SCOPES:
            for regression in (EXACT, FEATURES):
                for ranks in settings.gpus:
                    share = ranks if scaling == "strong" else 1
                    count, batch = max(settings.sleep_samples // share, 2), max(settings.batch // share, 1)
                    total = count * ranks
                    allowed = KernelRidge.most_pooled
                    if scope == "global" and regression == EXACT and allowed is not None and total > allowed:
                        print(
                            f"{scaling:8}{scope:8}{regression:17}{ranks:4}{count:8}{total:9}  refused: above {allowed}"
                        )
                        continue
                    counted = cost(ranks, count, batch, scope, regression, forward, parameters, settings.features)
                    parts = device.seconds(counted, ranks)
                    step = sum(parts.values())
                    ratio = first.setdefault((scaling, scope, regression), step) / step
                    rows.append({"scaling": scaling, "scope": scope, "regression": regression, "gpus": ranks,
                                 "sleep_samples": count, "batch": batch, "seconds": step, "ratio": ratio,
                                 "parts": parts, "cost": asdict(counted)})  # fmt: skip
                    shown = "".join(f"{1000 * value:9.2f}" for value in list(parts.values())[:3])
                    print(
                        f"{scaling:8}{scope:8}{regression:17}{ranks:4}{count:8}{total:9}{1000 * step:9.2f}{ratio:11.2f}"
                        f"{shown}{1000 * parts['communication']:10.2f}{counted.communicated / 1e6:9.1f}"
                        f"{counted.memory / 1e9:7.2f}"
                    )
    return {"is": "a model, not a measurement", "device": asdict(device), "rows": rows}


def rates(settings: argparse.Namespace) -> dict[str, Any]:
    """The rates that the model takes, measured on one device."""
    device = torch.device(settings.device)
    decoder = DCGANDecoder(20, SHAPE, ngf=settings.channels).to(device)
    forward, _ = generator_size(settings.channels)
    n, d = settings.sleep_samples, PIXELS

    def seconds(function: Callable[[], object]) -> float:
        taken = []
        for _ in range(WARM_UP + settings.steps):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            before = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - before)
        return statistics.median(taken[WARM_UP:])

    z, rows = torch.randn(n, 20, device=device), torch.randn(n, d, device=device)
    matrix = rows @ rows.T / d + torch.eye(n, device=device)
    with full_precision(device):
        figures = {
            "network_tflops": 3 * n * forward / seconds(lambda: decoder(z).sum().backward()) / 1e12,
            "product_tflops": 2 * n * n * d / seconds(lambda: rows @ rows.T) / 1e12,
            "cholesky_tflops": n**3 / 3 / seconds(lambda: torch.linalg.cholesky_ex(matrix)) / 1e12,
        }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    print(f"{name}, N = {n}, ngf = {settings.channels}: " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items()))
    return {"device": name, "sleep_samples": n, **figures}


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "model", "rates"))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--sleep-samples", type=int, default=None, help="N: 500 to measure, else 2000")
    parser.add_argument("--batch", type=int, default=100, help="B")
    parser.add_argument("--features", type=int, default=None, help="D: 500 to measure, else 2000")
    parser.add_argument("--channels", type=int, default=None, help="ngf of the decoder: 8 to measure, else 64")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    # What NVIDIA states of the H100 SXM: 67 Tflop/s in float32, NVLink 450 GB/s each way; 400 Gbit/s between nodes.
    parser.add_argument("--network-tflops", type=float, default=67.0)
    parser.add_argument("--product-tflops", type=float, default=67.0)
    parser.add_argument("--cholesky-tflops", type=float, default=67.0)
    parser.add_argument("--within-gbytes", type=float, default=450.0)
    parser.add_argument("--between-gbytes", type=float, default=50.0)
    parser.add_argument("--latency-us", type=float, default=10.0, help="of a collective, for each doubling of the GPUs")
    parser.add_argument("--node", type=int, default=8, help="GPUs in a node")
    parser.add_argument("--json", type=Path, default=None)
    settings = parser.parse_args()
    measured = settings.what == "measure"
    settings.sleep_samples = settings.sleep_samples or (500 if measured else 2000)
    settings.features = settings.features or (500 if measured else 2000)
    settings.channels = settings.channels or (8 if measured else 64)
    result = {"measure": measure, "model": model, "rates": rates}[settings.what](settings)
    if settings.json is not None:
        settings.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""Error of the amortised gradient against the regression's time: exact ridge, Nyström, random features of four kinds.

    python benchmarks/many_samples.py [--sleep-samples 500 1000 ...] [--figure docs/many_samples.png] [--json FILE]

at fixed θ on two models whose gradient is known, a linear-Gaussian one (two latents, 8 numbers: exact) and images of
16 binary pixels (two latents: quadrature). Kernel: Gaussian on all the numbers, a multiple of the median distance for
bandwidth; that and the ridge are each model's own, the best of some pairs for the exact regression at N = 4 000.
The error is the root mean square of ∇_θ Ĵ(x) − ∇_θ log p(x), plug-in form, over x ~ p_θ and repeats, over that of
∇_θ log p(x). The time is that of factorising and of the weights of 100 queries, in float32, processor time of one
thread: the passes through the generator, alike for all, are left out. The last column is the peak of memory.

Beside the library's random features, which are orthogonal pairs √(2/D) (cos ω·g/s, sin ω·g/s), independent pairs, and
cosines of random phase, orthogonal or not, √(2/D) cos(ω·g/s + u), as in kevin-w-li/al-ws.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from measuring import Clock
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]  # the model with a known truth lives with the tests

from gradient_error_rivals import Truth, small_images  # noqa: E402
from models import LinearGaussian, flat_gradient  # noqa: E402

from lightning_alws.feature_ridge import FeatureMap, NystromRidge, RandomFeatureRidge  # noqa: E402
from lightning_alws.generative import LatentVariableModel  # noqa: E402
from lightning_alws.kernels import MedianKernel  # noqa: E402
from lightning_alws.learning import INITIAL_SAMPLES  # noqa: E402
from lightning_alws.metrics.gradients import relative_error  # noqa: E402
from lightning_alws.regression import KernelRidge, freeze  # noqa: E402

OBSERVATIONS, QUERIES = 40, 100
LARGEST_EXACT = 8000


class RandomPhaseRidge(RandomFeatureRidge):
    """√(2/D) cos(ω·g/s + u), u uniform: D frequencies where pairs have D/2."""

    phases: Tensor

    def initialise(self, x: Tensor) -> None:
        super().initialise(x)
        self.frequencies = self.frequencies.new_empty(self.frequencies.shape[0], self.count)
        self.register_buffer("phases", 2 * torch.pi * torch.rand(self.count).to(self.frequencies))
        self._draw(0)

    def feature_map(self, features: Tensor) -> FeatureMap:
        scaled = self.frequencies.to(features) / self.kernel.bandwidth.to(features.dtype)
        return lambda g: (2 / self.count) ** 0.5 * (g @ scaled + self.phases).cos()


@dataclass(frozen=True)
class Contender:
    """A regression, the N it is measured at, and how it is drawn; below its size it would be no cheaper than exact."""

    name: str
    build: Callable[..., KernelRidge]
    largest: int
    least: int
    colour: str
    dashes: str = "-"


def contenders(sizes: list[int]) -> list[Contender]:
    """The exact regression, and each of the others with D (or m) of each size."""
    every = 10**9
    found = [Contender("exact", KernelRidge, LARGEST_EXACT, 0, "black")]
    for index, (size, dashes) in enumerate(zip(sizes, (":", "-", "--"), strict=False)):
        kinds: list[tuple[str, Callable[..., KernelRidge], str]] = [
            (f"Nyström, m = {size}", functools.partial(NystromRidge, centres=size), "tab:blue"),
            (f"orthogonal pairs, D = {size}", functools.partial(RandomFeatureRidge, count=size), "tab:red"),
        ]
        if index == 0:  # what is worse where there are few is no better where there are many
            others = (
                ("independent pairs", RandomFeatureRidge, False, "tab:orange"),
                ("orthogonal, random phase", RandomPhaseRidge, True, "tab:olive"),
                ("independent, random phase", RandomPhaseRidge, False, "tab:green"),
            )
            kinds += [
                (f"{name}, D = {size}", functools.partial(kind, count=size, orthogonal=orthogonal), colour)
                for name, kind, orthogonal, colour in others
            ]
        found += [Contender(name, build, every, size, colour, dashes) for name, build, colour in kinds]
    return found


@dataclass(frozen=True)
class Problem:
    """A model at fixed θ, observations of it, its exact gradient there (B, P), and the settings of the regression."""

    name: str
    model: LatentVariableModel
    x: Tensor
    exact: Tensor
    multiple: float
    ridge: float


def problems() -> list[Problem]:
    """The two models."""
    torch.manual_seed(1)
    linear = LinearGaussian(2, 8, log_scale=0.0)
    x = linear.sleep(OBSERVATIONS).x
    exact = torch.stack([flat_gradient(value, linear) for value in linear.log_marginal(x)])
    images = small_images()
    pictures = images.sleep(OBSERVATIONS).x
    truth = Truth(images, pictures).gradient
    return [
        Problem("linear Gaussian, 8 numbers", linear, x, exact, multiple=1.0, ridge=1.0),
        Problem("images of 16 binary pixels", images, pictures, truth, multiple=0.5, ridge=10.0),
    ]


@dataclass(frozen=True)
class Row:
    """What one contender with N sleep samples comes to."""

    problem: str
    contender: str
    N: int
    error: float
    bias: float
    seconds: float
    megabytes: float


def measure(problem: Problem, contender: Contender, count: int, repeats: int) -> Row:
    """Error and time, over fresh sleep samples and fresh frequencies in each repeat."""
    model, clock = problem.model, Clock(torch.device("cpu"), processor=True)
    torch.manual_seed(count)
    kernel = functools.partial(MedianKernel, multiple=problem.multiple)
    regression = contender.build(tuple(problem.x.shape[1:]), kernel=kernel, ridge=problem.ridge)
    regression.initialise(model.sleep(INITIAL_SAMPLES).x.float())
    freeze(regression)
    # As many queries as a batch has, of which the first are measured.
    query = torch.cat([problem.x, model.sleep(QUERIES - OBSERVATIONS).x]).float()
    gradients, seconds, peak = [], [], 0.0
    for repeat in range(repeats):
        regression.at_step(repeat)
        sleep = model.sleep(count)
        weights = torch.empty(0)

        def regress(x: Tensor) -> None:
            nonlocal weights
            fitted = regression.fit(x)
            assert fitted.failure is None, fitted.failure
            weights = fitted.weights(query)

        with torch.no_grad():
            if repeat == 0:
                peak = clock.peak_memory(functools.partial(regress, sleep.x.float()))  # and a warm-up
            seconds.append(clock.time(functools.partial(regress, sleep.x.float())))
        columns = weights.double()[:, :OBSERVATIONS]
        rows = [
            flat_gradient(sleep.joint.expectation(columns[:, b : b + 1], problem.x[b : b + 1]).sum(), model)
            for b in range(OBSERVATIONS)
        ]
        gradients.append(torch.stack(rows))
    error = relative_error(torch.stack(gradients), problem.exact)
    fastest = sorted(seconds)[len(seconds) // 2]
    return Row(problem.name, contender.name, count, error.rms, error.bias, fastest, peak)


def draw(rows: list[Row], found: list[Contender]) -> Figure:
    """One panel for each model: error against seconds, a curve for each contender, a mark for each N."""
    names = list(dict.fromkeys(row.problem for row in rows))
    figure = Figure(figsize=(5 * len(names), 5))
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        for one in found:
            own = [row for row in rows if (row.problem, row.contender) == (name, one.name)]
            if not own:
                continue
            panel.plot(
                [row.seconds for row in own], [row.error for row in own], one.dashes, color=one.colour, label=one.name,
                marker="o", markersize=3, linewidth=1.8 if one.name == "exact" else 1.1,
            )  # fmt: skip
            if one.name == "exact":
                for row in own:
                    panel.annotate(
                        f"{row.N:,}".replace(",", " "), (row.seconds, row.error), fontsize=7,
                        xytext=(3, 4), textcoords="offset points",
                    )  # fmt: skip
        panel.set(xscale="log", yscale="log", xlabel="seconds of the regression", title=name)
        panel.yaxis.set_major_locator(FixedLocator([0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8]))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("error of ∇ log p(x), relative")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    return figure


def main() -> None:
    """Measure, print, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sleep-samples", type=int, nargs="+", default=[500, 1000, 2000, 4000, 8000, 20000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 2000], help="D and m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--figure", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found, rows = contenders(given.sizes), []
    print(f"{'':36}{'N':>7}{'error':>8}{'bias':>8}{'seconds':>9}{'peak MB':>9}")
    for problem in problems():
        print(problem.name)
        for one in found:
            for count in given.sleep_samples:
                if not one.least <= count <= one.largest:
                    continue
                row = measure(problem, one, count, given.repeats)
                rows.append(row)
                print(
                    f"  {one.name:34}{count:7}{row.error:8.3f}{row.bias:8.3f}{row.seconds:9.3f}{row.megabytes:9.0f}",
                    flush=True,
                )
    if given.json:
        about = {"torch": torch.__version__, "threads": 1, "repeats": given.repeats}
        given.json.write_text(json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1))
    if given.figure:
        draw(rows, found).savefig(given.figure, dpi=90, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()

"""The pictures of :mod:`callbacks.gradient_error`: heat-maps of errors, curved posteriors, the fitted model."""

from __future__ import annotations

import itertools

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.image import AxesImage
from torch import Tensor

from lightning_alws.generative import LatentVariableModel
from lightning_alws.learning import Learning
from lightning_alws.metrics.gradient_toy import AMORTISED, RIVALS
from lightning_alws.metrics.gradients import FORMS, RelativeError, predictions
from lightning_alws.metrics.variational import (
    LogJoint,
    MeanField,
    WeightedLogJoint,
    fit_mean_field,
    parameter_gradient,
)
from lightning_alws.models.curved import CurvedGenerator
from lightning_alws.models.softplus_toy import SoftplusGenerator
from lightning_alws.regression import KernelRidge

TITLES = {
    "plug_in": "AL plug-in",
    "plug_in_centred": "AL plug-in,\ncentred",
    "direct": "AL direct",
    "direct_centred": "AL direct,\ncentred",
    "vae": "VAE\n(= IWAE-1)",
    **{name: name.upper().replace("_", "-") for name in RIVALS if name != "vae"},
}
LEAST = 0.01  # the smallest error that has a colour of its own
REACH, NODES = 3.3, 111  # of the grid on which a posterior of two latents is drawn and integrated
RATE_TICKS = (0.02, 0.05, 0.1, 0.2, 0.5)
POSTERIOR_SAMPLES, POSTERIOR_REPEATS = 8000, 10  # of the amortised gradient above each posterior
GAUSSIAN_STEPS, GAUSSIAN_SETS = 400, 50


def draw_errors(
    table: dict[tuple[float, float], dict[str, RelativeError]],
    rates: dict[tuple[float, float], dict[int, dict[str, RelativeError]]],
    regression: KernelRidge,
) -> Figure:
    """RMS error and bias of every method on the grid; error against N; posteriors beside their Gaussian fits."""
    methods = (*AMORTISED, *RIVALS)
    figure = Figure(figsize=(1.75 * len(methods), 7.8), layout="constrained")
    grid = figure.add_gridspec(3, len(methods), height_ratios=[1, 1, 1.15])
    for row, (measure, name) in enumerate((("rms", "RMS error"), ("bias", "bias"))):
        axes = [figure.add_subplot(grid[row, column]) for column in range(len(methods))]
        for column, (axis, method) in enumerate(zip(axes, methods, strict=True)):
            errors = {point: getattr(by_method[method], measure) for point, by_method in table.items()}
            image = _heat_map(axis, errors)
            if row == 0:
                axis.set_title(TITLES[method], fontsize=10)
            else:
                axis.set_xlabel("σ")
            axis.set_ylabel("‖b‖" if column == 0 else "")
        bar = figure.colorbar(image, ax=axes, pad=0.01)
        bar.set_label(f"{name} / RMS gradient")
    _rates(figure.add_subplot(grid[2, :2]), rates)
    for column, (title, model, x) in zip(range(2, len(methods), 2), _curved(regression), strict=False):
        _posterior(figure, grid[2, column : column + 2], title, model, x, regression)
    return figure


def draw_model(model: SoftplusGenerator, regression: KernelRidge, learning: Learning, x: Tensor) -> Figure:
    """Data beside the model's density, and the gradient along b as a function of x, exact and amortised."""
    x = x.to(model.weight)
    at = torch.linspace(float(x.min()), float(x.max()), 200).to(x)[:, None]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(x[:, 0].cpu(), bins=60, density=True, color="0.8", label="data")
    left.plot(at[:, 0].cpu(), model.log_marginal(at).detach().exp().cpu(), label="p(x), exact")
    left.set(xlabel="x", title=f"‖b‖ = {float(model.norm):.3f}, σ = {float(model.scale):.3f}")
    direction = model.weight.detach() / model.norm.detach()
    right.plot(at[:, 0].cpu(), (model.exact_gradient(at) @ direction).cpu(), color="black", label="exact")
    estimates = predictions(model, regression, model.sleep(learning.sleep_samples), at)
    for name in FORMS:
        right.plot(at[:, 0].cpu(), (estimates[name] @ direction).cpu(), label=TITLES[name], alpha=0.8)
    right.set(xlabel="x", title=f"∂ log p(x) / ∂‖b‖, N = {learning.sleep_samples}")
    for axis in (left, right):
        axis.legend(frameon=False)
    return figure


def _heat_map(axis: Axes, errors: dict[tuple[float, float], float]) -> AxesImage:
    """‖b‖ upwards, σ to the right, in per cent."""
    norms, scales = (sorted(set(values)) for values in zip(*errors, strict=True))
    values = [[errors[norm, scale] for scale in scales] for norm in norms]
    image = axis.imshow(
        [[max(value, LEAST) for value in row] for row in values],
        origin="lower",
        aspect="auto",
        norm=LogNorm(LEAST, 1),
        cmap="viridis_r",
    )
    for (i, norm), (j, scale) in itertools.product(enumerate(norms), enumerate(scales)):
        percent = 100 * errors[norm, scale]
        text = f"{percent:.1f}" if percent < 9.95 else f"{percent:.0f}"
        axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if percent > 15 else "black")
    axis.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    axis.set_yticks(range(len(norms)), [f"{norm:g}" for norm in norms])
    return image


def _rates(axis: Axes, rates: dict[tuple[float, float], dict[int, dict[str, RelativeError]]]) -> None:
    """RMS error against N, plug-in dashed and direct solid, and the slope −1/2."""
    for index, ((norm, scale), by_count) in enumerate(rates.items()):
        counts = sorted(by_count)
        for form, style in (("plug_in", "--"), ("direct", "-")):
            label = f"‖b‖ = {norm:g}, σ = {scale:g}" if form == "direct" else None
            errors = [by_count[count][form].rms for count in counts]
            axis.loglog(counts, errors, style, marker="o", markersize=3, color=f"C{index}", label=label)
        if index == 0 and len(counts) > 1:
            half = [by_count[counts[0]]["direct"].rms * 0.6 * (count / counts[0]) ** -0.5 for count in counts]
            axis.loglog(counts, half, ":", color="black", label="N$^{-1/2}$")
    if rates:
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_yticks(RATE_TICKS, [f"{100 * error:g} %" for error in RATE_TICKS])
        axis.minorticks_off()
    axis.set(xlabel="N", ylabel="RMS error / RMS gradient", title="direct (solid), plug-in (dashed)")
    if rates:
        axis.legend(frameon=False, fontsize=7, loc="lower left")


def _curved(regression: KernelRidge) -> list[tuple[str, LatentVariableModel, float]]:
    """The posteriors to draw: the toy's own, a ring, a banana, two modes; with the observation of each."""
    models: list[tuple[str, LatentVariableModel, float]] = [
        ("softplus(b·z) − ‖b‖²", SoftplusGenerator(1.5, 45.0, 0.3), -1.8),
        ("‖z‖", CurvedGenerator("ring"), 1.7),
        ("z₂ + z₁²", CurvedGenerator("banana"), 1.2),
        ("z₁ z₂", CurvedGenerator("product"), 1.2),
    ]
    device = next(iter(regression.buffers())).device
    return [(title, model.double().to(device), x) for title, model, x in models]


@torch.no_grad()
def _posterior(
    figure: Figure, cell: SubplotSpec, title: str, model: LatentVariableModel, x: float, regression: KernelRidge
) -> None:
    """p(z|x) and the best mean-field Gaussian, and what each makes of the first parameter's gradient."""
    observed = torch.full((1, 1), x).to(next(model.parameters()))
    line = torch.linspace(-REACH, REACH, NODES).to(observed)
    z = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).reshape(1, -1, 1, 2)
    share = LogJoint(model)(z, observed).softmax(dim=1)
    exact = parameter_gradient(WeightedLogJoint(model), share, z, observed)[0, 0]
    start = MeanField(observed.new_tensor([[0.5, 0.8]]), observed.new_full((1, 2), -0.7))
    q = fit_mean_field(model, observed, start, 1, GAUSSIAN_SETS, GAUSSIAN_STEPS)
    fitted = q.log_prob(z).softmax(dim=1)
    gaussian = parameter_gradient(WeightedLogJoint(model), fitted, z, observed)[0, 0]
    draws = [
        predictions(model, regression, model.sleep(POSTERIOR_SAMPLES), observed)["direct"][0, 0]
        for _ in range(POSTERIOR_REPEATS)
    ]
    amortised = torch.stack(draws)
    panel = figure.add_subfigure(cell)
    panel.suptitle(
        f"x | z ~ N({title}, 0.3²), x = {x:g}; gradient:\nexact {exact:.2f}, "
        f"AL {amortised.mean():.2f} ± {amortised.std():.2f}, Gaussian {gaussian:.2f}",
        fontsize=8,
    )
    left, right = panel.subplots(1, 2)
    for axis, density, name in (
        (left, share.view(NODES, NODES), "p(z|x)"),
        (right, fitted.view(NODES, NODES), "best Gaussian"),
    ):
        axis.contourf(line.cpu(), line.cpu(), density.cpu(), levels=12, cmap="Blues")
        axis.set(xticks=[], yticks=[], aspect="equal", xlabel=name)

"""A population with a delay and random births and survival, such as Nicholson's blowflies; one series of counts.

    τ ~ Cat(p),   e_t ~ Gamma(1/σ_p², 1/σ_p²),   ε_t ~ Gamma(1/σ_d², 1/σ_d²)          (both of mean 1)
    z_t = P x_{t−τ} exp(−x_{t−τ}/N₀) e_t + x_{t−1} exp(−δ ε_t),   x_t ~ LogNormal(log z_t, σ_n²)

What is observed enters the recursion, so that every term of log p_θ(z, x) is known once the path is: paths are drawn
in a loop over time without gradient, and their density is one pass over all times.
Source: the experiment of kevin-w-li/al-ws; the dynamics are those of Wood, "Statistical inference for noisy nonlinear
ecological dynamic systems", Nature 466, 2010. Here x is in counts throughout, and so is N₀; the published code divides
by the largest count, which changes N₀ and the early population by that factor, and log p(x) by a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError
from lightning_alws.generative import Latents, Simulator
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import LOG_2_PI
from lightning_alws.population import LEAST, NAMES, Population

EARLY = 1000.0  # counts before the first observation, at first
LOG_LAG = (2.0, 1.0)  # log τ ~ N(2, 1) in wittawatj/k2abc, from which p(τ) starts


class BlowflySimulator(Simulator):
    """p_θ(τ, e, ε, x) of series (T,) of counts.

    Latents: ``lag`` τ (N,), int64, from 1 to ``lags``; ``births`` e and ``survival`` ε, each (N, T).

    Args:
        event_shape: (T,), from the data module.
        lags: the longest lag, in sampling intervals.
        initial: parameters at first.

    Raises:
        UserError: the observations are no series longer than the longest lag, or a parameter is not positive.
    """

    log_observation_noise: nn.Parameter

    def __init__(self, event_shape: tuple[int, ...] | None, lags: int, initial: Population) -> None:
        super().__init__()
        if event_shape is None or len(event_shape) != 1:
            raise UserError(
                f"the data have observations of shape {event_shape}, but a population model takes series of counts "
                "(T,); use Blowfly or BlowflySimulated."
            )
        if not 1 <= lags < event_shape[0]:
            raise UserError(
                f"model.lags is {lags}, for series of {event_shape[0]} counts; give at least 1 and less than the "
                "series' length."
            )
        initial.check("model.initial")
        self.length, self.lags = event_shape[0], lags
        for name in NAMES:
            setattr(self, f"log_{name}", nn.Parameter(torch.tensor(float(getattr(initial, name))).log()))
        self.log_early = nn.Parameter(torch.full((lags,), EARLY).log())
        log_lag = torch.arange(1, lags + 1).log()
        self.lag_logits = nn.Parameter(-0.5 * ((log_lag - LOG_LAG[0]) / LOG_LAG[1]).square() - log_lag)

    def value(self, name: str) -> Tensor:
        """A parameter by its name in :class:`Population`, a scalar."""
        return getattr(self, f"log_{name}").exp()

    @torch.no_grad()
    def simulate(self, count: int) -> tuple[Latents, Tensor]:
        """(τ, e, ε) and x, step by step from the early population; series float (count, T)."""
        weights = self.lag_logits.softmax(0)
        lag = 1 + torch.multinomial(weights.nan_to_num(1.0), count, replacement=True)
        births, survival = (gamma(self.value(name), (count, self.length)) for name in ("birth_noise", "survival_noise"))
        noise = (self.value("observation_noise") * torch.randn_like(births)).exp()
        # Time first: each step reads and writes whole rows of memory.
        path = self.log_early.new_empty(self.lags + self.length, count)
        path[: self.lags] = self.log_early.exp()[:, None]
        rows = torch.arange(count, device=lag.device)
        for time in range(self.length):
            now = self.lags + time
            state = self.state(path[now - lag, rows], path[now - 1], births[:, time], survival[:, time])
            path[now] = state * noise[:, time]
        return {"lag": lag, "births": births, "survival": survival}, path[self.lags :].T.contiguous()

    def state(self, delayed: Tensor, last: Tensor, births: Tensor, survival: Tensor) -> Tensor:
        """z_t from x_{t−τ}, x_{t−1}, e_t and ε_t, all of one shape."""
        laid = self.value("births") * delayed * (-delayed / self.value("capacity")).exp()
        return (laid * births + last * (-self.value("mortality") * survival).exp()).clamp_min(LEAST)

    def contexts(self, x: Tensor, lag: Tensor) -> tuple[Tensor, Tensor]:
        """x_{t−τ} and x_{t−1} of series (N, T) and lags (N,), each (N, T); before the series, the early population."""
        path = torch.cat([self.log_early.exp().expand(len(x), -1), x], dim=1)
        delayed = torch.arange(self.lags, path.shape[1], device=x.device) - lag[:, None]
        return path.gather(1, delayed), path[:, self.lags - 1 : -1]

    def log_transition(self, delayed: Tensor, last: Tensor, births: Tensor, survival: Tensor, x: Tensor) -> Tensor:
        """log p_θ(e_t, ε_t, x_t | x_{t−τ}, x_{t−1}), all of one shape."""
        scale = self.log_observation_noise
        residual = (x.log() - self.state(delayed, last, births, survival).log()) * (-scale).exp()
        log_observation = -0.5 * (residual.square() + LOG_2_PI) - scale - x.log()
        return (
            log_observation
            + log_gamma(births, self.value("birth_noise"))
            + log_gamma(survival, self.value("survival_noise"))
        )

    def log_joint(self, z: Latents, x: Tensor) -> Tensor:
        """log p(τ) + Σ_t log p(e_t, ε_t, x_t | before), shape (N,), of all time steps in one pass."""
        assert isinstance(z, dict)
        terms = self.log_transition(*self.contexts(x, z["lag"]), z["births"], z["survival"], x)
        return self.log_lags[z["lag"] - 1] + terms.sum(1)

    @property
    def log_lags(self) -> Tensor:
        """log p(τ = k) for k = 1 … lags."""
        return self.lag_logits.log_softmax(0)

    def statistics(self, z: Latents) -> Latents:
        """The indicators 1[τ = k], (N, lags), whose posterior means are p(τ = k|x)."""
        assert isinstance(z, dict)
        return nn.functional.one_hot(z["lag"] - 1, self.lags).to(self.lag_logits.dtype)

    def watched(self) -> dict[str, Tensor]:
        """The parameters in their own units."""
        return {name: self.value(name) for name in NAMES}


def gamma(scale: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draws from the gamma distribution of mean 1 and the given standard deviation, never 0."""
    concentration = scale.detach().square().reciprocal().nan_to_num(1.0)  # with a NaN torch would draw for ever
    draws = torch.distributions.Gamma(concentration, concentration).sample(shape)
    return draws.clamp_min(torch.finfo(draws.dtype).tiny)


def log_gamma(value: Tensor, scale: Tensor) -> Tensor:
    """log density of the gamma distribution of mean 1 and the given standard deviation, at values of any shape."""
    concentration = scale.square().reciprocal()
    constant = concentration * concentration.log() - torch.lgamma(concentration)
    return constant + (concentration - 1) * value.log() - concentration * value


class BlowflyModel(AmortisedLearning):
    """A population with a delay, learnt from one series of counts.

    What is maximised depends on what the kernel sees of x. On the series itself Ĵ is an estimate for log p_θ(x*), but
    180 dimensions are beyond a regression on some thousand samples. On :class:`PopulationStatistics` s it is one for
    log p_θ(s(x*)): the conditional expectation of ∇_θ log p_θ(z, x) given s(x) is ∇_θ log p_θ(s(x)). That likelihood
    has no form, and none is assumed, as a synthetic likelihood would; it asks for simulations that are like the data
    in the long run, where the likelihood of x asks for good predictions one step ahead.

    Args:
        lags: the longest lag, in sampling intervals.
        learning: how it is trained.
        initial: parameters at first.
        event_shape: (T,); comes from the data module.
    """

    def __init__(
        self,
        lags: int = 20,
        learning: Learning = Learning(),  # noqa: B008 (frozen)
        initial: Population = Population(),  # noqa: B008 (frozen)
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(BlowflySimulator(event_shape, lags, initial), learning)
        self.save_hyperparameters()

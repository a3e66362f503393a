"""The estimator against the truth: the identity that makes it cheap, consistency, and what sleep-centring buys."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from models import LearntPrior, LinearGaussian, flat_gradient
from runs import trainer
from sklearn.kernel_ridge import KernelRidge as Oracle
from torch.utils.data import DataLoader

from lightning_alws.errors import UserError
from lightning_alws.generative import LatentVariableModel, PlugIn
from lightning_alws.kernels import GaussianKernel
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.mean_matching import ReweightedRidge, mean_matching_weights
from lightning_alws.networks import LinearFeatures
from lightning_alws.objectives import KernelObjective, LogJointError, NaturalParameterError
from lightning_alws.penalties import GradualPenalty, NormalPenalty
from lightning_alws.posterior import project_to_simplex
from lightning_alws.regression import KernelRidge


def learner(model: LatentVariableModel, ridge: float = 1e-2, **settings) -> AmortisedLearning:
    """A float64 module in no trainer; its log goes nowhere."""
    settings.setdefault("regression", functools.partial(KernelRidge, ridge=ridge))
    module = AmortisedLearning(model, Learning(**settings)).double()
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize("mode", ["plug-in", "direct"])
@pytest.mark.parametrize("make", [LinearGaussian, LearntPrior])
def test_gradient_of_the_prediction_is_the_regression_of_gradients(make, mode: str) -> None:
    """∇_θ Ĵ(x*) = Σ_n W_n* ∇_θ log p_θ(z_n, ·), with scikit-learn's weights and one gradient for each sample."""
    model = make()
    module = learner(model, sleep_samples=25, mode=mode)
    sleep, _ = module.sleep()
    x = model.sleep(3).x
    ours = [flat_gradient(value, model) for value in module.wake(module.regress(sleep), sleep, x)]

    gamma = float(0.5 * torch.exp(-2 * module.regression.kernel.log_bandwidth))
    oracle = Oracle(alpha=float(module.regression.ridge), kernel="rbf", gamma=gamma)
    for query, gradient in zip(x, ours, strict=True):
        per_sample = []
        for n in range(len(sleep)):
            z = sleep.z[n : n + 1]
            target = query[None] if mode == "plug-in" else sleep.x[n : n + 1]
            log_joint = model.likelihood(z).log_prob(target)
            if model.prior_is_learnt:
                log_joint = log_joint + model.log_prior(z)
            per_sample.append(flat_gradient(log_joint.sum(), model))
        reference = oracle.fit(sleep.x, torch.stack(per_sample)).predict(query[None])[0]
        torch.testing.assert_close(gradient, torch.from_numpy(reference), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["plug-in", pytest.param("direct", marks=pytest.mark.slow)])
def test_converges_to_the_exact_gradient(mode: str) -> None:
    """RMS error of ∇_θ Ĵ(x) over x ~ p_θ, relative to the RMS exact gradient, falls with N."""
    model = LinearGaussian(latent_dim=2, observed_dim=4, log_scale=0.0)
    torch.manual_seed(1)
    x = model.sleep(40).x
    exact = torch.stack([flat_gradient(value, model) for value in model.log_marginal(x)])
    errors = []
    for count, repeats in ((250, 6), (1000, 3), (4000, 1)):
        module = learner(model, sleep_samples=count, ridge=0.1, mode=mode)
        differences = []
        for _ in range(repeats):
            sleep, _ = module.sleep()
            values = module.wake(module.regress(sleep), sleep, x)
            differences.append(torch.stack([flat_gradient(value, model) for value in values]) - exact)
        errors.append(float(torch.stack(differences).square().mean().sqrt() / exact.square().mean().sqrt()))
    assert errors[0] > 1.5 * errors[1] > 1.5 * 1.5 * errors[2]
    assert errors[2] < 0.25, errors


@pytest.mark.slow
def test_centred_gradient_has_mean_zero_where_the_model_fits_and_the_plain_one_has_not() -> None:
    """Data from the model at the same θ, small N, coarse kernel: plain is biased, centred is not."""
    means = {}
    for centring in (0.0, 1.0):
        model = LinearGaussian()
        module = learner(model, sleep_samples=20, held_out=50, ridge=1.0, centring=centring)
        torch.manual_seed(2)
        gradients = torch.stack([flat_gradient(module.training_step(model.sleep(50).x, 0), model) for _ in range(1500)])
        means[centring] = gradients.mean(0) / (gradients.std(0) / len(gradients) ** 0.5)
    assert means[0.0].abs().max() > 10  # standard errors
    assert means[1.0].abs().max() < 4


def test_importance_weights_follow_the_wake_batch_in_training() -> None:
    """The whole step against the weighted regression written out."""
    model = LinearGaussian()
    module = learner(model, sleep_samples=50, regression=functools.partial(ReweightedRidge, ridge=0.1))
    sleep, _ = module.sleep()
    module.sleep = lambda: (sleep, sleep[:0])  # type: ignore[method-assign]
    x = model.sleep(10).x[:5] + 1
    kernel = module.regression.kernel
    gram, cross = kernel.gram(kernel.features(sleep.x)), kernel.cross(kernel.features(sleep.x), kernel.features(x))
    importance = mean_matching_weights(gram, cross)
    kept = importance > 0
    assert not kept.all()
    matrix = (gram + module.regression.ridge * torch.diag(1 / importance))[kept][:, kept]
    weights = torch.zeros_like(cross).index_put((kept,), torch.linalg.solve(matrix, cross[kept]))
    torch.testing.assert_close(module.training_step(x, 0), -sleep.joint.expectation(weights, x).mean())


def test_centring_reaches_neither_kernel_nor_sleep_samples() -> None:
    model = LinearGaussian()
    module = learner(model, sleep_samples=30, centring=1.0)
    assert list(module.regression.parameters()) == []
    sleep, held_out = module.sleep()
    assert not sleep.x.requires_grad
    assert not held_out.z.requires_grad
    assert len(held_out) == 200


def test_a_share_of_the_centring_moves_the_gradient_by_that_share() -> None:
    """Between the plain gradient and the centred one of the same samples, in a straight line."""
    gradients = []
    for centring in (0.0, 0.3, 1.0):
        torch.manual_seed(3)  # the bandwidth is the median of samples
        model = LinearGaussian()
        module = learner(model, sleep_samples=20, held_out=10, ridge=1.0, centring=centring)
        loss = module.training_step(model.sleep(5).x + 1, 0)
        gradients.append(flat_gradient(loss, model))
    plain, some, whole = gradients
    assert (whole - plain).norm() > 0.1 * plain.norm()
    torch.testing.assert_close(some, plain + 0.3 * (whole - plain), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("centring", [-0.5, 1.5, float("nan")])
def test_a_share_of_the_centring_that_is_none_is_refused(centring: float) -> None:
    with pytest.raises(UserError, match=r"model\.learning\.centring is .*from 0 .* to 1"):
        learner(LinearGaussian(), centring=centring)


def test_held_out_samples_are_drawn_only_where_needed() -> None:
    assert Learning().held_out_drawn == 0
    assert Learning(centring=1.0).held_out_drawn == 200
    assert Learning(kernel_objective=LogJointError()).held_out_drawn == 200


class Generators(LinearGaussian):
    """Keeps how many samples pass through the generator, and whether they will pass backwards too."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[tuple[int, bool]] = []

    def likelihood(self, z):
        likelihood = super().likelihood(z)
        self.passes.append((len(z), likelihood.natural_parameters.requires_grad))
        return likelihood


def test_each_sample_passes_the_generator_once_and_none_goes_back_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    module = learner(Generators(), sleep_samples=30, held_out=7, kernel_objective=LogJointError(), centring=1.0)
    factorisations = []
    original = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda a: factorisations.append(1) or original(a))
    module.generative.passes.clear()
    module.training_step(torch.randn(5, 3, dtype=torch.float64), 0).backward()
    assert module.generative.passes == [(30, True), (7, False)]
    assert len(factorisations) == 1


@pytest.mark.parametrize("objective", [LogJointError(), NaturalParameterError()])
def test_adaptive_kernel_and_model_get_gradients_from_their_own_loss_alone(objective: KernelObjective) -> None:
    regression = functools.partial(
        KernelRidge, kernel=functools.partial(GaussianKernel, features=functools.partial(LinearFeatures, width=4))
    )
    model = LinearGaussian()
    module = learner(model, sleep_samples=40, regression=regression, kernel_objective=objective)
    sleep, held_out = module.sleep()
    fitted = module.regress(sleep)
    kernel_loss = objective(fitted.weights(held_out.x), sleep, held_out)
    assert torch.all(flat_gradient(kernel_loss, model) == 0)
    wake = module.wake(fitted, sleep, sleep.x[:5]).mean()
    assert torch.all(flat_gradient(wake, module.regression) == 0)
    module.training_step(sleep.x[:5], 0).backward()
    without = [
        name for name, parameter in module.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert without == []
    # A shift of all features changes no distance, so the features' bias alone may have a zero gradient.
    zero = [name for name, p in module.named_parameters() if not (p.grad != 0).any()]
    assert set(zero) <= {"regression.kernel.network.net.1.bias"}


def test_kernel_objective_gradient_matches_finite_differences() -> None:
    model = LinearGaussian()
    for objective in (LogJointError(), NaturalParameterError()):
        module = learner(model, sleep_samples=20, held_out=10, kernel_objective=objective)
        sleep, held_out = module.sleep()
        parameters = [*module.regression.parameters()]

        def loss() -> torch.Tensor:
            return objective(module.regress(sleep).weights(held_out.x), sleep, held_out)  # noqa: B023

        gradients = torch.autograd.grad(loss(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            step = 1e-6
            with torch.no_grad():
                parameter += step
                above = loss()
                parameter -= 2 * step
                below = loss()
                parameter += step
            torch.testing.assert_close(gradient, (above - below) / (2 * step), rtol=1e-5, atol=1e-7)


def test_natural_parameter_error_is_its_definition() -> None:
    model = LinearGaussian()
    module = learner(model, sleep_samples=30, held_out=20, kernel_objective=NaturalParameterError())
    sleep, held_out = module.sleep()
    weights = module.regress(sleep).weights(held_out.x)
    assert isinstance(sleep.joint, PlugIn)
    precision = torch.exp(-2 * model.log_scale)
    eta, eta_held = ((model.weight @ s.z.T).T * precision + model.bias * precision for s in (sleep, held_out))
    psi, psi_held = (s.joint.likelihood.log_normaliser for s in (sleep, held_out))

    def error(fitted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return (weights.T @ (fitted - fitted.mean()) - (truth - fitted.mean())).square().mean()

    reference = sum(error(eta[:, d], eta_held[:, d]) for d in range(3)) / sum(eta[:, d].var() for d in range(3))
    reference = reference + error(psi, psi_held) / psi.var()
    torch.testing.assert_close(NaturalParameterError()(weights, sleep, held_out), reference)


def test_vector_objective_of_weights_that_are_zero_is_two() -> None:
    """1 for η and 1 for Ψ, whatever their means: what predicting the mean everywhere costs."""
    module = learner(LinearGaussian(), sleep_samples=4000, held_out=4000, kernel_objective=NaturalParameterError())
    sleep, held_out = module.sleep()
    loss = NaturalParameterError()(torch.zeros(4000, 4000, dtype=torch.float64), sleep, held_out)
    assert float(loss) == pytest.approx(2, abs=0.15)


def test_vector_objective_refuses_the_direct_mode_and_names_the_other() -> None:
    module = learner(LinearGaussian(), sleep_samples=20, kernel_objective=NaturalParameterError(), mode="direct")
    with pytest.raises(UserError, match="LogJointError"):
        module.training_step(torch.randn(4, 3, dtype=torch.float64), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sleep_samples": 1}, "sleep_samples is 1"),
        ({"held_out": 0}, "held_out is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"final_learning_rate": 0.0}, "final_learning_rate is 0.0"),
        ({"averaging": 1.0}, "averaging is 1"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        AmortisedLearning(LinearGaussian(), Learning(**settings))


class Rates(pl.Callback):
    """Notes the rate of every parameter group in each step."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.seen.append([group["lr"] for group in optimizer.param_groups])


def fit_rates(folder, steps: int, ckpt_path=None, **settings) -> tuple[list[list[float]], Path]:
    rates = Rates()
    module = learner(LinearGaussian(), sleep_samples=20, held_out=10, **settings)
    loader = DataLoader(torch.randn(8, 3).double(), batch_size=4)
    run = trainer(folder, [rates], max_steps=steps)
    run.fit(module, loader, ckpt_path=ckpt_path)
    run.save_checkpoint(folder / f"{steps}.ckpt")
    return rates.seen, folder / f"{steps}.ckpt"


def test_learning_rate_falls_geometrically_to_its_final_value_and_the_kernels_does_not(tmp_path) -> None:
    settings = {"learning_rate": 0.1, "kernel_learning_rate": 0.02, "kernel_objective": LogJointError()}
    seen, _ = fit_rates(tmp_path, 5, final_learning_rate=0.001, **settings)
    expected = [[0.1 * 10 ** (-step / 2), 0.02] for step in range(5)]
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(expected))
    assert fit_rates(tmp_path, 3, **settings)[0] == [[0.1, 0.02]] * 3


@pytest.mark.filterwarnings("ignore:model.learning.final_learning_rate is now reached")
def test_a_resumed_run_goes_on_with_the_falling_rate(tmp_path) -> None:
    """The rate follows from the step and the last step, so that a run may also be prolonged."""
    settings = {"learning_rate": 0.1, "final_learning_rate": 0.001}
    first, checkpoint = fit_rates(tmp_path, 2, **settings)
    assert [rate for (rate,) in first] == pytest.approx([0.1, 0.001])
    second, _ = fit_rates(tmp_path, 5, ckpt_path=checkpoint, **settings)
    # Resumed after two steps: the first rate was already set when the run was cut.
    assert [rate for (rate,) in second][1:] == pytest.approx([0.1 * 10 ** (-step / 2) for step in (3, 4)])


def test_another_last_step_of_a_falling_rate_is_said(tmp_path) -> None:
    settings = {"learning_rate": 0.1, "final_learning_rate": 0.001}
    _, checkpoint = fit_rates(tmp_path, 2, **settings)
    with pytest.warns(UserWarning, match="is now reached in step 5, but was to be in step 2 when .* the rate jumps"):
        fit_rates(tmp_path, 5, ckpt_path=checkpoint, **settings)


def test_a_falling_rate_needs_a_last_step(tmp_path) -> None:
    module = learner(LinearGaussian(), sleep_samples=20, final_learning_rate=1e-4)
    loader = DataLoader(torch.randn(8, 3).double(), batch_size=4)
    with pytest.raises(UserError, match="set trainer.max_steps"):
        trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(module, loader)


def test_posterior_expectation_is_the_exact_posterior_mean() -> None:
    """E[z|x] of a linear-Gaussian model, by the weights alone, within the regression's error."""
    model = LinearGaussian()
    module = learner(model, sleep_samples=4000, ridge=1e-2)
    x = model.sleep(50).x
    posterior = module.amortised_posterior(x)
    covariance = model.weight @ model.weight.T + torch.eye(3) * torch.exp(2 * model.log_scale)
    exact = torch.linalg.solve(covariance, (x - model.bias).T).T @ model.weight
    error = (posterior.expectation(posterior.sleep.z) - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert float(error) < 0.15
    projected = posterior.projected()
    assert (projected.weights >= 0).all()
    assert (
        float((projected.expectation(posterior.sleep.z) - exact).square().mean().sqrt() / exact.square().mean().sqrt())
        < 0.5
    )
    assert (posterior.negative_mass > 0).any()


def test_projection_onto_the_simplex_is_the_nearest_point() -> None:
    """Against the optimality conditions: w = max(v − s, 0) with Σw = 1, and points of the simplex are kept."""
    vectors = torch.randn(30, 5, dtype=torch.float64)
    projected = project_to_simplex(vectors)
    torch.testing.assert_close(projected.sum(0), torch.ones(5, dtype=torch.float64))
    for v, w in zip(vectors.T, projected.T, strict=True):
        shift = (v - w)[w > 0]
        torch.testing.assert_close(shift, shift[:1].expand_as(shift))
        assert (v[w == 0] <= shift[0] + 1e-12).all()
    torch.testing.assert_close(project_to_simplex(projected), projected)


class Sizes(pl.LightningDataModule):
    """Data of which only the number matters."""

    sizes = {"train": 8}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(8, 3, dtype=torch.float64), batch_size=4)  # type: ignore[arg-type]


def test_penalties_are_divided_by_the_number_of_data_and_not_by_anything_else(tmp_path) -> None:
    """The gradient of a step with a penalty, less that of one without: that of −log p(θ)/n exactly."""
    gradients = []
    penalty = NormalPenalty("weight", scale=0.5)
    for penalties in ([], [penalty]):
        torch.manual_seed(0)  # the bandwidth's median
        module = learner(LinearGaussian(), sleep_samples=20, penalties=penalties, centring=1.0, learning_rate=1e-9)
        seen: list[torch.Tensor] = []
        module.on_before_optimizer_step = lambda _, m=module, s=seen: s.append(m.generative.weight.grad.clone())
        trainer(tmp_path, max_steps=1, precision="64-true").fit(module, datamodule=Sizes())
        gradients.append(seen[0])
    weight = LinearGaussian().weight
    torch.testing.assert_close(gradients[1] - gradients[0], weight.detach() / 0.25 / 8)


def test_a_gradual_penalty_sets_in_at_its_step_also_in_a_resumed_run(tmp_path) -> None:
    """Its strength follows the global step: resumed after one step, the second and third are those of an uncut run."""
    penalty = GradualPenalty(NormalPenalty("weight", scale=0.01), after=1, steps=2)

    def weights(name: str, steps: int, penalties: list, ckpt_path=None) -> torch.Tensor:
        torch.manual_seed(0)  # the bandwidth's median
        module = learner(LinearGaussian(), sleep_samples=20, penalties=penalties)
        run = trainer(tmp_path, max_steps=steps, max_epochs=-1, precision="64-true")
        run.fit(module, datamodule=Sizes(), ckpt_path=ckpt_path)
        run.save_checkpoint(tmp_path / name)
        return module.generative.weight.detach()

    torch.testing.assert_close(weights("one", 1, [penalty]), weights("none", 1, []), rtol=0, atol=0)
    uncut = weights("uncut", 3, [penalty])
    assert not torch.equal(uncut, weights("without", 3, []))
    torch.testing.assert_close(weights("resumed", 3, [penalty], tmp_path / "one"), uncut, rtol=0, atol=0)


def test_penalties_need_the_number_of_data(tmp_path) -> None:
    module = learner(LinearGaussian(), sleep_samples=20, penalties=[NormalPenalty("weight", scale=1.0)])
    with pytest.raises(UserError, match="the data module has no attribute 'sizes'"):
        trainer(tmp_path, max_steps=1).fit(module, train_dataloaders=Sizes().train_dataloader())

"""The figure of the membrane: spikes are found where they are, numbers are those of the model, a recording works."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch
from runs import Numbers, image_model, trainer

from callbacks import voltage_figure
from callbacks.voltage_figure import VoltageFigure, spike_times
from datamodules import VoltageTrace
from lightning_alws.errors import UserError
from lightning_alws.hodgkin_huxley import NAMES, Membrane
from lightning_alws.learning import Learning
from lightning_alws.models import HodgkinHuxleyModel
from lightning_alws.models.hodgkin_huxley import HodgkinHuxley
from lightning_alws.regression import KernelRidge
from lightning_alws.standard_kernel import StandardKernel
from lightning_alws.trace_features import TraceFeatures


def model(data: VoltageTrace, initial: Membrane) -> HodgkinHuxleyModel:
    kernel = functools.partial(StandardKernel, features=functools.partial(TraceFeatures, window=10))
    learning = Learning(
        sleep_samples=60,
        held_out=30,
        mode="direct",
        centring=1.0,
        regression=functools.partial(KernelRidge, kernel=kernel),
    )
    return HodgkinHuxleyModel(
        learning,
        initial,
        event_shape=data.event_shape,
        input_current=data.input_current,
        time_step=data.time_step,
    )


def test_spikes_are_peaks_above_zero_that_noise_does_not_double() -> None:
    time = torch.arange(1, 1001) * 0.05
    trace = torch.full((1000,), -65.0)
    for at in (10.0, 20.0, 33.0):
        trace += 110 * torch.exp(-0.5 * ((time - at) / 0.4).square())
    trace += 40 * torch.exp(-0.5 * ((time - 42) / 0.4).square())  # no spike: it ends at −25 mV
    assert spike_times(trace, 0.05) == pytest.approx([10, 20, 33], abs=0.051)
    assert spike_times(trace + torch.randn(1000), 0.05) == pytest.approx([10, 20, 33], abs=0.3)
    assert len(spike_times(torch.full((50,), math.nan), 0.05)) == 0


@pytest.mark.slow
def test_a_run_from_the_truth(tmp_path: Path) -> None:
    data = VoltageTrace()
    module = model(data, Membrane())
    run = trainer(tmp_path, [VoltageFigure(profile=False)], max_steps=2, limit_val_batches=0)
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)
    logged = {name.removeprefix("test/"): float(value) for name, value in run.callback_metrics.items()}
    assert logged["within_10_percent"] == 10
    for name in NAMES:
        assert logged[name] == pytest.approx(getattr(module.generative.membrane, name), rel=1e-5)
        assert logged[f"{name}_error"] == pytest.approx(abs(logged[name] / getattr(data.truth, name) - 1), abs=1e-5)
    assert logged["spikes_observed"] == 9
    assert logged["spikes_simulated"] == pytest.approx(9, abs=0.5)
    assert 0 < logged["spike_time_sd"] < 2
    assert logged["spike_time_error"] < 3
    assert (tmp_path / "figures" / "test.png").is_file()


def test_what_one_trace_fixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learnt constants of which two miss the truth: their profiles alone are looked at."""
    monkeypatch.setattr(voltage_figure, "CLIMB", 1)
    data = VoltageTrace()
    data.setup()
    short = data.observations("test")[:, :150]
    monkeypatch.setattr(data, "observations", lambda split: short)
    data.input_current = data.input_current[:150]
    learnt = HodgkinHuxley((150,), data.input_current, data.time_step, Membrane(leak_conductance=0.12, capacitance=1.2))
    numbers = VoltageFigure()._likelihoods(learnt, data)
    drops = {"leak_conductance_drop", "leak_conductance_drop_truth", "capacitance_drop", "capacitance_drop_truth"}
    assert set(numbers) == {"log_likelihood", "log_likelihood_truth", "log_likelihood_ml"} | drops
    assert numbers["log_likelihood_truth"] > numbers["log_likelihood"]
    assert numbers["log_likelihood_ml"] >= numbers["log_likelihood_truth"]


@pytest.mark.slow
def test_a_recording_has_no_truth(tmp_path: Path) -> None:
    file = tmp_path / "cell.csv"
    rows = [f"{0.05 * t:.2f},{-65 + float(torch.randn(()))},0" for t in range(60)]
    file.write_text("\n".join(["time,voltage,current", *rows]))
    data = VoltageTrace(str(file))
    module = model(data, Membrane())
    run = trainer(tmp_path, [VoltageFigure()], max_steps=2, limit_val_batches=0)
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)
    assert "test/within_10_percent" not in run.callback_metrics
    assert "test/capacitance" in run.callback_metrics
    assert (tmp_path / "figures" / "test.png").is_file()


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="VoltageFigure, which is made for HodgkinHuxleyModel"):
        trainer(tmp_path, [VoltageFigure()]).fit(image_model(), datamodule=Numbers())

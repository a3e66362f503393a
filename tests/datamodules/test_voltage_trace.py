"""The simulated trace, and a user's recording: what is read, and what is wrong with it in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from callbacks.voltage_figure import spike_times
from datamodules import VoltageTrace
from lightning_alws.errors import UserError
from lightning_alws.hodgkin_huxley import Membrane


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_simulated_trace_is_the_published_one(seed: int) -> None:
    """Nine spikes between about −70 and 50 mV, none before the current is on and hardly one after."""
    data = VoltageTrace(seed=seed)
    data.setup()
    (x,) = data.observations("train")
    assert x.dtype == torch.float32
    assert data.event_shape == tuple(x.shape) == (1000,)
    spikes = spike_times(x, data.time_step)
    assert len(spikes) == 9
    assert 5 < spikes[0] < spikes[-1] < 47
    assert 45 < float(x.max()) < 60
    assert -80 < float(x.min()) < -65
    assert float((x - data.path).std()) == pytest.approx(1.0, abs=0.1)
    current = torch.tensor(data.input_current)
    for part, level in ((slice(0, 100), 0.0), (slice(100, 900), 10.0), (slice(900, 1000), 0.0)):
        assert float(current[part].mean()) == pytest.approx(level, abs=0.7)
        assert float(current[part].std()) == pytest.approx(2.0, abs=0.5)
    assert all(torch.equal(data.observations(split)[0], x) for split in ("val", "test"))
    assert next(iter(data.train_dataloader())).shape == (1, 1000)


def test_the_seed_and_the_truth_make_the_trace() -> None:
    def trace(**arguments: object) -> torch.Tensor:
        return VoltageTrace(**arguments).series()  # type: ignore[arg-type]

    assert torch.equal(trace(seed=3), trace(seed=3))
    assert not torch.equal(trace(seed=3), trace(seed=4))
    assert VoltageTrace(seed=3).input_current == VoltageTrace(seed=3, truth=Membrane(capacitance=1.5)).input_current
    assert not torch.equal(trace(), trace(truth=Membrane(capacitance=1.5)))


def write(folder: Path, text: str) -> str:
    path = folder / "cell7.csv"
    path.write_text(text)
    return str(path)


def test_a_recording_is_read_by_the_names_of_its_columns(tmp_path: Path) -> None:
    data = VoltageTrace(write(tmp_path, "Time,current,voltage\n10.0,0,-65\n10.1,1.5,-64.5\n10.2,2,-64\n"))
    data.setup()
    assert data.truth is None
    assert data.name == "VoltageTrace cell7"
    assert data.time_step == pytest.approx(0.1)
    assert data.input_current == [0, 1.5, 2]
    assert data.event_shape == (3,)
    assert torch.equal(data.observations("test"), torch.tensor([[-65, -64.5, -64]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,voltage\n0,-65\n0.1,-65\n", "no column 'current'"),
        ("time,voltage,current\n0,-65,0\n0.1,nan,0\n", "column 'voltage' holds 'nan' in row 2"),
        ("time,voltage,current\n0,-65,0\n0.1,-65,\n", "column 'current' holds '' in row 2"),
        ("time,voltage,current\n0,-65,0\n", "one row only"),
        ("time,voltage,current\n0,-65,0\n0.1,-65,0\n0.2,-65,0\n0.4,-65,0\n", "0.1 ms but 0.2 ms before row 4"),
        ("time,voltage,current\n0.2,-65,0\n0.1,-65,0\n0.0,-65,0\n", "from 0.2 to 0.1 ms in row 2; .* in order of time"),
        ("time,voltage,current\n0,-65,0\n0.00005,-64,0\n", "time steps are 5e-05 ms, as if in seconds"),
        ("time,voltage,current\n0,-0.065,0\n0.05,-0.064,0\n", "voltages all are between -1 and 1 mV, as if in volts"),
        ("time,voltage,current\n0,-65,0\n0.05,-65000,0\n", "voltage in row 2 is -65000 mV, as if in µV; give mV"),
    ],
)
def test_a_broken_recording_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        VoltageTrace(write(tmp_path, text))


def test_wrong_constants_are_named() -> None:
    with pytest.raises(UserError, match="data.truth.sodium_reversal is -50.0, but must be positive"):
        VoltageTrace(truth=Membrane(sodium_reversal=-50.0))
    with pytest.raises(UserError, match="runs away at .* ms; give constants at which a time step"):
        VoltageTrace(truth=Membrane(capacitance=0.005))

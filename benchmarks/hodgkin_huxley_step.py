"""Seconds of one Hodgkin-Huxley step: drawing the paths, log p of them with the gates recomputed, its gradient.

    python benchmarks/hodgkin_huxley_step.py [SLEEP_SAMPLES] [THREADS]

prints the median of seven for 1 000 time steps in float32, by the clock and by the processors' time, and how far
value and gradient are from float64's on the same paths. The processor should have nothing else to do.
"""

from __future__ import annotations

import copy
import sys
import time

import torch
from torch import Tensor

from datamodules.voltage_trace import VoltageTrace
from lightning_alws.hodgkin_huxley import Membrane
from lightning_alws.models.hodgkin_huxley import HodgkinHuxley

REPEATS = 7


def now() -> Tensor:
    """Wall clock and the processors' time of this process, in seconds."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def gradient(model: HodgkinHuxley, values: Tensor) -> Tensor:
    """∇_θ of the mean of log p, flattened."""
    parameters = [p for name, p in model.named_parameters() if name != "log_observation_noise"]
    return torch.cat([part.flatten() for part in torch.autograd.grad(values.mean(), parameters)])


def main() -> None:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else 2)
    data = VoltageTrace()
    model = HodgkinHuxley(data.event_shape, data.input_current, data.time_step, Membrane())
    seconds: dict[str, list[Tensor]] = {"paths": [], "log p": [], "gradient": []}
    for _ in range(REPEATS):
        marks = [now()]
        z = model.sample_prior(count)
        marks.append(now())
        values = model.log_prior(z)
        marks.append(now())
        single = gradient(model, values)
        marks.append(now())
        for part, before, after in zip(seconds, marks, marks[1:], strict=False):
            seconds[part].append(after - before)
    print(f"N = {count}, T = {len(model.current)}, {torch.get_num_threads()} threads, median of {REPEATS}")
    print(f"{'':10} {'wall':>7} {'processor':>9}")
    seconds["together"] = [sum(parts) for parts in zip(*seconds.values(), strict=True)]  # type: ignore[misc]
    for part, times in seconds.items():
        wall, processor = torch.stack(times).median(0).values.tolist()
        print(f"{part:10} {wall:5.3f} s {processor:7.3f} s")
    double = copy.deepcopy(model).double()
    reference = double.log_prior(z.double())
    print(f"largest error of log p beside float64: {float((values - reference).detach().abs().max()):.1e} nats")
    exact = gradient(double, reference)
    print(f"error of the gradient, of its length: {float((single - exact).norm() / exact.norm()):.1e}")


if __name__ == "__main__":
    main()

"""Series of the dynamical data sets: their laws, their seeds, and a user's file in their place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import LinearDynamicsData, Sinusoid
from datamodules.sinusoid import BumpOscillator
from lightning_alws.errors import UserError


def write(folder: Path, rows: int, columns: str = "time,a,b", broken: str | None = None) -> str:
    path = folder / "series.csv"
    lines = [f"{t},{math.sin(t / 3):.4f},{5 + 2 * math.cos(t / 4):.4f}" for t in range(rows)]
    if broken is not None:
        lines[1] = broken
    path.write_text("\n".join([columns, *lines]))
    return str(path)


def test_linear_series_have_the_moments_of_their_parameters() -> None:
    data = LinearDynamicsData(steps=4, train_size=40_000)
    data.setup()
    truth, x = data.truth, data.observations("train").double()
    assert truth is not None
    assert x.shape[1:] == data.event_shape == (4, 3)
    mean, covariance = truth["initial_mean"], truth["initial_scale"].square().diag()
    for t in range(4):
        noise = truth["observation_scale"].square().diag()
        seen = truth["loadings"] @ covariance @ truth["loadings"].T + noise
        torch.testing.assert_close(x[:, t].mean(0), truth["loadings"] @ mean, rtol=0, atol=0.04)
        torch.testing.assert_close(x[:, t].T.cov(), seen, rtol=0.03, atol=0.03)
        mean = truth["dynamics"] @ mean
        covariance = truth["dynamics"] @ covariance @ truth["dynamics"].T + truth["process_scale"].square().diag()


@pytest.mark.parametrize("make", [LinearDynamicsData, Sinusoid])
def test_series_follow_the_seed_and_leave_the_global_generator_alone(make: Any) -> None:
    before, drawn = torch.get_rng_state(), []
    for seed in (1, 1, 2):
        data = make(seed=seed)
        data.setup()
        drawn.append(data.observations("train"))
    assert drawn[0].dtype == torch.float32
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_oscillator_turns_by_a_twelfth_on_its_limit_cycle() -> None:
    true = BumpOscillator()
    z = torch.tensor([[0.3, 0.1], [1.5, -0.4]], dtype=torch.float64)
    for _ in range(200):
        before, z = z, true.next_state(z)
    torch.testing.assert_close(z.norm(dim=1), torch.full((2,), 0.924).double(), rtol=0, atol=5e-4)
    angle = torch.atan2(z[:, 1], z[:, 0]) - torch.atan2(before[:, 1], before[:, 0])
    torch.testing.assert_close(angle.remainder(2 * math.pi), torch.full((2,), math.pi / 6).double())
    picture = true.picture(z)
    assert picture.shape == (2, 20)
    pixel = 7
    distance = z[0, 0] - (-1.5 + 3 * pixel / 19)
    assert float(picture[0, pixel]) == pytest.approx(math.exp(-0.5 * float(distance / 0.3) ** 2), rel=1e-5)


def test_sinusoid_is_its_states_seen_through_noise() -> None:
    data = Sinusoid(sequences=200)
    data.setup()
    true, z, x = BumpOscillator(), data.states(), data.observations("val")
    assert x.shape[1:] == data.event_shape == (30, 20)
    assert float((x - true.picture(z)).std()) == pytest.approx(0.05, rel=0.01)
    assert float((z[:, 1:] - true.next_state(z[:, :-1])).std()) == pytest.approx(0.1, rel=0.02)
    assert float(z[:, 0].mean(0).norm()) == pytest.approx(float(true.next_state(torch.tensor([0.8, 0.0])).norm()), 0.05)


def test_a_users_series_is_cut_into_pieces(tmp_path: Path) -> None:
    path = write(tmp_path, 103)
    data = LinearDynamicsData(steps=10, path=path, columns=["b", "a"], validation_size=2, test_size=1)
    data.setup()
    assert data.sizes == {"train": 7, "val": 2, "test": 1}
    assert data.event_shape == (10, 2)
    assert data.truth is None
    train = data.observations("train").flatten(0, 1)
    torch.testing.assert_close(train.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(train.std(0), torch.ones(2))
    b = torch.tensor([5 + 2 * math.cos(t / 4) for t in range(100)])
    whole = torch.cat([data.observations(split).flatten(0, 1) for split in ("train", "val", "test")])[:, 0]
    torch.testing.assert_close(whole, (b - b[:70].mean()) / b[:70].std(), rtol=0, atol=1e-3)

    series = Sinusoid(2, 10, write(tmp_path, 20), ["a"])
    series.setup()
    assert series.observations("test").shape == (2, 10, 1)
    a = torch.tensor([math.sin(t / 3) for t in range(20)])
    torch.testing.assert_close(series.observations("test").flatten(), (a - a.mean()) / a.std(), rtol=0, atol=1e-3)


def test_the_units_of_a_series_are_of_no_account(tmp_path: Path) -> None:
    def observed(unit: float) -> torch.Tensor:
        path = tmp_path / f"{unit}.csv"
        path.write_text("\n".join(["a", *(f"{unit * (40 + math.sin(t / 3)):.12g}" for t in range(20))]))
        data = Sinusoid(2, 10, str(path), ["a"])
        data.setup()
        return data.observations("train")

    torch.testing.assert_close(observed(1e-9), observed(1e6), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "arguments", "rows", "message"),
    [
        (LinearDynamicsData, {"steps": 1}, None, r"data\.steps is 1"),
        (LinearDynamicsData, {"train_size": 0}, None, r"data\.train_size is 0"),
        (Sinusoid, {"sequences": 0}, None, r"data\.sequences is 0"),
        (Sinusoid, {"columns": None}, 20, r"data\.columns names none"),
        (LinearDynamicsData, {"columns": []}, 20, r"data\.columns names none"),
        (LinearDynamicsData, {"columns": ["c"]}, 20, "has no column 'c'"),
        (
            LinearDynamicsData,
            {"steps": 10, "validation_size": 1, "test_size": 1},
            29,
            r"29 rows are 2 pieces.*none for training; lower",
        ),
        (LinearDynamicsData, {"path": None}, 20, "data.columns is a, but there is no file"),
        (Sinusoid, {"path": None}, 20, "data.columns is a, but there is no file"),
        (LinearDynamicsData, {"columns": ["a", "a"]}, 20, "'a' is asked for twice"),
        (Sinusoid, {"sequences": 3, "steps": 10}, 29, r"29 rows, but data\.sequences 3 of data\.steps 10 need 30"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, make: Any, arguments: dict[str, Any], rows: int | None, message: str
) -> None:
    given = {"path": write(tmp_path, rows), "columns": ["a"]} if rows else {}
    with pytest.raises(UserError, match=message):
        make(**(given | arguments)).setup()


@pytest.mark.parametrize(("broken", "message"), [("1,nan,3", "column 'a' holds 'nan' in row 2"), ("1,,3", "row 2")])
@pytest.mark.parametrize("make", [LinearDynamicsData, Sinusoid])
def test_a_missing_number_is_named(tmp_path: Path, make: Any, broken: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(steps=10, path=write(tmp_path, 30, broken=broken), columns=["a"]).setup()


@pytest.mark.parametrize(
    ("make", "settings"),
    [(LinearDynamicsData, {"validation_size": 1, "test_size": 1}), (Sinusoid, {"sequences": 6})],
)
def test_a_constant_column_is_named(tmp_path: Path, make: Any, settings: dict[str, int]) -> None:
    path = tmp_path / "series.csv"
    path.write_text("\n".join(["a,b", *(f"0.1,{math.sin(t)}" for t in range(60))]))
    with pytest.raises(UserError, match="column 'a' never changes"):
        make(steps=10, path=str(path), columns=["b", "a"], **settings).setup()

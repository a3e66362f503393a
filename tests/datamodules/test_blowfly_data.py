"""Counts of blowflies from a file, from the network (a stub) and simulated; what is wrong is said in one sentence."""

import io
import os
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from datamodules import Blowfly, BlowflySimulated
from datamodules import blowfly as source
from lightning_alws.errors import UserError
from lightning_alws.population import Population, period

COUNTS = [100 + 7 * row for row in range(180)]
COLUMNS = "data = [ % day and count, 2002\n" + "\n".join(f"{2 * r + 2} {c}" for r, c in enumerate(COUNTS)) + "];\n"
ALONE = "% 180 counts\nx = [" + " ".join(f"{count}.0" for count in COUNTS) + "];"
TWO_LISTS = f"day = {[2 * r + 2 for r in range(180)]};\ncount = {COUNTS};"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr(source, "urlopen", refuse)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stub of the network that gives COLUMNS, whose checksum is expected; returns the addresses asked for."""
    asked: list[str] = []

    def answer(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        return io.BytesIO(COLUMNS.encode())

    monkeypatch.setattr(source, "urlopen", answer)
    monkeypatch.setattr(source, "CHECKSUM", source.checksum(COUNTS))
    return asked


@pytest.mark.parametrize("text", [COLUMNS, ALONE, TWO_LISTS])
def test_counts_are_found_in_any_arrangement(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "CHECKSUM", source.checksum(COUNTS))
    assert source.parse_counts(text) == COUNTS


def test_other_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="is not the 180 counts: of its 360 numbers"):
        source.parse_counts(COLUMNS)


def test_missing_counts_are_downloaded_once_and_kept(tmp_path: Path, served: list[str]) -> None:
    for _ in range(2):
        data = Blowfly(root=str(tmp_path / "new"))
        data.prepare_data()
        data.setup()
        assert data.observations("train")[0].tolist() == COUNTS
    assert served == [source.ADDRESS]
    assert (tmp_path / "new" / "blowfly.csv").read_text().startswith("day_index,count\n2,100\n4,107\n")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["blowfly.csv"]


def test_a_broken_download_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be downloaded .*no network in tests.*data.path"):
        Blowfly(root=str(tmp_path)).prepare_data()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="data.download to true"):
        Blowfly(root=str(tmp_path), download=False).prepare_data()


def test_the_root_comes_from_the_environment(tmp_path: Path, served: list[str], monkeypatch) -> None:
    monkeypatch.setenv("ALWS_DATA", str(tmp_path))
    Blowfly().prepare_data()
    assert (tmp_path / "blowfly.csv").is_file()


def test_the_file_at_hand_is_nicholsons() -> None:
    path = Path(os.environ.get("ALWS_DATA") or Path(__file__).parents[3] / "shared" / "data") / "blowfly.csv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    counts = Blowfly(root=str(path.parent)).series()[0]
    assert source.checksum([int(count) for count in counts]) == source.CHECKSUM
    assert (counts.min(), counts.max(), counts[0]) == (60, 8921, 948)
    assert float(period(counts[None])) == pytest.approx(19, abs=0.5)


def write(folder: Path, text: str) -> str:
    path = folder / "mine.csv"
    path.write_text(text)
    return str(path)


def test_a_series_of_ones_own(tmp_path: Path) -> None:
    data = Blowfly(path=write(tmp_path, "day,count\n" + "\n".join(f"{2 * row},{row + 1}" for row in range(30))))
    assert data.event_shape == (30,)
    data.prepare_data()
    data.setup()
    assert data.observations("test").tolist() == [[row + 1 for row in range(30)]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count\n3\n0\n", "a count of 0 in row 2, which has no logarithm"),
        ("count\n3\n-1.5\n", "a count of -1.5 in row 2"),
        ("count\n3\nnan\n", "holds 'nan' in row 2"),
        ("flies\n3\n", "no column 'count'"),
        ("day_index,count\n2,3\n4,5\n8,4\n10,4\n", "time steps are 2 days but 4 days before row 3"),
    ],
)
def test_a_series_that_cannot_be_learnt_from_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Blowfly(path=write(tmp_path, text)).series()


def test_a_file_of_another_length_in_the_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "blowfly.csv").write_text("count\n3\n4\n")
    with pytest.raises(UserError, match="holds 2 counts, but Nicholson's blowflies are 180"):
        Blowfly(root=str(tmp_path)).series()
    with pytest.raises(UserError, match="no file"):
        Blowfly(root=str(tmp_path / "none")).series()


@pytest.mark.parametrize("changed", [101, 100.5])
def test_other_counts_in_the_root_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: float) -> None:
    monkeypatch.setattr(source, "CHECKSUM", source.checksum(COUNTS))
    file = tmp_path / "blowfly.csv"
    file.write_text("count\n" + "\n".join(map(str, COUNTS)))
    assert Blowfly(root=str(tmp_path)).series().tolist() == [COUNTS]
    file.write_text("count\n" + "\n".join(map(str, [changed, *COUNTS[1:]])))
    with pytest.raises(UserError, match="holds 180 counts, but not Nicholson's"):
        Blowfly(root=str(tmp_path)).series()


def test_simulated_series_follow_the_seed_and_cycle() -> None:
    first, again, other = (BlowflySimulated(seed=seed).series() for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (1, 180)
    assert float(period(first)) == pytest.approx(20, abs=4)


def test_without_noise_a_simulated_series_is_the_recursion() -> None:
    truth = Population(5.0, 300.0, 0.5, 1e-4, 1e-4, 1e-4)
    x = BlowflySimulated(length=40, lag=3, truth=truth).series()[0].double()
    expected = 5.0 * x[:-3] * (-x[:-3] / 300).exp() + x[2:-1] * torch.tensor(-0.5).double().exp()
    torch.testing.assert_close(x[3:], expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 5, "lag": 5}, "data.lag is 5, for a series of data.length 5"),
        ({"lag": 0}, "data.lag is 0"),
        ({"truth": Population(mortality=0.0)}, "data.truth.mortality is 0"),
    ],
)
def test_mistakes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        BlowflySimulated(**arguments)

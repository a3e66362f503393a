"""The table's numbers, marks and notes, in its three forms, and the pictures beside it."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import fake_run
from PIL import Image

from callbacks.figure import to_png
from lightning_alws.comparison.chart import draw_chart
from lightning_alws.comparison.groups import Spread, group
from lightning_alws.comparison.records import find_runs, read_record
from lightning_alws.comparison.side_by_side import LARGEST, draw_samples
from lightning_alws.comparison.table import Table, better, choose_metrics
from lightning_alws.comparison.text import show

VAE = {"model.class_path": "lightning_alws.baselines.VAE"}


def table(folder: Path, metrics: list[str] | None = None) -> Table:
    records = [read_record(run) for run in find_runs([folder])]
    return Table(group(records), choose_metrics(records, metrics))


@pytest.fixture
def two(tmp_path: Path) -> Table:
    """AL with two seeds (log-likelihood −22.2 and −21.8), VAE with one (−23, FID of means 5)."""
    fake_run(tmp_path / "al-seed0", 0, {"test/log_likelihood": -22.2}, images=True)
    fake_run(tmp_path / "al-seed1", 1, {"test/log_likelihood": -21.8}, results={"training.seconds": 120.0}, images=True)
    fake_run(
        tmp_path / "vae",
        metrics={"test/log_likelihood": -23.0, "test/fid_means": 5.0},
        results={
            "training.steps": 12_000,
            "parameters": {"total": 20_000, "generative": 9_000},
            "peak_memory_mb": 512.4,
        },
        config=VAE,
        images=True,
    )
    return table(tmp_path)


def markdown_rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_markdown(two: Table) -> None:
    text = two.markdown()
    head, rule, al, vae = markdown_rows(text)
    assert head == ["method", "seeds", "steps", "training s", "parameters", "generative", "peak MB", "log-likelihood",
                    "FID means", "FID samples", "KID means", "KID samples"]  # fmt: skip
    assert rule == ["---", *["---:"] * 11]
    assert al[:9] == ["al", "2", "2 000", "110 ± 14", "", "", "", "**−22.00 ± 0.28**", "15.00"]
    assert vae[:9] == ["vae", "1", "12 000", "100.0", "20 000", "9 000", "512", "−23.00", "**5.000**"]
    assert "* training against test images: FID 2.500, KID −3.000." in text
    assert "* independent pixels: FID 30.00, KID 40.00." in text
    assert "* log-likelihood by prior samples, 200000 samples per image, 297 images." in text


def test_csv(two: Table) -> None:
    al, vae = csv.DictReader(io.StringIO(two.csv()))
    assert (al["method"], al["seeds"], al["unreliable"]) == ("al", "0 1", "0")
    assert float(al["test/log_likelihood_mean"]) == pytest.approx(-22)
    assert float(al["test/log_likelihood_deviation"]) == pytest.approx(0.4 / 2**0.5)
    assert vae["test/log_likelihood_deviation"] == al["parameters_mean"] == ""
    assert float(vae["generative_parameters_mean"]) == 9_000
    assert float(vae["test/kid_pixels_mean"]) == 40


def test_terminal(two: Table) -> None:
    lines = two.terminal().splitlines()
    assert lines[0].split()[:3] == ["method", "seeds", "steps"]
    assert "−22.00 ± 0.28 *" in lines[2]
    assert "5.000 *" in lines[3]
    narrow = two.terminal(80).splitlines()
    assert max(map(len, narrow[:9])) <= 100
    assert [line.split()[0] for line in narrow[:9] if line] == ["method", "------", "al", "vae"] * 2


def test_unreliable_likelihoods_are_marked_and_never_the_best(tmp_path: Path) -> None:
    fake_run(tmp_path / "al")
    fake_run(
        tmp_path / "vae",
        metrics={"test/log_likelihood": -10.0, "test/log_likelihood_reliable": 0.0},
        provenance={"log_likelihood.method": "importance sampling"},
        config=VAE,
    )
    text = table(tmp_path).markdown()
    _, _, al, vae = markdown_rows(text)
    assert al[4] == "**−22.00**"
    assert vae[4] == "−10.00 †"
    assert "* † unreliable in at least one run" in text
    assert "* log-likelihood by prior samples, 200000 samples per image, 297 images: al." in text
    assert "* log-likelihood by importance sampling, 200000 samples per image, 297 images: vae." in text


def test_an_encoder_of_few_effective_samples_is_marked_too(tmp_path: Path) -> None:
    for name, value, effective, config in (("lae", -10.0, 1.3, None), ("vae", -23.0, 60.0, VAE)):
        figures = {"test/log_likelihood_encoder": value, "test/effective_samples_encoder": effective}
        fake_run(tmp_path / name, metrics=figures, config=config)
    text = table(tmp_path, ["log_likelihood_encoder"]).markdown()
    _, _, lae, vae = markdown_rows(text)
    assert lae[-1] == "−10.00 †"
    assert vae[-1] == "**−23.00**"
    assert "* † unreliable in at least one run" in text


def test_failures_of_figures(tmp_path: Path) -> None:
    """NaN is never the best, a missing figure is blank, and names with bars keep the table whole."""
    fake_run(tmp_path / "a|b", metrics={"test/fid_means": "nan"})
    fake_run(tmp_path / "vae", metrics={"test/kid_means": None}, config=VAE)
    rows = markdown_rows(table(tmp_path).markdown().replace("\\|", "/"))
    assert rows[2][0] == "a/b"
    assert (rows[2][5], rows[3][5]) == ("nan", "**15.00**")
    assert rows[3][7] == ""


def test_a_table_of_one_marks_nothing(tmp_path: Path) -> None:
    fake_run(tmp_path / "al")
    assert "**" not in table(tmp_path).markdown()


def test_other_machines_and_versions_are_told(tmp_path: Path) -> None:
    fake_run(tmp_path / "al")
    fake_run(tmp_path / "vae", results={"machine.device": "H100", "versions.torch": "3.0"}, config=VAE)
    notes = table(tmp_path).notes()
    assert "different machines: cpu, 1 threads (al); H100, 1 threads (vae)" in notes
    assert "different versions: alws 0.1.0, torch 2.15.0 (al); alws 0.1.0, torch 3.0 (vae)" in notes


def test_without_the_usual_figures_all_of_the_test_are_shown(tmp_path: Path) -> None:
    fake_run(tmp_path / "al", results={"metrics": {"test/held_out_gap": 0.01, "val/objective": 1.0}})
    assert table(tmp_path).metrics == ["test/held_out_gap"]


@pytest.mark.parametrize(
    ("spread", "text"),
    [
        (Spread(-22.2951, 0.1234, 3), "−22.30 ± 0.12"),
        (Spread(123.4, 12.0, 3), "123 ± 12"),
        (Spread(-22.2951, 0.00123, 3), "−22.295 ± 0.001"),
        (Spread(0.0, 0.5, 3), "0.00 ± 0.50"),
        (Spread(0.0, None, 1), "0"),
        (Spread(0.01234, None, 1), "0.0123"),
        (Spread(4321.9, None, 1), "4322"),
        (Spread(float("nan"), None, 2), "nan"),
        (None, ""),
    ],
)
def test_digits(spread: Spread | None, text: str) -> None:
    assert show(spread) == text


def test_direction() -> None:
    assert better("test/log_likelihood") == better("test/elbo") == "max"
    assert better("test/fid_means") == better("test/kid_samples") == better("test/negative_elbo_per_dim") == "min"
    assert better("test/components") is None


def test_chart_has_a_panel_a_kind_and_a_dot_a_seed(two: Table) -> None:
    figure = draw_chart(two)
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_xlabel().split(" (")[0] for axis in panels] == [
        "log-likelihood, nats", "FID means", "FID samples", "KID means", "KID samples",
    ]  # fmt: skip
    dots = [tuple(line.get_xdata()) for line in panels[0].lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert dots == [(-22.2,), (-21.8,), (-23.0,)]
    assert to_png(figure)[:4] == b"\x89PNG"


def open_png(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_picture_of_samples(two: Table) -> None:
    png, notes = draw_samples(two.methods)
    assert png is not None
    assert notes == []
    assert len(png) <= LARGEST
    image = open_png(png)
    tile = 1 + 8 * 33
    assert image.shape == (14 + 26 + 2 * tile + 14, 14 + 3 * (tile + 14))
    assert len(np.unique(image[40 : 40 + tile, 14 : 14 + tile])) == 3  # real: black, white, the grey frames


def test_runs_without_images_are_noted(tmp_path: Path) -> None:
    fake_run(tmp_path / "al", images=True)
    fake_run(tmp_path / "vae", config=VAE)
    png, notes = draw_samples(table(tmp_path).methods)
    assert png is not None
    assert notes == ["vae is not in the picture: none of its runs has samples/test.npz, which alws test makes"]
    (tmp_path / "al" / "samples" / "test.npz").write_bytes(b"PK broken")
    png, notes = draw_samples(table(tmp_path).methods)
    assert png is None
    assert len(notes) == 2


def test_picture_of_thirteen_methods_is_small(tmp_path: Path) -> None:
    """Grey noise, the worst case; a long name is cut rather than written over its neighbour."""
    for index in range(13):
        fake_run(tmp_path / f"m{index:02}{'x' * index**2}", config={"model.class_path": f"M{index}"}, images=True)
    png, _ = draw_samples(table(tmp_path).methods)
    assert png is not None
    assert len(png) <= LARGEST

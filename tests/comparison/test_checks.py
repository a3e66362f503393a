"""Figures that cannot be compared, and the sentence that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake_run

from lightning_alws.comparison.checks import check_comparable
from lightning_alws.comparison.records import Record, read_record
from lightning_alws.comparison.table import choose_metrics
from lightning_alws.errors import UserError

IMPORTANCE = {"log_likelihood.method": "importance sampling", "log_likelihood.samples_per_image": 500}
DISTANCES = ("test/fid_means", "test/fid_samples", "test/kid_means", "test/kid_samples")
UNRELIABLE = {"test/log_likelihood_reliable": 0.0}


def pair(folder: Path, **changes: Any) -> list[Record]:
    """Run a as it is, run b changed."""
    return [read_record(fake_run(folder / "a")), read_record(fake_run(folder / "b", seed=1, **changes))]


def check(records: list[Record], metrics: list[str] | None = None) -> None:
    check_comparable(records, choose_metrics(records, metrics))


REFUSED = [
    (
        {"results": {"data": "MNIST"}},
        r"the runs cannot be compared: data is Digits in a, but MNIST in b; compare runs on the same data",
    ),
    ({"config": {"data.init_args.seed": 1}}, r"data\.seed is 0 in a, but 1 in b"),
    (
        {"provenance": {"fid_kid.extractor_hash": "ffff"}},
        r"test/fid_means cannot be compared: fid_kid\.extractor_hash is 0c36df780630 in a, but ffff in b; test them",
    ),
    ({"provenance": {"fid_kid.extractor": "other"}}, r"fid_kid\.extractor is lenet-Digits-64 in a, but other in b"),
    (
        {"provenance": {"fid_kid.images_compared.test": 100}},
        r"fid_kid\.images_compared\.test is 297 in a, but 100 in b",
    ),
    ({"provenance": {"fid_kid.feature_width": 84}}, r"feature_width is 64 in a, but 84 in b"),
    ({"provenance": {"fid_kid.seed": 3}}, r"fid_kid\.seed is 0 in a, but 3 in b"),
    ({"provenance": {"fid_kid": {}}}, r"fid_kid\.extractor is lenet-Digits-64 in a, but None in b"),
    (
        {"provenance": {"fid_kid.kid_subsets": 10}},
        r"test/kid_means cannot be compared: fid_kid\.kid_subsets is 100 in a",
    ),
    (
        {"provenance": {"fid_kid.kid_subset_size.test": 50}},
        r"test/kid_means cannot be compared: fid_kid\.kid_subset_size\.test is 148 in a, but 50 in b",
    ),
    (
        {"provenance": {"log_likelihood.images": 100}},
        r"test/log_likelihood cannot be compared: log_likelihood\.images is 297 in a, but 100 in b",
    ),
    (
        {"provenance": {"log_likelihood.images_chosen": "at random"}},
        r"log_likelihood\.images_chosen is unknown in a, but at random in b; test them alike",
    ),
    (
        {"provenance": IMPORTANCE, "metrics": UNRELIABLE, "config": {"log_likelihood.num_samples": 10}},
        r"log_likelihood\.method is prior samples in a, but importance sampling in b; "
        r"log_likelihood\.samples_per_image is 200000 in a, but 500 in b; test them alike",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(case[0])[:60] for case in REFUSED])
def test_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(pair(tmp_path, **changes))


ACCEPTED = [
    {"config": {"data.init_args.batch_size": 50, "data.init_args.root": "elsewhere"}},
    {"results": {"training.steps": 100}, "config": {"trainer.max_steps": 100}},
    {"provenance": {"fid_kid.extractor_accuracy": 0.5, "log_likelihood.standard_error": 0.7}},
    {"provenance": {"fid_kid": {}}, "metrics": dict.fromkeys(DISTANCES)},
    {"provenance": IMPORTANCE, "config": {"log_likelihood.num_samples": 10}},  # both reliable
    {"provenance": IMPORTANCE, "metrics": UNRELIABLE},  # one set of settings, the model's choice
    {"metrics": UNRELIABLE},
]  # fmt: skip


@pytest.mark.parametrize("changes", ACCEPTED, ids=[str(case)[:60] for case in ACCEPTED])
def test_accepted(tmp_path: Path, changes: dict[str, Any]) -> None:
    check(pair(tmp_path, **changes))


def test_only_what_is_asked_for_is_checked(tmp_path: Path) -> None:
    records = pair(tmp_path, provenance={"fid_kid.kid_subsets": 10, "log_likelihood.images": 5})
    check(records, ["test/fid_means", "fid_samples"])
    with pytest.raises(UserError, match="kid_subsets"):
        check(records, ["kid_samples"])


def test_counts_of_other_figures_must_agree_too(tmp_path: Path) -> None:
    records = [
        read_record(fake_run(tmp_path / str(n), n, {"test/gap": 1.0}, {"denoising.images": 100 * n})) for n in (1, 2)
    ]
    check(records)
    with pytest.raises(UserError, match=r"test/gap cannot be compared: denoising\.images is 100 in 1, but 200 in 2"):
        check(records, ["gap"])


def test_encoders_likelihood_is_compared_with_its_like(tmp_path: Path) -> None:
    records = [
        read_record(
            fake_run(
                tmp_path / str(n),
                n,
                {"test/log_likelihood_encoder": -20.0},
                {"log_likelihood_encoder": {"samples_per_image": 100 * n, "images": 297}},
            )
        )
        for n in (1, 2)
    ]
    with pytest.raises(UserError, match=r"log_likelihood_encoder\.samples_per_image is 100 in 1, but 200 in 2"):
        check(records)


def test_many_runs_are_counted(tmp_path: Path) -> None:
    records = [read_record(fake_run(tmp_path / f"r{seed}", seed)) for seed in range(5)]
    records.append(read_record(fake_run(tmp_path / "odd", 9, provenance={"fid_kid.seed": 3})))
    with pytest.raises(UserError, match="0 in r0, r1 and 3 others, but 3 in odd"):
        check(records)


def test_unknown_figure_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run has the figure test/nothing that --metrics names; there are test/"):
        choose_metrics(pair(tmp_path), ["nothing"])

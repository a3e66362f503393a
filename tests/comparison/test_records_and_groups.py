"""Run folders found and read; runs grouped into methods; means and deviations over seeds."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from fake_runs import fake_run

from lightning_alws.comparison.groups import Spread, group
from lightning_alws.comparison.records import find_runs, read_record
from lightning_alws.errors import UserError


def records(folder: Path) -> list:
    return [read_record(run) for run in find_runs([folder])]


def test_finds_runs_and_folders_of_runs_each_once(tmp_path: Path) -> None:
    for name in ("b", "a"):
        fake_run(tmp_path / name)
    (tmp_path / "comparison").mkdir()
    found = find_runs([tmp_path / "b", tmp_path, tmp_path / "a" / ".." / "b"])
    assert found == [tmp_path / "b", tmp_path / "a"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "there is no folder .*nowhere"),
        ("run/results.json", "results.json is a file; give the run folder"),
        ("run/empty", "empty holds no results.json, nor does any folder in it"),
    ],
)
def test_a_path_that_is_no_run_is_named(tmp_path: Path, place: str, message: str) -> None:
    (fake_run(tmp_path / "run") / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        find_runs([tmp_path / place])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ('{"status": "tes', "cannot be read"),
        ("[1, 2]", r"is no results file of this version of alws \(it lacks status, model, data\)"),
        ('{"status": "tested", "figures": {}}', r"is no .* \(it lacks model, data, seed\)"),
    ],
    ids=["empty", "cut", "no object", "another version"],
)
def test_broken_results_are_named(tmp_path: Path, content: str, message: str) -> None:
    (fake_run(tmp_path / "run") / "results.json").write_text(content)
    with pytest.raises(UserError, match=rf"run/results.json {message}.*test that run again, or leave it out"):
        read_record(tmp_path / "run")


def test_results_without_seconds_and_with_text_for_a_figure_are_named(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run")
    content = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(content | {"training": {"steps": 1}}))
    with pytest.raises(UserError, match="lacks training.seconds"):
        read_record(folder)
    (folder / "results.json").write_text(json.dumps(content | {"metrics": {"test/fid_means": "good"}}))
    with pytest.raises(UserError, match="a figure that is no number"):
        read_record(folder)


@pytest.mark.parametrize("content", ["", "{a: [", "- 1"])
def test_broken_config_is_named(tmp_path: Path, content: str) -> None:
    (fake_run(tmp_path / "run") / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"run/config\.yaml"):
        read_record(tmp_path / "run")


def test_seeds_of_one_method_are_one_group(tmp_path: Path) -> None:
    """Name, place, progress bar and counts of the figures make no other method; a setting of the model does."""
    fake_run(tmp_path / "al_c-seed1", seed=1, config={"trainer.enable_progress_bar": False, "runs": "elsewhere"})
    fake_run(tmp_path / "al_c-seed0", config={"log_likelihood.val_samples": 0, "ckpt_path": "last"})
    fake_run(tmp_path / "vae-Digits", config={"model.class_path": "lightning_alws.baselines.VAE"})
    methods = group(records(tmp_path))
    assert [method.label for method in methods] == ["al_c", "vae"]
    assert [record.seed for record in methods[0].records] == [0, 1]


def test_methods_of_one_name_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    fake_run(tmp_path / "al-seed0", config={"model.init_args.latent_dim": 4})
    fake_run(tmp_path / "al-seed1", seed=1, config={"model.init_args.latent_dim": 16})
    assert [method.label for method in group(records(tmp_path))] == [
        "al (model.latent_dim 4)",
        "al (model.latent_dim 16)",
    ]


def test_names_without_anything_in_common_take_the_first(tmp_path: Path) -> None:
    fake_run(tmp_path / "first")
    fake_run(tmp_path / "second", seed=1)
    (method,) = group(records(tmp_path))
    assert method.label == "first"


def test_runs_without_config_are_grouped_by_name(tmp_path: Path) -> None:
    for seed in (0, 1):
        (fake_run(tmp_path / f"vae-seed{seed}", seed=seed) / "config.yaml").unlink()
    (method,) = group(records(tmp_path))
    assert (method.label, len(method.records)) == ("vae", 2)


def test_a_plan_names_the_methods(tmp_path: Path) -> None:
    folders = [fake_run(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
    methods = group(records(tmp_path), dict(zip(folders, ("one", "two"), strict=True)))
    assert [method.label for method in methods] == ["one", "two"]


def test_one_seed_twice_is_refused(tmp_path: Path) -> None:
    fake_run(tmp_path / "al")
    fake_run(tmp_path / "copy")
    with pytest.raises(UserError, match=r"al and .*copy are of one method with the same seed 0.*leave one"):
        group(records(tmp_path))


def test_spread_is_the_samples(tmp_path: Path) -> None:
    values = [3.0, 5.0, 10.0]
    for seed, value in enumerate(values):
        fake_run(tmp_path / f"al-seed{seed}", seed, metrics={"test/fid_means": value})
    (method,) = group(records(tmp_path))
    spread = Spread.of(method.values("test/fid_means"))
    assert spread == Spread(6.0, statistics.stdev(values), 3)
    assert Spread.of([2.0]) == Spread(2.0, None, 1)
    assert Spread.of([]) is None

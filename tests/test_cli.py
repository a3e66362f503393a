"""The command line as a user meets it: a run, its folder, resuming, predicting, and every mistake as one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cli import CONFIGS, main, resolve
from lightning_alws.checkpoints import flatten, is_whole, last_whole
from lightning_alws.errors import UserError, condense
from lightning_alws.run_folder import refuse_other_data, refuse_to_go_back

QUICKSTART = str(CONFIGS / "quickstart.yaml")
SMALL = ["--model.learning.sleep_samples", "40", "--model.learning.held_out", "20", "--model.decoder.hidden", "[8]",
         "--trainer.val_check_interval", "5", "--log_likelihood.num_samples", "500",
         "--log_likelihood.val_samples", "200",
         "--fid_kid.kid_subsets", "2", "--trainer.enable_progress_bar", "false",
         "--trainer.enable_model_summary", "false"]  # fmt: skip


def fit(folder: Path, *more: str, name: str = "run") -> int:
    return main(["fit", "--config", QUICKSTART, "--runs", str(folder), "--name", name, *SMALL, *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ten steps."""
    folder = tmp_path_factory.mktemp("runs")
    assert fit(folder, "--trainer.max_steps", "10") == 0
    return folder / "run"


def parameters(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_run_folder_holds_everything(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["status"] == "tested"
    assert results["training"]["steps"] == 10
    assert results["data"] == "Digits"
    assert results["seed"] == 0
    assert {"test/fid_samples", "test/fid_floor", "test/kid_means", "test/log_likelihood"} <= set(results["metrics"])
    assert results["provenance"]["fid_kid"]["extractor_hash"]
    assert results["provenance"]["log_likelihood"]["samples_per_image"] == 500
    assert {"alws", "torch", "pytorch-lightning"} <= set(results["versions"])
    files = sorted(file.name for file in (run / "checkpoints").iterdir())
    assert files == ["best.ckpt", "checksums.json", "last.ckpt", "previous.ckpt"]
    assert sorted(file.name for file in (run / "samples").iterdir()) == [
        "step_000005.png",
        "step_000010.png",
        "test.npz",
        "test.png",
    ]
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_saved_config_reruns_to_the_same_result(run: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(run / "config.yaml"), "--runs", str(tmp_path)]) == 0
    again, before = (parameters(folder / "checkpoints" / "last.ckpt") for folder in (tmp_path / "run", run))
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], before[name]) for name in before)
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "run", run))
    for results in (first, second):  # all that time and the system decide
        for part, name in ((results["metrics"], "samples_per_second"), (results["training"], "seconds")):
            part.pop(name, None)
        assert results.pop("peak_memory_mb") > 0
    assert first == second


@pytest.mark.slow  # fast, without the command line: tests/test_resume.py
@pytest.mark.parametrize(
    "method",
    [
        [],
        ["--model.learning.kernel_objective", "LogJointError",
         "--model.learning.regression.kernel.features", "LinearFeatures"],
    ],
    ids=["fixed kernel", "adaptive kernel"],
)  # fmt: skip
def test_resumed_run_equals_an_uncut_one(tmp_path: Path, method: list[str]) -> None:
    """Cut in the middle of an epoch (14 batches each); parameters, averaged weights, kernel and Adam bitwise equal."""
    assert fit(tmp_path, "--trainer.max_steps", "20", *method, name="uncut") == 0
    assert fit(tmp_path, "--trainer.max_steps", "10", "--test_after_fit", "false", *method) == 0
    config = str(tmp_path / "run" / "config.yaml")
    resume = ["fit", "--config", config, "--ckpt_path", "last", "--trainer.max_steps", "20", "--test_after_fit", "true"]
    assert main(resume) == 0
    uncut, resumed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("uncut", "run")
    )
    assert uncut["global_step"] == resumed["global_step"] == 20
    for name, value in uncut["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    for key, state in uncut["optimizer_states"][0]["state"].items():
        for part, value in state.items():
            assert torch.equal(value, resumed["optimizer_states"][0]["state"][key][part])
    figures = [json.loads((tmp_path / name / "results.json").read_text())["metrics"] for name in ("uncut", "run")]
    assert {k: v for k, v in figures[0].items() if k.startswith("test")} == {
        k: v for k, v in figures[1].items() if k.startswith("test")
    }


REGRESSION = "--model.learning.regression"


@pytest.mark.parametrize(
    "method",
    [
        [f"{REGRESSION}.kernel", "MaternKernel", f"{REGRESSION}.kernel.smoothness", "2.5"],
        [f"{REGRESSION}.kernel", "PolynomialKernel", f"{REGRESSION}.kernel.degree", "3"],
        [REGRESSION, "ReweightedRidge", f"{REGRESSION}.limit", "5", f"{REGRESSION}.kernel", "GaussianKernel"],
    ],
    ids=["Matérn", "polynomial", "reweighted"],
)
def test_kernels_and_regressions_are_known_by_their_short_names(tmp_path: Path, method: list[str]) -> None:
    assert fit(tmp_path, "--trainer.max_steps", "2", "--test_after_fit", "false", *method) == 0
    assert method[1] in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize("kernel", ["SetMeanKernel", "SetGaussianKernel"])
def test_set_kernels_refuse_images(tmp_path: Path, capsys: pytest.CaptureFixture[str], kernel: str) -> None:
    assert fit(tmp_path, f"{REGRESSION}.kernel", kernel) == 2
    assert f"the kernel is {kernel}, but for observations of shape (1, 8, 8)" in capsys.readouterr().err


def test_a_run_is_never_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert fit(run.parent, "--trainer.max_steps", "3") == 2
    assert "--ckpt_path last" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_no_step_of_a_run_is_overwritten_by_an_earlier_one(run: Path, tmp_path: Path, capsys) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    previous = run / "checkpoints" / "previous.ckpt"
    arguments = ["fit", "--config", str(run / "config.yaml"), "--trainer.max_steps", "12"]
    assert main([*arguments, "--ckpt_path", str(previous)]) == 2
    said = capsys.readouterr().err
    assert f"ckpt_path is {previous}, of step 5, but the run in {run} has reached step 10, which would be" in said
    assert "go on with --ckpt_path last, or give this checkpoint and another --name" in said
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    # Where the last one is damaged, an earlier one may be named.
    shutil.copytree(run / "checkpoints", tmp_path / "run" / "checkpoints")
    refuse_to_go_back(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(b"half")
    refuse_to_go_back(tmp_path / "run" / "checkpoints" / "previous.ckpt", tmp_path / "run")


@pytest.mark.parametrize(
    ("setting", "value", "before"),
    [
        ("seed_everything", "7", "0"),
        ("data.validation_size", "20", "150"),
        pytest.param("data.batch_size", "50", "100", marks=pytest.mark.slow),
    ],
)
def test_a_run_is_not_continued_on_other_data_or_from_another_seed(
    run: Path, capsys, setting: str, value: str, before: str
) -> None:
    """Its record would say that all of it was made so."""
    config = (run / "config.yaml").read_bytes()
    arguments = ["fit", "--config", str(run / "config.yaml"), "--ckpt_path", "last", "--trainer.max_steps", "20"]
    assert main([*arguments, f"--{setting}", value]) == 2
    assert f"{setting} is {value}, but the run in {run} was begun with {before}; a run is" in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == config


def test_where_the_data_lie_may_change_and_what_an_older_config_lacks(tmp_path: Path) -> None:
    begun = {"data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 9}}, "seed_everything": 0}
    asked = {"class_path": "datamodules.Digits", "init_args": {"batch_size": 9, "root": "/new", "added_later": 3}}
    for text in (yaml.safe_dump(begun), "seed_everything: [", "- 1", ""):
        (tmp_path / "config.yaml").write_text(text)
        refuse_other_data(tmp_path, {"data": asked, "seed_everything": 0})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(begun))
    with pytest.raises(UserError, match="data.class_path is datamodules.MNIST, but the run in .* datamodules.Digits"):
        refuse_other_data(tmp_path, {"data": {**asked, "class_path": "datamodules.MNIST"}, "seed_everything": 0})


@pytest.mark.parametrize(
    ("command", "lacking", "message"),
    [
        (
            "fit",
            ("optimizer_states", "loops"),
            "part.ckpt lacks loops and optimizer_states, without which a run",
        ),
        ("test", ("global_step",), "part.ckpt, which holds no checkpoint of a run"),
        ("export", ("global_step",), "part.ckpt, which holds no checkpoint of a run"),
    ],
)
def test_a_checkpoint_of_which_parts_are_gone_is_named(
    run: Path, tmp_path: Path, capsys, command: str, lacking: tuple[str, ...], message: str
) -> None:
    """Lightning would begin with a new optimiser, or at step 0, and say nothing."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save({name: part for name, part in checkpoint.items() if name not in lacking}, tmp_path / "part.ckpt")
    more = [] if command == "export" else ["--runs", str(tmp_path), "--name", "new"]
    arguments = ["--config", str(run / "config.yaml"), "--ckpt_path", str(tmp_path / "part.ckpt")]
    assert main([command, *arguments, *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "test"])
@pytest.mark.parametrize("which", ["best", pytest.param("last", marks=pytest.mark.slow)])
def test_validate_and_test_a_checkpoint(run: Path, command: str, which: str) -> None:
    before = json.loads((run / "results.json").read_text())
    assert main([command, "--config", str(run / "config.yaml"), "--ckpt_path", which]) == 0
    after = json.loads((run / "results.json").read_text())
    assert after["training"] == before["training"]


def test_predict_writes_samples_and_posterior(run: Path) -> None:
    assert main(["predict", "--config", str(run / "config.yaml"), "--ckpt_path", "best"]) == 0
    names = sorted(file.name for file in (run / "predictions").iterdir())
    assert names == ["posterior.npz", "posterior.png", "samples.npz", "samples.png"]


def test_default_name_is_that_of_config_and_data(tmp_path: Path) -> None:
    arguments = ["fit", "--config", QUICKSTART, "--runs", str(tmp_path), *SMALL, "--trainer.max_steps", "2"]
    assert main([*arguments, "--test_after_fit", "false", "--trainer.val_check_interval", "2"]) == 0
    assert [folder.name for folder in tmp_path.iterdir()] == ["quickstart-Digits"]
    assert not (tmp_path / "quickstart-Digits" / "samples" / "test.png").exists()


@pytest.mark.slow
def test_later_configs_override_earlier_ones(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer: {max_steps: 2, val_check_interval: 2}\ntest_after_fit: false\n")
    assert fit(tmp_path, "--config", str(overlay)) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["training"]["steps"] == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("alws 0.")


def test_print_config_is_a_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", QUICKSTART, "--data", "MNIST", "--print_config"])
    assert exit_.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["class_path"] == "datamodules.MNIST"


def test_checkpoint_of_another_model_class_is_refused(run: Path, tmp_path: Path, capsys) -> None:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["_class_path"] = "lightning_alws.models.AnotherModel"
    torch.save(checkpoint, tmp_path / "other.ckpt")
    for command in ("fit", "test"):
        arguments = ["--config", str(run / "config.yaml"), "--runs", str(tmp_path), "--name", f"new-{command}"]
        assert main([command, *arguments, "--ckpt_path", str(tmp_path / "other.ckpt")]) == 2
        assert "is of the model lightning_alws.models.AnotherModel" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["other.ckpt"]


def test_a_changed_setting_is_refused_on_resuming(run: Path, capsys) -> None:
    """The optimiser's state would silently override the new learning rate."""
    arguments = ["fit", "--config", str(run / "config.yaml"), "--ckpt_path", "last", "--trainer.max_steps", "20"]
    assert main([*arguments, "--model.learning.learning_rate", "0.5"]) == 2
    assert "model.learning.learning_rate is 0.5" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b""])
def test_damaged_checkpoint_is_named(run: Path, tmp_path: Path, capsys, damage) -> None:
    (tmp_path / "bad.ckpt").write_bytes(damage((run / "checkpoints" / "last.ckpt").read_bytes()))
    assert main(["test", "--config", str(run / "config.yaml"), "--ckpt_path", str(tmp_path / "bad.ckpt")]) == 2
    assert "bad.ckpt cannot be read" in capsys.readouterr().err


def test_full_disk_is_one_sentence_and_leaves_nothing_half_written(tmp_path: Path, capsys, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert fit(tmp_path, "--trainer.max_steps", "5") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [file for file in tmp_path.rglob("*") if file.is_file() and "tfevents" not in file.name] == []


def test_checkpoints_of_a_run_are_written_atomically(tmp_path: Path, capsys, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr("lightning_alws.checkpoints.torch.save", full)
    assert fit(tmp_path, "--trainer.max_steps", "5") == 2
    assert "best.ckpt cannot be written (PytorchStreamWriter failed" in capsys.readouterr().err
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def killed_at_once(folder: Path) -> Path:
    """A run folder as SIGKILL leaves it before the first checkpoint, which was being written."""
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "checkpoints" / ".last.ckpt-abc").write_bytes(b"half")
    (folder / "run" / "results.json").write_text('{"status": "running", "training": {"steps": 0}}')
    return folder / "run"


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_is_begun_anew_when_asked(tmp_path: Path, capsys) -> None:
    run = killed_at_once(tmp_path)
    before = (run / "results.json").read_bytes()
    for options, message in (
        ([], "holds a run without any checkpoint"),
        (["--ckpt_path", "last"], "has saved no chec"),
    ):
        assert fit(tmp_path, "--trainer.max_steps", "5", *options) == 2
        said = capsys.readouterr().err
        assert message in said
        assert "begin it again with --begin_anew true" in said
    assert (run / "results.json").read_bytes() == before
    # One command for a job that is requeued: it begins, goes on, and goes on.
    requeued = ["--ckpt_path", "last", "--begin_anew", "true", "--test_after_fit", "false"]
    for steps in ("5", "10"):
        assert fit(tmp_path, "--trainer.max_steps", steps, *requeued) == 0
        assert json.loads((run / "results.json").read_text())["training"]["steps"] == int(steps)
    assert yaml.safe_load((run / "config.yaml").read_text())["begin_anew"] is False
    assert "previous.ckpt" in [file.name for file in (run / "checkpoints").iterdir()]


@pytest.mark.slow
def test_beginning_anew_overwrites_no_run(run: Path, tmp_path: Path, capsys) -> None:
    assert fit(run.parent, "--trainer.max_steps", "5", "--begin_anew", "true") == 2
    assert "already holds checkpoints" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text((run / "results.json").read_text())
    assert fit(tmp_path, "--trainer.max_steps", "5", "--begin_anew", "true") == 2
    assert "already holds results.json" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_a_run_that_failed_before_its_first_checkpoint_can_be_begun_anew(tmp_path: Path, capsys) -> None:
    missing = ["--data", "MNIST", "--data.root", "/dev/null/nowhere", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", QUICKSTART, "--runs", str(tmp_path), "--name", "run", *missing]) == 2
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "failed"
    capsys.readouterr()
    assert fit(tmp_path, "--trainer.max_steps", "5") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "tested"
    assert "error" not in results
    assert results["data"] == "Digits"


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_untrained_model_is_not_measured(tmp_path: Path, capsys, command: str) -> None:
    assert main([command, "--config", QUICKSTART, "--runs", str(tmp_path), *SMALL]) == 2
    assert f"alws {command} needs a trained model" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_figures_of_another_run_are_not_overwritten(run: Path, tmp_path: Path, capsys) -> None:
    assert fit(tmp_path, "--trainer.max_steps", "5") == 0
    before = (tmp_path / "run" / "results.json").read_bytes()
    arguments = ["--config", str(tmp_path / "run" / "config.yaml"), "--runs", str(tmp_path)]
    assert main(["test", *arguments, "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]) == 2
    assert "already holds checkpoints" in capsys.readouterr().err
    assert (tmp_path / "run" / "results.json").read_bytes() == before


@pytest.mark.slow
def test_config_of_a_continued_run_reruns_from_the_beginning(tmp_path: Path) -> None:
    assert fit(tmp_path, "--trainer.max_steps", "5") == 0
    config = str(tmp_path / "run" / "config.yaml")
    assert main(["fit", "--config", config, "--ckpt_path", "last", "--trainer.max_steps", "10"]) == 0
    assert yaml.safe_load(Path(config).read_text())["ckpt_path"] is None


def test_checkpoint_of_a_model_of_another_size_is_named(run: Path, capsys) -> None:
    arguments = ["test", "--config", str(run / "config.yaml"), "--ckpt_path", "last", "--model.latent_dim", "3"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert (
        "the checkpoint does not fit the model (generative.decoder.net.0.0.weight has shape (8, 8) in it, but (8, 3) "
        in said
    )


def changed(run: Path, path: Path, **parts: Any) -> str:
    """A copy of a run's last checkpoint in which entries, or entries of its dictionaries, are others (None: gone)."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    for part, value in parts.items():
        if not isinstance(value, dict):
            checkpoint[part] = value
            continue
        for key, entry in value.items():
            if entry is None:
                del checkpoint[part][key]
            else:
                checkpoint[part][key] = entry
    torch.save(checkpoint, path)
    return str(path)


OLD = {
    "a parameter is missing": (
        {"state_dict": {"generative.decoder.net.0.0.bias": None}},
        "does not fit the model (it lacks generative.decoder.net.0.0.bias); use the config",
    ),
    "two are": (
        {"state_dict": {"generative.decoder.net.0.0.bias": None, "generative.decoder.net.0.0.weight": None}},
        "it lacks generative.decoder.net.0.0.weight and 1 more",
    ),
    "one too many": (
        {"state_dict": {"generative.gone": torch.zeros(3)}},
        "it holds generative.gone, which the model has not",
    ),
    "one was renamed, in another version": (
        {
            "state_dict": {"generative.decoder.net.0.0.bias": None, "generative.offset": torch.zeros(8)},
            "alws_version": "0.0.7",
        },
        "it lacks generative.decoder.net.0.0.bias; it holds generative.offset, which the model has not); use the "
        "config the run was made with (config.yaml in its folder) and alws 0.0.7, which wrote it (this is ",
    ),
}


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize("how", OLD)
def test_checkpoint_of_a_changed_class_says_what_is_missing(
    run: Path, tmp_path: Path, capsys, how: str, command: str
) -> None:
    parts, message = OLD[how]
    old = changed(run, tmp_path / "old.ckpt", **parts)
    arguments = ["--config", str(run / "config.yaml"), "--runs", str(tmp_path), "--name", "new", "--ckpt_path", old]
    assert main([command, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_checkpoint_with_a_renamed_hyperparameter(run: Path, tmp_path: Path, capsys) -> None:
    """To go on would be another run; to test it, the weights are enough."""
    old = changed(run, tmp_path / "old.ckpt", hyper_parameters={"least_noise": 0.3}, alws_version="0.0.7")
    arguments = ["--config", str(run / "config.yaml"), "--runs", str(tmp_path), "--name", "new", "--ckpt_path", old]
    assert main(["fit", *arguments]) == 2
    said = capsys.readouterr().err
    assert "old.ckpt, written by alws 0.0.7, was trained with model.least_noise 0.3, a setting that " in said
    assert "no longer has; go on with the version that wrote it" in said
    with pytest.warns(UserWarning, match=r"model\.least_noise 0\.3, a setting that .* no longer has; it is ignored"):
        assert main(["validate", *arguments]) == 0


def test_a_precision_without_a_factorisation_is_refused(tmp_path: Path, capsys) -> None:
    assert fit(tmp_path, "--trainer.max_steps", "5", "--trainer.precision", "bf16-true") == 2
    assert "trainer.precision is bf16-true, in which no Gram matrix can be factorised; give bf16-mixed" in (
        capsys.readouterr().err
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the event writer's own thread
@pytest.mark.parametrize("what", ["results", "events"])
@pytest.mark.slow
def test_a_disk_that_fills_up_later_leaves_the_checkpoint(tmp_path: Path, capsys, monkeypatch, what: str) -> None:
    """While the record is written at the end of the training, or an event file of TensorBoard's in a later step."""
    assert fit(tmp_path, "--trainer.max_steps", "5", "--test_after_fit", "false") == 0
    folder = tmp_path / "run"
    record = (folder / "results.json").read_bytes()
    more = ["fit", "--config", str(folder / "config.yaml"), "--ckpt_path", "last", "--trainer.max_steps", "10",
            "--trainer.log_every_n_steps", "1"]  # fmt: skip

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if what == "results":
            patch.setattr("callbacks.results.write_json", full)
        else:
            patch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
        assert main(more) == 2
    said = capsys.readouterr().err
    assert "No space left on device; free some space, and go on with --ckpt_path last" in said
    assert "Traceback" not in said
    results = json.loads((folder / "results.json").read_text())
    assert (folder / "results.json").read_bytes() == record if what == "results" else results["status"] == "failed"
    assert is_whole(last_whole(folder / "checkpoints"))
    assert main(more) == 0
    assert json.loads((folder / "results.json").read_text())["status"] == "fitted"


def test_a_file_of_something_else_is_no_checkpoint(run: Path, tmp_path: Path, capsys) -> None:
    torch.save({"a": 1}, tmp_path / "a.ckpt")
    assert main(["test", "--config", str(run / "config.yaml"), "--ckpt_path", str(tmp_path / "a.ckpt")]) == 2
    assert "holds no checkpoint of a run" in capsys.readouterr().err


def test_condense_keeps_what_matters() -> None:
    message = (
        'Parser key "data":\n  Does not validate against any of the Union subtypes\n  Subtypes: [a, b]\n  Errors:\n'
        "    - Expected a dot import path string: Nope\n    - Expected a <class 'NoneType'>\n"
        "  Given value type: <class 'str'>\n  Given value: Nope"
    )
    assert condense(message) == 'Parser key "data": there is no class named Nope; see --help for those there are'
    union = (
        'Parser key "chunk":\n  Does not validate against any of the Union subtypes\n  Subtypes: [a, b]\n  Errors:\n'
        "    - Expected a <class 'int'>\n    - Expected a <class 'bool'>\n    - Expected a <class 'NoneType'>\n"
        "  Given value type: <class 'str'>\n  Given value: 2.5"
    )
    said = 'Parser key "chunk": Expected a int or Expected a bool. Got value: 2.5'
    assert condense(union) == condense(said) == said
    refused = condense("Option 'foo' is not accepted")
    assert condense(refused) == refused == "Option 'foo' is not accepted; see alws fit --help for those there are"


@pytest.mark.parametrize("arguments", [["--model.learning.chunk", "null"], ["--model.learning.chunk=null"]])
def test_a_setting_within_a_model_can_be_taken_back(arguments: list[str]) -> None:
    given = ["fit", "--config", str(CONFIGS / "images" / "al_a.yaml"), "--data", "Digits"]
    chunk = ["--model.learning.chunk", "100"]

    def learning(more: list[str]) -> dict:
        return resolve([*given, *more])["model"]["init_args"]["learning"]

    assert learning(chunk)["chunk"] == 100
    assert learning([*chunk, *arguments])["chunk"] is None
    assert learning(["--model.learning.kernel_objective", "null"])["kernel_objective"] is None


def test_flatten_names_settings_as_on_the_command_line() -> None:
    nested = {"a": 1, "b": {"class_path": "X", "init_args": {"c": (1, 2)}}}
    assert flatten(nested) == {"a": 1, "b.class_path": "X", "b.c": [1, 2]}

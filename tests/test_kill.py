"""A run killed again and again at random moments (SIGKILL, which no program can answer) loses next to nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
from test_interruption import AL_C, same, state

from cli import main
from lightning_alws.checkpoints import last_whole
from lightning_alws.run_folder import has_checkpoint

KILLS = 25
INTERVAL = 5  # steps between checkpoints
LESS = ["--model.decoder.hidden", "[8]", "--log_likelihood.num_samples", "500", "--log_likelihood.val_samples", "50",
        "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
        "--trainer.val_check_interval", str(INTERVAL), "--test_after_fit", "false"]  # fmt: skip


def in_child(arguments: list[str], seconds: float | None = None) -> int:
    """Exit status of ``alws`` in a forked process, which is killed after so many seconds (then -SIGKILL)."""
    child = os.fork()
    if child == 0:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        os._exit(main(arguments))  # nothing of the parent's pytest may run on in the child
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_killed_25_times_a_run_ends_as_one_never_cut(tmp_path: Path) -> None:
    torch.set_num_threads(1)  # a forked process must not wait for threads it has not inherited
    folder, chance = tmp_path / "cut", random.Random(0)
    run = ["fit", *AL_C, *LESS, "--runs", str(tmp_path)]
    step = kills = 0
    pause = 1.0
    while kills < KILLS:
        begun = has_checkpoint(folder)
        if not begun:
            pause *= 1.5  # until a child gets as far as training, however slow the machine
        again = ["--ckpt_path", "last", "--begin_anew", "true"]  # one command, as in a job that is requeued
        limit = ["--name", "cut", "--trainer.max_steps", "1000000"]
        status = in_child([*run, *limit, *again], seconds=pause * chance.uniform(0.5, 1.5))
        assert status == -signal.SIGKILL, "the run ended by itself"
        if not has_checkpoint(folder):
            continue
        kills += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the last is missing or damaged, which may be so
            checkpoint = torch.load(last_whole(folder / "checkpoints"), weights_only=True)
        assert checkpoint["global_step"] >= step
        assert checkpoint["global_step"] % INTERVAL == 0
        step = checkpoint["global_step"]
        assert json.loads((folder / "results.json").read_text())["status"] == "running"
    assert step > 0
    end = ["--trainer.max_steps", str(step + 23)]  # between validations
    assert in_child([*run, "--name", "cut", "--ckpt_path", "last", *end]) == 0
    assert in_child([*run, "--name", "uncut", *end]) == 0
    assert same(state(folder), state(tmp_path / "uncut"))
    one, two = (json.loads((where / "results.json").read_text()) for where in (folder, tmp_path / "uncut"))
    assert {**one["metrics"], "samples_per_second": 0} == {**two["metrics"], "samples_per_second": 0}
    left = sorted(file.name for file in (folder / "checkpoints").iterdir())
    assert left == ["best.ckpt", "checksums.json", "last.ckpt", "previous.ckpt"]

"""Plans: what a file may say, how far each run has come, what is run, and that those which are shipped are accepted."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_runs import CONFIG, changed, fake_run

import cli
from cli import CONFIGS, resolve
from lightning_alws.comparison import running
from lightning_alws.comparison.plan import PlannedRun, State, read_plan, state_of, states
from lightning_alws.errors import UserError
from lightning_alws.run_folder import refuse_to_overwrite

PLANS = sorted((CONFIGS / "comparisons").glob("*.yaml"))
PLAN: dict[str, Any] = {
    "runs": "somewhere",
    "seeds": [0, 1],
    "data": "Digits",
    "overrides": {"model.latent_dim": 8, "model.decoder": "MLPDecoder", "model.decoder.hidden": [8, 8]},
    "methods": [
        {"config": "configs/images/al_f.yaml"},
        {
            "config": "configs/images/al_c.yaml",
            "label": "AL-C",
            "overrides": {"--trainer.max_epochs": None},
            "seeds": [3],
        },
    ],
}


def plan(folder: Path, content: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
@pytest.mark.parametrize("methods", [1, pytest.param(None, marks=pytest.mark.slow)], ids=["first", "all"])
def test_shipped_plans_are_accepted(path: Path, methods: int | None) -> None:
    """Each method's config exists and takes every setting that the plan gives it."""
    runs = read_plan(path)
    assert {state.name for state in states(runs[:methods], resolve)} <= {"missing", "done", "cut off", "failed"}
    assert len({run.folder for run in runs}) == len(runs)


def test_a_plan_is_arguments(tmp_path: Path) -> None:
    first, second, third = read_plan(plan(tmp_path, PLAN))
    common = ("--data=Digits", "--model.latent_dim=8", "--model.decoder=MLPDecoder", "--model.decoder.hidden=[8, 8]")
    assert first.arguments == (
        "fit", "--config", "configs/images/al_f.yaml", *common,
        "--seed_everything=0", "--runs=somewhere", "--name=al_f-seed0",
    )  # fmt: skip
    assert second.arguments[-1] == "--name=al_f-seed1"
    assert (third.label, third.folder) == ("AL-C", Path("somewhere/AL-C-seed3"))
    assert "--trainer.max_epochs=null" in third.arguments


def test_configs_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(read_plan(plan(tmp_path, PLAN))[0].arguments[2]).is_file()


METHOD = {"config": "configs/images/al_f.yaml"}
MISTAKES = [
    ("", "plan.yaml holds no settings; give runs, seeds, methods"),
    ("a: [", "plan.yaml is no YAML"),
    (PLAN | {"seed": 1}, "there is no setting seed in .*plan.yaml; there are runs, seeds, data"),
    (PLAN | {"runs": 3}, "runs is 3 in .*; give text"),
    (PLAN | {"seeds": 3}, "seeds is 3 in .*; give a list"),
    (PLAN | {"seeds": []}, r"seeds is \[\] in method 1"),
    (PLAN | {"seeds": [0, 0]}, r"seeds is \[0, 0\] in method 1 .*; give different whole numbers"),
    (PLAN | {"seeds": ["a"]}, r"seeds is \['a'\] in method 1"),
    (PLAN | {"seeds": [-1]}, r"seeds is \[-1\]"),
    (PLAN | {"methods": []}, "methods is empty"),
    (PLAN | {"methods": ["vae"]}, "method 1 of .* holds no settings; give config"),
    (PLAN | {"methods": [{"label": "a"}]}, "config is missing in method 1"),
    (PLAN | {"methods": [METHOD | {"sedes": [1]}]}, "there is no setting sedes in method 1"),
    (PLAN | {"methods": [{"config": "configs/none.yaml"}]}, "config is configs/none.yaml in method 1 .*no such file"),
    (PLAN | {"methods": [METHOD | {"label": "../a"}]}, r"label is \.\./a in method 1"),
    (PLAN | {"methods": [METHOD, METHOD]}, "label is al_f in method 2 .* of a method before"),
    (PLAN | {"overrides": {"name": "a"}}, "overrides holds name in .*leave it out"),
]


@pytest.mark.parametrize(("content", "message"), MISTAKES, ids=[case[1][:40] for case in MISTAKES])
def test_mistakes_in_a_plan_are_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_plan(plan(tmp_path, content))


def test_settings_that_a_method_does_not_take_are_named(tmp_path: Path) -> None:
    runs = read_plan(plan(tmp_path, PLAN | {"overrides": {"model.no_such": 1}}))
    with pytest.raises(UserError, match=r"the plan's method al_f is refused: .*'no_such' is not accepted"):
        states(runs, resolve)


def state(folder: Path, **asked: Any) -> State:
    """The state of a run in the folder, of a plan that asks for the fake runs' settings, or for others."""
    run = PlannedRun("al", folder, ("fit", "--name=al"))
    found = state_of(run, changed(CONFIG, asked))
    if found.command and "--ckpt_path=last" not in found.command:
        refuse_to_overwrite(folder)  # the command line would begin it anew
    return found


ANEW, ON = ("fit", "--name=al"), ("fit", "--name=al", "--ckpt_path=last")


@pytest.mark.parametrize(
    ("status", "checkpoint", "name", "command"),
    [
        ("tested", True, "done", ()),
        ("fitted", True, "cut off", ON),
        ("running", True, "cut off", ON),
        ("interrupted", True, "cut off", ON),
        ("failed", True, "failed", ON),
        ("interrupted", False, "cut off", ANEW),
        ("failed", False, "failed", ANEW),
        ("running", False, "stuck", ()),
    ],
)
def test_state_of_a_run(tmp_path: Path, status: str, checkpoint: bool, name: str, command: tuple[str, ...]) -> None:
    folder = fake_run(tmp_path / "al", results={"status": status})
    if checkpoint:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").touch()
    found = state(folder)
    assert (found.name, found.command) == (name, command)
    if name == "stuck":
        assert "without a checkpoint to continue from; remove" in found.reason
        with pytest.raises(UserError):
            refuse_to_overwrite(folder)


def test_missing_and_killed_before_its_results(tmp_path: Path) -> None:
    assert state(tmp_path / "al") == State("missing", ANEW)
    (tmp_path / "al" / "checkpoints").mkdir(parents=True)
    assert state(tmp_path / "al").name == "stuck"


def test_a_run_of_other_settings_is_stuck(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "al")
    found = state(folder, **{"model.init_args.latent_dim": 16})
    assert found.name == "stuck"
    assert "model.latent_dim is 8 in its config.yaml, but 16 in the plan; move the folder" in found.reason
    assert state(folder, seed_everything=7, **{"model.init_args.later": 1}).name == "done"


def test_a_run_of_fewer_steps_goes_on(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "al")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    assert state(folder, **{"trainer.max_steps": 3000}) == State("cut off", ON)
    assert state(folder, **{"trainer.max_steps": 1000}).name == "stuck"


class Ended:
    """A process that has ended, and left what it was told to."""

    def __init__(self, status: int | BaseException) -> None:
        self.status, self.signals = status, []

    def wait(self, timeout: float | None = None) -> int:
        if isinstance(self.status, BaseException) and not self.signals:
            raise self.status
        return 1 if isinstance(self.status, BaseException) else self.status

    def poll(self) -> int | None:
        return None

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return plan(tmp_path, PLAN | {"runs": str(tmp_path / "runs")})


def starting(
    monkeypatch: pytest.MonkeyPatch, statuses: Sequence[int | BaseException], leave: bool = True
) -> list[Ended]:
    """Instead of trainings: processes with these exit statuses; those with 0 leave a tested run."""
    processes: list[Ended] = []

    def start(arguments: Sequence[str]) -> Ended:
        options = dict(option.split("=", 1) for option in arguments if "=" in option)
        processes.append(Ended(statuses[len(processes)]))
        if processes[-1].status == 0 and leave:
            config = changed(resolve(list(arguments)), {})
            folder = fake_run(Path(options["--runs"]) / options["--name"], int(options["--seed_everything"]))
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return processes[-1]

    monkeypatch.setattr(running, "start", start)
    monkeypatch.setattr(cli, "resolve", lambda arguments: changed(CONFIG, {"config": arguments[2]}))
    monkeypatch.setitem(globals(), "resolve", cli.resolve)
    return processes


def test_list_run_and_run_again(three: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The second of three fails: the third is run, and the next time the second alone."""
    processes = starting(monkeypatch, [0, 1, 0, 0])
    assert cli.main(["compare", "--plan", str(three)]) == 0
    out = capsys.readouterr().out
    assert out.count("missing ") == 3
    assert "alws fit --config configs/images/al_f.yaml --data=Digits" in out
    assert "0 of 3 runs are done" in out
    assert cli.main(["compare", "--plan", str(three), "--run"]) == 1
    assert len(processes) == 3
    out, err = capsys.readouterr()
    assert "al_f-seed1 ended with exit status 1" in err
    assert "AL-C " in out
    assert cli.main(["compare", "--plan", str(three), "--run"]) == 0
    assert len(processes) == 4
    assert cli.main(["compare", "--plan", str(three), "--run"]) == 0
    assert len(processes) == 4
    assert capsys.readouterr().out.count("log-likelihood by prior samples") == 2
    assert (three.parent / "runs" / "comparison" / "comparison.md").exists()


def test_ctrl_c_stops_the_training_and_all(three: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    processes = starting(monkeypatch, [0, KeyboardInterrupt()])
    assert cli.main(["compare", "--plan", str(three), "--run"]) == 130
    assert [process.signals for process in processes] == [[], [signal.SIGINT]]
    assert "stopped; the same command goes on from here" in capsys.readouterr().err


def test_one_method_only(three: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    processes = starting(monkeypatch, [0])
    assert cli.main(["compare", "--plan", str(three), "--run", "--only", "AL-C"]) == 0
    assert len(processes) == 1
    assert cli.main(["compare", "--plan", str(three), "--only", "VAE"]) == 2
    assert "--only names VAE, which is no method of the plan; there are al_f, AL-C" in capsys.readouterr().err


def test_two_at_once_are_refused(three: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    starting(monkeypatch, [])
    with running.alone(three.parent / "runs"):
        assert cli.main(["compare", "--plan", str(three), "--run"]) == 2
    assert "another alws compare --run is at work" in capsys.readouterr().err


SLEEP = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where this suite runs in the background
try:
    print("up", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(7)
"""


def test_time_that_is_over_interrupts_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = []

    def start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", SLEEP], process_group=0, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        processes.append(process)
        return process

    monkeypatch.setattr(running, "start", start)
    runs = [(PlannedRun("al", tmp_path / str(n), ("fit",)), State("missing", ("fit",))) for n in range(2)]
    assert running.run_all(runs, max_minutes=0.001) == ([], False)
    assert [process.returncode for process in processes] == [7]


def test_a_training_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """As within a long validation; the command goes on, and says so."""
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], process_group=0, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    monkeypatch.setattr(running, "PATIENCE", 0.2)
    running.stop(process)
    assert process.returncode == -signal.SIGKILL
    assert "did not stop within 0.2 s; it is killed" in capsys.readouterr().err


def test_a_killed_command_stops_its_training() -> None:
    with pytest.raises(KeyboardInterrupt), running.terminations_as_interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_is_ignored_is_not_by_the_trainings() -> None:
    """As under ``nohup`` and behind ``&``: a training that inherits it could not be told to stop."""
    before = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)]
    try:
        with running.terminations_as_interrupts():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGHUP)
            process = subprocess.Popen([sys.executable, "-c", SLEEP], process_group=0, stdout=subprocess.PIPE)
            assert process.stdout is not None
            process.stdout.readline()
            running.stop(process)
        assert process.returncode == 7
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)


def test_a_run_of_other_settings_is_named_and_not_compared(
    three: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    starting(monkeypatch, [0, 0])
    fake_run(three.parent / "runs" / "AL-C-seed3", 3, config={"model.init_args.latent_dim": 99})
    assert cli.main(["compare", "--plan", str(three), "--run"]) == 1
    out, err = capsys.readouterr()
    assert "model.latent_dim is 99 in its config.yaml, but 8 in the plan" in err
    assert "AL-C " not in out


def test_trainings_are_started_by_this_interpreter_and_code(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setattr(sys, "executable", "echo")
    assert running.start(["fit", "--name=a b"]).wait() == 0
    program, *arguments = capfd.readouterr().out.split()
    assert Path(program) == Path(cli.__file__).resolve()
    assert arguments == ["fit", "--name=a", "b"]

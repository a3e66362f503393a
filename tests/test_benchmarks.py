"""The benchmark scripts run as documented, with the smallest numbers they take; what they measure is judged nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEP = "training_step.py --sleep-samples 50 --channels 4 --rounds 1 --start-up false --threads 1"
COMMANDS = [  # first those of the command line, which looks classes up by name and must not find two of one name
    "data_share.py --config ROOT/configs/quickstart.yaml --trainer.max_steps 10 --model.learning.sleep_samples 40",
    "soak.py --steps 200 --memory 99 --time 999 --model.learning.sleep_samples 40",
    "hodgkin_huxley_step.py 20 1",
    "image_gradient.py --data Digits --steps 3 --samples 60 --repeats 2 --temperatures 9 --channels 4 --json real.json",
    "likelihood_estimators.py --seconds 0.1 --images 2 --steps 20 --reference 20000",
    "logistic_pixels.py 2",
    "low_noise.py --samples 100 --repeats 2 --json noise.json",
    "many_samples.py --sleep-samples 60 200 --sizes 50 --repeats 1 --figure many.png --json many.json",
    "sample_use.py --samples 60 --repeats 2 --json use.json",
    "scaling.py model --gpus 1 8 --json model.json",
    "scaling.py rates --device cpu --sleep-samples 50 --channels 4 --steps 2 --json rates.json",
    f"{STEP} --json step.json",
    f"{STEP} --methods AL-F --references false --clock processor --profile",
]
LONG = {"blowfly_likelihood.py", "gradient_error.py", "gradient_error_rivals.py"}  # half a minute or more of one core
PARTS = {"measuring.py", "published_step.py"}  # no command of their own

# One process, so that torch is imported once, but each script with modules of its own. The project's are found as an
# editable installation has them found: behind all folders of sys.path, and not from the folder one happens to be in.
RUN = """
import importlib.machinery as machinery, os, runpy, shlex, sys, traceback
root, path = sys.argv[1], [*sys.path]
ours = ("callbacks", "cli", "datamodules", "lightning_alws")
theirs = (os.path.join(root, "benchmarks"), os.path.join(root, "tests"))

class Installed:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return machinery.PathFinder.find_spec(name, [root]) if name in ours else None

sys.meta_path.insert(sys.meta_path.index(machinery.PathFinder) + 1, Installed)
for command in sys.argv[2:]:
    script, *arguments = shlex.split(command)
    sys.argv = [os.path.join(root, "benchmarks", script), *(part.replace("ROOT", root) for part in arguments)]
    sys.path[:] = [os.path.join(root, "benchmarks"), *path]
    for name, module in [*sys.modules.items()]:
        beside = (getattr(module, "__file__", None) or "").startswith(theirs)
        if script not in ("data_share.py", "soak.py") and (beside or name.partition(".")[0] in ours):
            del sys.modules[name]
    print("##", command, flush=True)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            print("## failed:", command, end.code, flush=True)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print("## failed:", command, flush=True)
"""


def test_every_script_is_known() -> None:
    commands = {command.split()[0] for command in COMMANDS}
    assert commands | LONG | PARTS == {path.name for path in (ROOT / "benchmarks").glob("*.py")}


@pytest.mark.slow
def test_the_scripts_run(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN, str(ROOT), *COMMANDS],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800,
    )  # fmt: skip
    said = done.stdout
    assert done.returncode == 0, said[-3000:]
    assert "## failed" not in said, said[said.index("## failed") - 3000 :][:4000]
    assert said.count("## ") == len(COMMANDS)
    for name in ("noise", "many", "use", "model", "rates", "step", "real"):
        assert json.loads((tmp_path / f"{name}.json").read_text()), name
    assert (tmp_path / "many.png").stat().st_size > 1000

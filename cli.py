"""The command line: ``alws fit|validate|test|predict --config FILE``, a LightningCLI; ``alws compare``, ``export``."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

# Imported so that the classes are known by their short names on the command line.
import callbacks
import datamodules  # noqa: F401
import lightning_alws.baselines
import lightning_alws.feature_ridge
import lightning_alws.learning
import lightning_alws.low_rank
import lightning_alws.mean_matching
import lightning_alws.membrane_features
import lightning_alws.models
import lightning_alws.networks
import lightning_alws.objectives
import lightning_alws.penalties
import lightning_alws.priors
import lightning_alws.quantile_kernel
import lightning_alws.set_kernels
import lightning_alws.standard_kernel
import lightning_alws.trace_features  # noqa: F401
from lightning_alws.allocation import keep_freed
from lightning_alws.checkpoints import FROM_DATA, AtomicCheckpointIO
from lightning_alws.comparison.command import compare
from lightning_alws.errors import UserError, condense
from lightning_alws.export import export
from lightning_alws.files import atomic_write
from lightning_alws.messages import ending, quieten, stopped
from lightning_alws.module import LatentVariableModule
from lightning_alws.run_folder import check_checkpoint, check_settings, checkpoint_to_load, default_name

CONFIGS = Path(__file__).parent / "configs"
COMPARISONS = "comparisons"  # the folder of plans among them
SECTIONS = {
    "checkpoint": callbacks.RunCheckpoint,
    "sample_grid": callbacks.SampleGrid,
    "fid_kid": callbacks.FIDKID,
    "log_likelihood": callbacks.LogLikelihood,
    "diagnostics": callbacks.RegressionDiagnostics,
    "traces": callbacks.ParameterTraces,
    "throughput": callbacks.Throughput,
    "compile": callbacks.Compile,
    "predictions": callbacks.Predictions,
    "results": callbacks.ResultsFile,
}


class Parser(LightningArgumentParser):
    """Argument parser whose errors are a sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong as a UserError instead of printing the usage."""
        raise UserError(condense(message)) from ex

    def parse_args(self, args: Any = None, *rest: Any, **settings: Any) -> Any:
        """As jsonargparse's, which hands the null of ``--model.learning.chunk null`` on as the word None."""
        if isinstance(args, list):
            args = [f"{arg[:-4]}null" if isinstance(arg, str) and arg.endswith("=None") else arg for arg in args]
        return super().parse_args(args, *rest, **settings)

    def parse_path(self, cfg_path: Any, *args: Any, **settings: Any) -> Any:
        """A config, or a UserError if it is no text."""
        try:
            return super().parse_path(cfg_path, *args, **settings)
        except UnicodeDecodeError as error:
            raise UserError(f"--config {cfg_path} is no text ({error}); give a YAML file.") from error


class SaveConfig(SaveConfigCallback):
    """``config.yaml`` in the run folder, whole or not at all; written by ``fit`` alone."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write it once, on rank zero; without the checkpoint that this session continued from, to rerun as it is."""
        if stage == "fit" and trainer.is_global_zero:
            config = self.config.clone()
            config.ckpt_path, config.begin_anew = None, False
            with atomic_write(Path(trainer.default_root_dir) / self.config_filename, "w") as file:
                file.write(self.parser.dump(config, skip_unset=False, skip_validation=True))  # parsing has validated it


class AlwsCLI(LightningCLI):
    """LightningCLI with a run folder, callbacks as sections, and checkpoints that never change the model silently."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        given = settings.get("args") or [""]
        self._asked = given[0] if isinstance(given, list) else None
        super().__init__(*args, **settings)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is asked for, where one is: each has a parser of its own, an eighth of a second of work."""
        known = LightningCLI.subcommands()
        return {self._asked: known[self._asked]} if self._asked in known else known

    def _dump_config(self) -> None:
        """As Lightning's, but without another validation of what parsing has just validated."""
        if not hasattr(self, "config_dump"):
            settings = {"skip_link_targets": False, "skip_unset": False, "skip_validation": True}
            self.config_dump = yaml.safe_load(self.parser.dump(self.config, **settings))[self.config.subcommand]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own arguments, the callbacks, and what the model takes from the data."""
        parser.add_argument(
            "--name", type=str | None, default=None, help="name of the run; by default the config's and the data's"
        )
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs; this one's is RUNS/NAME")
        parser.add_argument("--test_after_fit", type=bool, default=True, help="test the best checkpoint after training")
        parser.add_argument(
            "--begin_anew",
            type=bool,
            default=False,
            help="begin again in the folder of a run that was killed before its first checkpoint; with --ckpt_path "
            "last, go on where there is a checkpoint, else begin: one command for a job that is requeued",
        )
        for section, callback in SECTIONS.items():
            parser.add_lightning_class_args(callback, section)
        for attribute in FROM_DATA:
            parser.link_arguments(f"data.{attribute}", f"model.init_args.{attribute}", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Resolve ``best`` and ``last``, and compare the checkpoint with the command line instead of obeying it.

        Lightning's own version overrides ``--model`` by what the checkpoint holds, its class included, and says
        nothing; and where ``last`` finds no file, training starts afresh.
        """
        subcommand = self.config.subcommand
        config = self.config[subcommand]
        config.name = config.name or default_name(config)
        check_settings(config, subcommand)
        path = checkpoint_to_load(config, subcommand)
        config.ckpt_path = None if path is None else str(path)
        if path is not None:
            self._dump_config()
            check_checkpoint(path, config, subcommand, self.config_dump)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, at home in the run folder, with checkpoints that are written whole.

        Raises UserError where it refuses its settings.
        """
        config = self.config[self.subcommand]
        folder = Path(config.runs) / config.name
        plugins = self._get(self.config_init, "trainer").plugins or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        kwargs["default_root_dir"] = str(folder)
        if config.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(str(folder), name="", version="tensorboard", default_hp_metric=False)
        if config.trainer.enable_progress_bar is not False:
            kwargs["callbacks"] = [*(self._get(self.config_init, "trainer").callbacks or []), callbacks.ProgressBar()]
        try:
            return super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, ImportError, MisconfigurationException) as error:
            raise UserError(f"the trainer refuses its settings: {condense(str(error))}") from error

    def before_predict(self) -> None:
        """Keep no predictions in memory: the callback has written them, and weights are N numbers an image."""
        self.config_init.predict.return_predictions = False

    def after_fit(self) -> None:
        """Test the best checkpoint, or the last where nothing was monitored."""
        trainer: Any = self.trainer
        if trainer.fast_dev_run or trainer.interrupted or not self.config.fit.test_after_fit:
            return
        best = trainer.checkpoint_callback.best_model_path or trainer.checkpoint_callback.last_model_path
        if best:
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, weights_only=True, verbose=False)
            print_results(self.trainer)


def print_results(trainer: Trainer) -> None:
    """The test's figures, and where everything lies."""
    if not trainer.is_global_zero:
        return
    for name, value in sorted(trainer.callback_metrics.items()):
        print(f"{name:32} {float(value):.4g}")
    print(
        f"Everything of this run is in {trainer.default_root_dir}; watch it with: "
        f"tensorboard --logdir {Path(trainer.default_root_dir).parent}"
    )


def list_configs() -> str:
    """The configs that come with the application, and the plans of comparisons, as the help shows them."""
    files = sorted(file.relative_to(CONFIGS.parent) for file in CONFIGS.rglob("*.yaml"))
    plans = [str(file) for file in files if file.parent.name == COMPARISONS]
    configs = [str(file) for file in files if file.parent.name != COMPARISONS]
    return f"configs: {', '.join(configs)}; plans: {', '.join(plans)}"


def run_lightning(args: list[str]) -> None:
    """Run one of LightningCLI's commands; raises its errors as they are."""
    AlwsCLI(
        LatentVariableModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_callback=SaveConfig,
        parser_class=Parser,
        parser_kwargs={
            "prog": "alws",
            "description": "Amortised learning by wake-sleep. Beside the subcommands below, alws compare RUN [RUN ...] "
            "compares runs, and alws export --config FILE --ckpt_path best|last|FILE writes weights as safetensors; "
            f"alws compare --help and alws export --help tell how. {list_configs()}",
        },
        args=args,
    )


def resolve(args: list[str]) -> dict[str, Any]:
    """The configuration that a command line amounts to, nothing of it instantiated; raises UserError as it does."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            run_lightning([*args, "--print_config"])
    except SystemExit:
        return yaml.safe_load(printed.getvalue())
    raise AssertionError("--print_config ends the process")


def main(args: list[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        args: the arguments after the program's name; those of the process by default.
    """
    args = sys.argv[1:] if args is None else args
    if args == ["--version"]:
        print(f"alws {version('alws')} (torch {torch.__version__}, pytorch-lightning {version('pytorch-lightning')})")
        return 0
    debug = "--debug" in args
    args = [argument for argument in args if argument != "--debug"]
    quieten()
    keep_freed()
    # Where a model of one's own lies; behind everything else, so that no file there hides an installed module.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        if args[:1] == ["compare"]:
            return compare(args[1:], resolve)
        if args[:1] == ["export"]:
            return export(args[1:], resolve)
        run_lightning(args)
    except Exception as error:
        end = ending(error, "--out" if args[:1] in (["compare"], ["export"]) else "--runs", debug)
        if end is None:
            raise
        print(f"alws: {end[0]}", file=sys.stderr)
        return end[1]
    except (KeyboardInterrupt, SystemExit) as error:
        end = stopped(error)
        if end is None or debug:
            raise
        print(f"alws: {end[0]}", file=sys.stderr)
        return end[1]
    return 0


if __name__ == "__main__":
    sys.exit(main())

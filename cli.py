"""The command line: ``alws fit|validate|test|predict --config FILE``, a LightningCLI; ``alws compare``, ``export``."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import warnings
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
from callbacks.checkpoint import FOLDER as CHECKPOINTS
from callbacks.results import FILE as RESULTS
from callbacks.signals import Interrupted
from lightning_alws.checkpoints import AtomicCheckpointIO, compare_with_checkpoint, last_whole
from lightning_alws.comparison.command import compare
from lightning_alws.errors import UserError, condense, lost_process
from lightning_alws.export import export
from lightning_alws.files import atomic_write
from lightning_alws.module import LatentVariableModule

CONFIGS = Path(__file__).parent / "configs"
COMPARISONS = "comparisons"  # the folder of plans among them
FROM_DATA = (
    "image_shape",
    "likelihood",
    "event_shape",
    "input_current",
    "time_step",
)  # what a model takes from the data module
SECTIONS = {
    "checkpoint": callbacks.RunCheckpoint,
    "sample_grid": callbacks.SampleGrid,
    "fid_kid": callbacks.FIDKID,
    "log_likelihood": callbacks.LogLikelihood,
    "diagnostics": callbacks.RegressionDiagnostics,
    "traces": callbacks.ParameterTraces,
    "throughput": callbacks.Throughput,
    "predictions": callbacks.Predictions,
    "results": callbacks.ResultsFile,
}


class Parser(LightningArgumentParser):
    """Argument parser whose errors are a sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong as a UserError instead of printing the usage."""
        raise UserError(condense(message)) from ex


class SaveConfig(SaveConfigCallback):
    """``config.yaml`` in the run folder, whole or not at all; written by ``fit`` alone."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write it once, on rank zero; without the checkpoint that this session continued from, to rerun as it is."""
        if stage == "fit" and trainer.is_global_zero:
            config = self.config.clone()
            config.ckpt_path = None
            with atomic_write(Path(trainer.default_root_dir) / self.config_filename, "w") as file:
                file.write(self.parser.dump(config, skip_none=False))


class AlwsCLI(LightningCLI):
    """LightningCLI with a run folder, callbacks as sections, and checkpoints that never change the model silently."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own arguments, the callbacks, and what the model takes from the data."""
        parser.add_argument(
            "--name", type=str | None, default=None, help="name of the run; by default the config's and the data's"
        )
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs; this one's is RUNS/NAME")
        parser.add_argument("--test_after_fit", type=bool, default=True, help="test the best checkpoint after training")
        for section, callback in SECTIONS.items():
            parser.add_lightning_class_args(callback, section)
        for attribute in FROM_DATA:
            parser.link_arguments(f"data.{attribute}", f"model.init_args.{attribute}", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Resolve ``best`` and ``last``, and compare the checkpoint with the command line instead of obeying it.

        Lightning's own version overrides ``--model`` by what the checkpoint holds, its class included, and says
        nothing; and where ``last`` finds no file, training starts afresh.
        """
        config = self.config[self.config.subcommand]
        seed = config.seed_everything
        if not isinstance(seed, bool) and seed is not None and not 0 <= seed < 2**32:
            raise UserError(f"seed_everything is {seed}; give a number from 0 to {2**32 - 1}.")
        for attribute in FROM_DATA:
            if config.model.init_args.get(attribute) is not None:
                raise UserError(f"model.{attribute} is given, but it comes from the data module; leave it out.")
        config.name = config.name or self._default_name(config)
        clip = config.trainer.gradient_clip_val
        if clip is not None and clip < 0:
            raise UserError(f"trainer.gradient_clip_val is {clip}; give a positive number, or null for no clipping.")
        if ".." in Path(config.name).parts or Path(config.name).is_absolute():
            raise UserError(f"name is {config.name}, which leads out of the folder of runs; set --runs instead.")
        folder = Path(config.runs) / config.name
        fitting, trying = self.config.subcommand == "fit", bool(config.trainer.fast_dev_run)
        if config.ckpt_path is None:
            if fitting and not trying:
                refuse_to_overwrite(folder)
            if not fitting and not trying:
                raise UserError(
                    f"alws {self.config.subcommand} needs a trained model, but ckpt_path is not given; add --ckpt_path "
                    "best, last, or a file."
                )
            return
        if "://" in str(config.ckpt_path):
            raise UserError(
                f"ckpt_path is {config.ckpt_path}; a checkpoint is loaded from a local file only, download it first."
            )
        path = Path(config.ckpt_path)
        if str(config.ckpt_path) == "last":
            path = last_whole(folder / CHECKPOINTS)
        elif str(config.ckpt_path) == "best":
            path = folder / CHECKPOINTS / "best.ckpt"
        if not path.is_file():
            raise UserError(
                f"ckpt_path is {config.ckpt_path}, but there is no file {path}; give a checkpoint, or another --name."
            )
        config.ckpt_path = str(path)
        self._dump_config()
        compare_with_checkpoint(path, self.config_dump["model"], resuming=fitting)
        # Validation and prediction leave the figures in a run folder as they are; fit and test write them.
        of_this_run = path.resolve().parent.parent == folder.resolve()
        if self.config.subcommand in ("fit", "test") and not of_this_run and not trying:
            refuse_to_overwrite(folder)

    @staticmethod
    def _default_name(config: Any) -> str:
        files = [Path(str(file)).stem for file in config.get("config") or []]
        return f"{files[0] if files else 'run'}-{config.data.class_path.rsplit('.', 1)[-1]}"

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
        except (TypeError, ValueError, MisconfigurationException) as error:
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


def refuse_to_overwrite(folder: Path) -> None:
    """Raise a UserError if a run lives in the folder; one that ended before its first checkpoint is none."""
    if (folder / CHECKPOINTS).exists():
        raise UserError(
            f"the run folder {folder} already holds {CHECKPOINTS}; continue that run with --ckpt_path last, or give "
            "another --name."
        )
    if (folder / RESULTS).exists() and read_status(folder / RESULTS) not in ("failed", "interrupted"):
        raise UserError(
            f"the run folder {folder} already holds {RESULTS}, but no checkpoint to continue from; give another "
            "--name, or remove the folder if no run is writing to it."
        )


def read_status(results: Path) -> str | None:
    """The status in a ``results.json``; None where it has none that can be read."""
    try:
        return json.loads(results.read_text())["status"]
    except (ValueError, KeyError, TypeError):
        return None


def user_error_within(error: BaseException) -> BaseException:
    """The UserError that an error was raised from, however deep (jsonargparse wraps those of constructors)."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


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
    # Where a model of one's own lies; behind everything else, so that no file there hides an installed module.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        if args[:1] == ["compare"]:
            return compare(args[1:], resolve)
        if args[:1] == ["export"]:
            return export(args[1:], resolve)
        run_lightning(args)
    except Interrupted as signal:
        print(f"alws: {signal}", file=sys.stderr)
        return 128 + signal.number
    except Exception as error:
        if not debug and (reason := lost_process(error)) is not None:
            print(
                f"alws: another process of this run has died ({reason}); see above what it said, or whether the system "
                "killed it for memory, and go on with --ckpt_path last.",
                file=sys.stderr,
            )
            return 1
        cause = user_error_within(error)
        if debug or not isinstance(cause, UserError | MisconfigurationException | OSError | yaml.YAMLError):
            raise
        option = "--out" if args[:1] in (["compare"], ["export"]) else "--runs"
        advice = f"; see that {option} names a folder that can be written to" if isinstance(cause, OSError) else ""
        print(f"alws: {condense(str(cause))}{advice}", file=sys.stderr)
        return 2
    return 0


def quieten() -> None:
    """Silence warnings that are not about the user's run."""
    # The loaders hold tensors on the device: worker processes would only copy them.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Small data sets have fewer batches than the default logging interval; each config sets its own.
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    # The arguments are passed on by `main` on purpose, less our own.
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
    # Lightning's own use of a torch interface that is being renamed.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # Advertisements among Lightning's log lines.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    # We place checkpoints where a run already has some on purpose, when it is continued.
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")


if __name__ == "__main__":
    sys.exit(main())

"""What must be equal for figures to be compared; every refusal names the runs and the settings that differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from callbacks.log_likelihood import RELIABLE
from lightning_alws.checkpoints import flatten
from lightning_alws.comparison.records import Record, as_dict
from lightning_alws.errors import UserError

# Which may differ in the data's settings: how the data are read and batched, not what they are.
DATA_APART = {"batch_size", "eval_batch_size", "root", "download"}
DISTANCES = ("extractor", "extractor_hash", "feature_width", "images_compared.test", "seed")
KERNEL_DISTANCES = ("kid_subset_size.test", "kid_subsets")
LIKELIHOODS = ("test/log_likelihood", "test/log_likelihood_encoder")
ADVICE = "test them alike (alws test), or leave these figures out by --metrics"


def check_comparable(records: Sequence[Record], metrics: Sequence[str]) -> None:
    """Raise a UserError if the runs' data differ, or how the figures that are asked for were made.

    FID and KID need one extractor, one count, one choice of images and, for KID, one kind of subsets. Log-likelihoods
    need the same images. Their estimators, all of the same quantity, may differ where every one is marked reliable, or
    where the same settings left the choice to each model; what is marked unreliable is then too low, and shown so.
    """
    require_equal(records, data_settings, "the runs", "compare runs on the same data")
    for metric in metrics:
        those = [record for record in records if metric in record.metrics]
        if is_distance(metric):
            require_equal(those, partial(distance_settings, metric=metric), metric, ADVICE)
        elif metric in LIKELIHOODS:
            part = metric.removeprefix("test/")
            require_equal(those, partial(estimator, part=part, names=("images", "images_chosen")), metric, ADVICE)
            if part != "log_likelihood" or not (all(map(is_reliable, those)) or _same_choice(those)):
                require_equal(those, partial(estimator, part=part), metric, ADVICE)
        else:
            require_equal(those, _other_settings, metric, ADVICE)


def is_distance(metric: str) -> bool:
    """Whether a figure is a FID or a KID."""
    return metric.removeprefix("test/").startswith(("fid_", "kid_"))


def data_settings(record: Record) -> dict[str, Any]:
    """The name of the data and, where there is a config, all settings that make them other data."""
    data = flatten(as_dict((record.config or {}).get("data")))
    return {"data": record.results["data"]} | {
        f"data.{name}": value for name, value in data.items() if name not in DATA_APART
    }


def distance_settings(record: Record, metric: str) -> dict[str, Any]:
    """What a FID or KID rests on."""
    made = flatten(as_dict(record.provenance.get("fid_kid")))
    names = DISTANCES + (KERNEL_DISTANCES if "kid_" in metric else ())
    return {f"fid_kid.{name}": made.get(name) for name in names}


def estimator(record: Record, part: str = "log_likelihood", names: Sequence[str] = ()) -> dict[str, Any]:
    """How a log-likelihood was made: method and counts (or those named), without what was measured, such as errors."""
    made = flatten(as_dict(record.provenance.get(part)))
    return {
        f"{part}.{name}": value
        for name, value in made.items()
        if isinstance(value, str | int) and (not names or name in names)
    }


def _same_choice(records: Sequence[Record]) -> bool:
    """Whether one set of settings decided on the estimator in every run."""
    sections = [flatten(as_dict((record.config or {}).get("log_likelihood"))) for record in records]
    chosen = [{name: value for name, value in one.items() if not name.startswith("val_")} for one in sections]
    return all(one and one == chosen[0] for one in chosen)


def _other_settings(record: Record) -> dict[str, Any]:
    """Methods and counts of all other figures: it is not known which of them rests on what."""
    own = {"fid_kid", *(metric.removeprefix("test/") for metric in LIKELIHOODS)}
    made = flatten({part: value for part, value in record.provenance.items() if part not in own})
    return {name: value for name, value in made.items() if isinstance(value, str | int)}


def is_reliable(record: Record, metric: str = "test/log_likelihood") -> bool:
    """Whether a log-likelihood is marked so, or has the effective samples; a run that says nothing about it is not."""
    if metric == "test/log_likelihood_encoder":
        return record.metrics.get("test/effective_samples_encoder", 0.0) >= RELIABLE
    return record.metrics.get("test/log_likelihood_reliable", 0.0) == 1.0


def require_equal(
    records: Sequence[Record], settings: Callable[[Record], Mapping[str, Any]], what: str, advice: str
) -> None:
    """Raise a UserError that names every setting which differs between runs, its values and the runs of each."""
    each = [settings(record) for record in records]
    differences = []
    for name in dict.fromkeys(name for one in each for name in one):
        values: dict[str, list[str]] = {}
        for record, one in zip(records, each, strict=True):
            if name in one or record.config is not None or not name.startswith("data."):
                values.setdefault(str(one.get(name, "unknown")), []).append(record.name)
        if len(values) > 1:
            differences.append(f"{name} is " + ", but ".join(f"{value} in {_some(r)}" for value, r in values.items()))
    if differences:
        raise UserError(f"{what} cannot be compared: {'; '.join(differences)}; {advice}.")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} others"

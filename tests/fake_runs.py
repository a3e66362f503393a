"""Run folders as a run leaves them, without the run: results.json, config.yaml and samples/test.npz."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from callbacks.sample_grid import ARRAYS, FOLDER, save_arrays

METRICS = {
    "train/objective": -1.0,
    "test/log_likelihood": -22.0,
    "test/log_likelihood_reliable": 1.0,
    "test/fid_means": 15.0,
    "test/fid_samples": 3.0,
    "test/kid_means": 60.0,
    "test/kid_samples": -1.0,
    "test/fid_floor": 2.5,
    "test/kid_floor": -3.0,
    "test/fid_pixels": 30.0,
    "test/kid_pixels": 40.0,
}
PROVENANCE = {
    "fid_kid": {
        "extractor": "lenet-Digits-64",
        "extractor_hash": "0c36df780630",
        "extractor_accuracy": 0.87,
        "feature_width": 64,
        "images_compared": {"test": 297, "floor": 297},
        "kid_subset_size": {"test": 148},
        "kid_subsets": 100,
        "seed": 0,
    },
    "log_likelihood": {
        "method": "prior samples",
        "samples_per_image": 200_000,
        "images": 297,
        "standard_error": 0.2,
    },
}
CONFIG = {
    "seed_everything": 0,
    "model": {
        "class_path": "lightning_alws.models.ImageModel",
        "init_args": {"latent_dim": 8, "learning": {"centring": 0.0}},
    },
    "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 100, "seed": 0, "binarize": True}},
    "trainer": {"max_steps": 2000, "enable_progress_bar": True},
    "log_likelihood": {"num_samples": 200_000, "val_samples": 20_000, "encoder_steps": 2_000},
    "name": "run",
    "runs": "runs",
    "ckpt_path": None,
}


def changed(nested: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with other values at dotted names."""
    copy = json.loads(json.dumps(nested))
    for name, value in changes.items():
        part = copy
        *path, last = name.split(".")
        for key in path:
            part = part.setdefault(key, {})
        part[last] = value
    return copy


def fake_run(
    folder: Path,
    seed: int = 0,
    metrics: dict[str, float | str | None] | None = None,
    provenance: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
    images: bool = False,
) -> Path:
    """A tested run on Digits; the dictionaries change it by (dotted) names, None takes a figure away."""
    figures = {name: value for name, value in {**METRICS, **(metrics or {})}.items() if value is not None}
    content = {
        "status": "tested",
        "model": "ImageModel",
        "data": "Digits",
        "seed": seed,
        "training": {"steps": 2000, "epochs": 1, "seconds": 100.0, "skipped_steps": 0},
        "metrics": figures,
        "provenance": changed(PROVENANCE, provenance or {}),
        "machine": {"device": "cpu", "processes": 1, "threads": 1},
        "versions": {"alws": "0.1.0", "torch": "2.15.0"},
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(changed(content, results or {})))
    own = changed(CONFIG, {"seed_everything": seed, "name": folder.name, **(config or {})})
    (folder / "config.yaml").write_text(yaml.safe_dump(own))
    if images:
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.rand(64, 1, 8, 8, generator=generator) for _ in range(3)]
        save_arrays(drawn[0].round(), drawn[1].round(), drawn[2], folder / FOLDER / ARRAYS)
    return folder

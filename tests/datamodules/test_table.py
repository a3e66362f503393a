"""A user's own table: split, and every way it can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import Table
from lightning_alws.errors import UserError


def table(path: Path, **settings) -> Table:
    data = Table(str(path), **({"validation_size": 3, "test_size": 4} | settings))
    data.prepare_data()
    data.setup()
    return data


def test_rows_are_split_once_and_for_all(tmp_path: Path) -> None:
    rows = np.arange(40.0).reshape(20, 2)
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",")
    data = table(tmp_path / "a.csv")
    assert data.event_shape == (2,)
    assert data.sizes == {"train": 13, "val": 3, "test": 4}
    together = torch.cat([data.observations(split) for split in ("train", "val", "test")])
    assert torch.equal(together[together[:, 0].argsort()], torch.from_numpy(rows).float())
    again = table(tmp_path / "a.csv")
    assert torch.equal(again.observations("test"), data.observations("test"))
    assert not torch.equal(table(tmp_path / "a.csv", seed=1).observations("test"), data.observations("test"))
    batches = list(data.val_dataloader())
    assert torch.equal(batches[0], data.observations("val"))


def test_column_names_and_arrays_of_any_shape(tmp_path: Path) -> None:
    (tmp_path / "named.csv").write_text("dose, response\n" + "1,2\n" * 9)
    assert table(tmp_path / "named.csv").sizes["train"] == 2
    np.save(tmp_path / "b.npy", np.zeros((12, 2, 3)))
    assert table(tmp_path / "b.npy").event_shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", "1\n", r"data\.path is .*a\.txt; give a file that ends in \.csv or \.npy"),
        ("missing.csv", None, "there is no such file"),
        ("empty.csv", "", "has no rows of numbers"),
        ("names.csv", "a,b\n", "has no rows of numbers"),
        ("ragged.csv", "1,2\n3\n", "has 1 columns in line 2 and 2 before it"),
        ("word.csv", "a,b\n1,2\n3,four\n", "has 'four' in line 3, which is no number"),
        ("nan.csv", "1\n" * 9 + "nan\n", "has a NaN or an infinity in 1 of 10 rows, first in row 10"),
        ("short.csv", "1\n" * 7, r"take all 7 rows of"),
        ("broken.npy", "no array", "is no NumPy array of numbers"),
    ],
)
def test_mistakes_are_one_sentence(name: str, content: str | None, sentence: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        table(tmp_path / name)


def test_senseless_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.validation_size is -1"):
        Table(str(tmp_path / "a.csv"), validation_size=-1)

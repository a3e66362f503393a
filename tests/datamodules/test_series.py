"""A user's series: named columns, or one sentence that says what is wrong with the file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from datamodules.series import ObservedSeries, check_even, named_columns, read_columns
from lightning_alws.errors import UserError


def write(folder: Path, text: str) -> Path:
    path = folder / "series.csv"
    path.write_text(text)
    return path


def test_columns_are_found_by_name_in_any_order_and_case(tmp_path) -> None:
    path = write(tmp_path, "day, Count ,who\n2,948,a\n\n4,942,b\n6,911.5,c\n")
    columns = read_columns(path, ["count", "day"])
    assert list(columns) == ["count", "day"]
    assert torch.equal(columns["count"], torch.tensor([948, 942, 911.5], dtype=torch.float64))
    assert torch.equal(columns["day"], torch.tensor([2, 4, 6], dtype=torch.float64))


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path) -> None:
    path = tmp_path / "series.csv"
    path.write_bytes("﻿count\n1\n".encode())
    assert read_columns(path, ["count"])["count"].tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "which is empty"),
        ("day;count\n2;948\n", "no column 'count'; name the columns in its first line, separated by commas"),
        ("count,day,Count\n2,948,3\n", "has two columns 'count'"),
        ("948\n942\n", "has no column 'count'; name the columns in its first line"),
        ("count\n", "has no rows of numbers"),
        ("day,count\n2,948\n4\n", "column 'count' holds '' in row 2"),
        ("count\n948\nnan\n", "column 'count' holds 'nan' in row 2"),
        ("count\ninf\n", "column 'count' holds 'inf' in row 1"),
        ("count\nmany\n", "column 'count' holds 'many' in row 1"),
    ],
)
def test_a_broken_file_is_named_in_one_sentence(tmp_path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_columns(write(tmp_path, text), ["count"])
    assert str(error.value).count(".csv") == 1


def test_a_file_that_is_no_text_or_missing_is_named(tmp_path) -> None:
    path = tmp_path / "series.csv"
    with pytest.raises(UserError, match="there is no such file"):
        read_columns(path, ["count"])
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="cannot be read as text"):
        read_columns(path, ["count"])


class Three(ObservedSeries):
    @property
    def event_shape(self) -> tuple[int, ...]:
        return (4, 2)

    def series(self) -> Tensor:
        return torch.arange(24.0).reshape(3, 4, 2)


def test_a_column_is_named_once(tmp_path) -> None:
    with pytest.raises(UserError, match="'count' is asked for twice"):
        read_columns(write(tmp_path, "count\n3\n4\n"), ["count", "count"])


def test_columns_and_a_file_go_together() -> None:
    assert named_columns("series.csv", ["x"]) == ["x"]
    assert named_columns(None, None) == []
    with pytest.raises(UserError, match="data.path is series.csv, but data.columns names none"):
        named_columns("series.csv", None)
    with pytest.raises(UserError, match="data.columns is x, y, but there is no file"):
        named_columns(None, ["x", "y"])


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([3.0], "one row only"),
        ([0.0, 1.0, 1.0], "goes from 1 to 1 days in row 3; give rows in order of time"),
        ([2.0, 1.0, 0.0], "goes from 2 to 1 days in row 2"),
        ([0.0, 2.0, 4.0, 8.0], "time steps are 2 days but 4 days before row 4"),
    ],
)
def test_uneven_times_are_named(times: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_even(Path("series.csv"), torch.tensor(times).double(), "days")
    assert check_even(Path("series.csv"), torch.tensor([0.0, 2.0, 4.0001]).double(), "days") == pytest.approx(2)


class Still(Three):
    def series(self) -> Tensor:
        return torch.full((3, 4, 2), 0.1)


def test_series_in_which_nothing_changes_are_named() -> None:
    with pytest.raises(UserError, match=r"Still holds the number 0\.1 at every time"):
        Still().setup()


def test_every_split_is_the_series_in_one_batch() -> None:
    data = Three()
    data.setup()
    assert all(torch.equal(data.observations(split), data.series()) for split in ("train", "val", "test"))
    (batch,) = data.train_dataloader()
    assert torch.equal(batch.sort(0).values, data.series())

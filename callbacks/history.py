"""Numbers over the steps of a run, kept by a figure that draws their course, also across a resume."""

from __future__ import annotations

from typing import Any

from callbacks.figure import ExperimentFigure


class FigureWithHistory(ExperimentFigure):
    """A figure that remembers the numbers it measured: ``steps`` and, for each name, ``history[name]``."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.history: dict[str, list[float]] = {}

    def remember(self, step: int, **numbers: float) -> None:
        """Append the numbers of a step; the names must be the same at each."""
        if self.steps and step <= self.steps[-1]:
            return  # a validation by itself, of a step that was seen in training
        self.steps.append(step)
        for name, value in numbers.items():
            self.history.setdefault(name, []).append(float(value))

    def state_dict(self) -> dict[str, Any]:
        """The course so far, for the checkpoint."""
        return {"steps": self.steps, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the course of a checkpoint, unless a longer one is held: the best one is tested after the last."""
        if len(state["steps"]) > len(self.steps):
            self.steps, self.history = list(state["steps"]), {k: list(v) for k, v in state["history"].items()}

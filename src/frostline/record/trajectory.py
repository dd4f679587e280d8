"""Values over training at bounded memory: when there are too many points, every second one is dropped.

Points are at least `stride` steps apart, and `stride` doubles whenever there are more than `limit` points. So however
long the run, limit / 2 to limit points are spread evenly over it. The newest point is always kept; when the next one is
added, it is dropped unless it is `stride` steps after the point before it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from torch import Tensor


class Trajectory:
    """Steps and their values, the newest last.

    Args:
        limit: The most points to keep, 2 or more.
        stride: The smallest distance of two points, in steps; 1 in a new run.
        points: Points to start with, their steps ascending.

    Example:
        >>> from torch import tensor
        >>> trajectory = Trajectory(limit=4)
        >>> for step in range(8):
        ...     trajectory.add(step, tensor(float(step)))
        >>> trajectory.steps, trajectory.stride
        ([0, 4, 7], 4)
    """

    def __init__(self, limit: int, stride: int = 1, points: Iterable[tuple[int, Tensor]] = ()) -> None:
        self.limit = limit
        self.stride = stride
        self.steps: list[int] = []
        self.values: list[Tensor] = []
        for step, value in points:
            self.steps.append(step)
            self.values.append(value)

    def add(self, step: int, value: Tensor) -> None:
        """Add the newest point; `step` is greater than every earlier step."""
        if len(self.steps) > 1 and self.steps[-1] - self.steps[-2] < self.stride:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)
        while len(self.steps) > self.limit:
            self.stride *= 2
            self._thin()

    def forget_from(self, step: int) -> None:
        """Drop the points at and after `step`."""
        count = bisect_left(self.steps, step)
        del self.steps[count:], self.values[count:]

    def _thin(self) -> None:
        kept = [0]
        for index, step in enumerate(self.steps):
            if step - self.steps[kept[-1]] >= self.stride:
                kept.append(index)
        if kept[-1] != len(self.steps) - 1:
            kept.append(len(self.steps) - 1)
        self.steps = [self.steps[index] for index in kept]
        self.values = [self.values[index] for index in kept]

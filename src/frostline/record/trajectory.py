"""Values of one thing over training, at bounded memory: when they grow too many, every second one goes.

Points keep at least `stride` steps between them, and `stride` doubles whenever there are more than `limit` points. So
the points are spread evenly over the whole run, however long it is: between limit / 2 and limit of them. The newest
point is always there; it goes when the next one comes, unless it stands `stride` steps after the one before it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from torch import Tensor


class Trajectory:
    """Steps and the values that go with them, the newest last.

    Args:
        limit: How many points to keep at most, 2 or more.
        stride: The least distance of two points, in steps: 1 at first.
        points: Points to begin with, in the order of their steps.

    Example:
        >>> from torch import tensor
        >>> path = Trajectory(limit=4)
        >>> for step in range(8):
        ...     path.add(step, tensor(float(step)))
        >>> path.steps, path.stride
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
        """Add the newest point; `step` is greater than every step before it."""
        if len(self.steps) > 1 and self.steps[-1] - self.steps[-2] < self.stride:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)
        while len(self.steps) > self.limit:
            self.stride *= 2
            self._thin()

    def forget_from(self, step: int) -> None:
        """Drop the points at `step` and after it."""
        count = bisect_left(self.steps, step)
        del self.steps[count:], self.values[count:]

    def _thin(self) -> None:
        kept = [0]
        for place, step in enumerate(self.steps):
            if step - self.steps[kept[-1]] >= self.stride:
                kept.append(place)
        if kept[-1] != len(self.steps) - 1:
            kept.append(len(self.steps) - 1)
        self.steps = [self.steps[place] for place in kept]
        self.values = [self.values[place] for place in kept]

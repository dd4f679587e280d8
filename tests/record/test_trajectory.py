"""Trajectories stay small, spread evenly, and end with the newest point."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frostline.record.trajectory import Trajectory


def filled(limit, steps):
    trajectory = Trajectory(limit)
    for step in steps:
        trajectory.add(step, torch.tensor(step))
    return trajectory


@given(limit=st.integers(2, 40), gaps=st.lists(st.integers(1, 9), min_size=1, max_size=400))
def test_points_are_few_keep_their_distance_and_end_with_the_newest(limit, gaps):
    steps = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    trajectory = filled(limit, steps)
    assert len(trajectory.steps) <= limit
    assert trajectory.steps[0] == steps[0]
    assert trajectory.steps[-1] == steps[-1]
    assert set(trajectory.steps) <= set(steps)
    assert [value.item() for value in trajectory.values] == trajectory.steps
    distances = [later - earlier for earlier, later in zip(trajectory.steps, trajectory.steps[1:], strict=False)]
    assert all(distance >= trajectory.stride for distance in distances[:-1])


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 1000, 4097])
def test_a_point_per_step_leaves_a_stride_of_a_power_of_two_and_at_least_half_the_limit(count):
    trajectory = filled(64, range(count))
    assert trajectory.steps[:-1] == list(range(0, count, trajectory.stride))[: len(trajectory.steps) - 1]
    assert len(trajectory.steps) == count or len(trajectory.steps) > 32
    assert trajectory.stride & (trajectory.stride - 1) == 0


@given(limit=st.integers(2, 40), total=st.integers(1, 400), data=st.data())
def test_a_run_resumed_from_an_earlier_step_ends_like_an_uninterrupted_one(limit, total, data):
    stopped = data.draw(st.integers(1, total))
    again = data.draw(st.integers(0, stopped))
    first = filled(limit, range(stopped))
    second = Trajectory(limit, first.stride, zip(first.steps, first.values, strict=True))
    second.forget_from(again)
    for step in range(again, total):
        second.add(step, torch.tensor(step))
    whole = filled(limit, range(total))
    assert (second.steps, second.stride) == (whole.steps, whole.stride)
    assert torch.equal(torch.stack(second.values), torch.stack(whole.values))

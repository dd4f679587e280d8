"""Trajectories stay small, spread evenly, and end with the newest point."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frostline.record.trajectory import Trajectory


def walked(limit, steps):
    path = Trajectory(limit)
    for step in steps:
        path.add(step, torch.tensor(step))
    return path


@given(limit=st.integers(2, 40), gaps=st.lists(st.integers(1, 9), min_size=1, max_size=400))
def test_points_are_few_keep_their_distance_and_end_with_the_newest(limit, gaps):
    steps = [sum(gaps[: place + 1]) for place in range(len(gaps))]
    path = walked(limit, steps)
    assert len(path.steps) <= limit
    assert path.steps[0] == steps[0]
    assert path.steps[-1] == steps[-1]
    assert set(path.steps) <= set(steps)
    assert [value.item() for value in path.values] == path.steps
    distances = [later - earlier for earlier, later in zip(path.steps, path.steps[1:], strict=False)]
    assert all(distance >= path.stride for distance in distances[:-1])


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 1000, 4097])
def test_one_point_a_step_leaves_every_power_of_two_and_never_under_half_the_limit(count):
    path = walked(64, range(count))
    assert path.steps[:-1] == list(range(0, count, path.stride))[: len(path.steps) - 1]
    assert len(path.steps) == count or len(path.steps) > 32
    assert path.stride & (path.stride - 1) == 0


@given(limit=st.integers(2, 40), total=st.integers(1, 400), data=st.data())
def test_a_run_that_stops_and_goes_on_from_an_earlier_step_ends_as_one_that_never_stopped(limit, total, data):
    stopped = data.draw(st.integers(1, total))
    again = data.draw(st.integers(0, stopped))
    first = walked(limit, range(stopped))
    second = Trajectory(limit, first.stride, zip(first.steps, first.values, strict=True))
    second.forget_from(again)
    for step in range(again, total):
        second.add(step, torch.tensor(step))
    whole = walked(limit, range(total))
    assert (second.steps, second.stride) == (whole.steps, whole.stride)
    assert torch.equal(torch.stack(second.values), torch.stack(whole.values))

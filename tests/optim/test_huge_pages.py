"""Large tables move to huge pages if their memory is private to this process, and no value changes."""

from pathlib import Path

import pytest
import torch

from frostline.optim import huge_pages

CPU = torch.device("cpu")
LARGE = (2**19, 40)  # 80 MB of float32


def huge_kilobytes(tensor):
    """Return how much of a tensor's memory is in huge pages, according to the system."""
    overlaps, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(maxsplit=1)[0]
        if "-" in head and not head.endswith(":"):
            first, last = (int(end, 16) for end in head.split("-"))
            overlaps = first < tensor.data_ptr() + tensor.nbytes and tensor.data_ptr() < last
        elif overlaps and head == "AnonHugePages:":
            total += int(line.split()[1])
    return total


needs_huge_pages = pytest.mark.skipif(not huge_pages._enabled(), reason="no huge pages on this system")


@needs_huge_pages
def test_large_state_is_made_in_huge_pages_and_small_state_is_not():
    large = huge_pages.full(LARGE, 0.5, torch.float32, CPU)
    assert huge_kilobytes(large) > large.nbytes // 1024 * 0.9
    assert (large == 0.5).all()
    small = huge_pages.full((2, 3), 7, torch.float64, CPU)
    assert small.dtype == torch.float64
    assert small.tolist() == [[7.0] * 3] * 2


@needs_huge_pages
def test_a_large_table_moves_to_huge_pages_without_a_change_of_value_or_address():
    table = torch.arange(LARGE[0] * LARGE[1], dtype=torch.float32).view(LARGE)
    copy, address, before = table.clone(), table.data_ptr(), huge_kilobytes(table)
    huge_pages.collapse(table)
    after = huge_kilobytes(table)
    if after <= before:
        pytest.skip("the system has no huge pages free")
    assert torch.equal(table, copy)
    assert table.data_ptr() == address


@needs_huge_pages
def test_memory_that_other_processes_use_is_left_alone(tmp_path):
    (tmp_path / "table").write_bytes(bytes(4 * LARGE[0] * LARGE[1]))
    mapped = torch.from_file(str(tmp_path / "table"), shared=False, size=LARGE[0] * LARGE[1])
    shared = torch.zeros(LARGE).share_memory_()
    assert not huge_pages._is_ours(mapped)
    assert not huge_pages._is_ours(shared)
    assert huge_pages._is_ours(torch.zeros(LARGE))


def test_other_devices_and_strided_tables_are_left_alone():
    assert not huge_pages._worth_it(torch.empty(LARGE, device="meta"))
    assert not huge_pages._worth_it(torch.empty(LARGE)[:, ::2])
    huge_pages.collapse(torch.empty(LARGE, device="meta"))
    assert huge_pages.full(LARGE, 0, torch.float32, torch.device("meta")).shape == LARGE

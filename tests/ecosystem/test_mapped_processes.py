"""Two processes share one mapped table: DDP never touches it, and both learn what one process learns."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).with_name("train_mapped.py")


def run(launch, processes, table, out):
    out.mkdir()
    launch(SCRIPT, table, out, processes=processes)
    return [load_file(out / f"rank{rank}.safetensors") for rank in range(processes)]


def test_a_mapped_table_under_ddp_learns_the_same_rows_as_in_one_process(tmp_path, launch):
    table = tmp_path / "table.safetensors"
    save_file({"table": torch.randn(12, 6, generator=torch.Generator().manual_seed(0))}, table)
    before = table.read_bytes()
    (alone,) = run(launch, 1, table, tmp_path / "one")
    first, second = run(launch, 2, table, tmp_path / "two")
    assert torch.equal(first["end"], second["end"])
    assert (first["end"] != first["start"]).any(1).nonzero().flatten().tolist() == [3, 9]
    torch.testing.assert_close(first["end"], alone["end"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first["head"], alone["head"], rtol=1e-5, atol=1e-6)
    assert table.read_bytes() == before

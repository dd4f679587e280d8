"""The initial table has the bits of the vectors and random rows like them; the audit finds every entry that moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from frostline import tagger, vectors
from frostline.tagger.training.initial_table import InitialTable, compare


def test_the_table_keeps_the_bits_of_the_vectors_and_draws_the_rest_with_their_spread() -> None:
    draw = np.random.default_rng(0)
    matrix = (draw.normal(size=(3000, 4)) * [1, 2, 3, 4] + [0, 0, 5, 5]).astype(np.float32)
    table = InitialTable.draw(matrix, 2000, np.random.default_rng(1)).to_tensor().numpy()
    assert table.shape == (5002, 4)
    assert np.array_equal(table[2002:], matrix)
    assert (table[0] == 0).all()
    assert np.allclose(table[1:2002].std(axis=0), [1, 2, 3, 4], rtol=0.1)
    assert np.allclose(table[1:2002].mean(axis=0), [0, 0, 5, 5], atol=0.3)
    assert np.array_equal(table, InitialTable.draw(matrix, 2000, np.random.default_rng(1)).to_tensor().numpy())


def test_random_rows_have_the_mean_and_deviation_of_the_whole_matrix() -> None:
    matrix = np.random.default_rng(0).normal(3, 2, size=(5000, 50)).astype(np.float32)
    drawn = np.random.default_rng(7).normal(matrix.mean(axis=0), matrix.std(axis=0), size=(12, 50)).astype(np.float32)
    drawn[0] = 0
    assert torch.equal(InitialTable.draw(matrix, 10, np.random.default_rng(7)).random, torch.from_numpy(drawn))


def test_rows_in_any_order_are_those_of_the_table_and_a_copy() -> None:
    initial = InitialTable(torch.tensor([[0.0], [1.0], [2.0]]), np.array([[3.0], [-0.0], [5.0]], dtype=np.float32))
    rows = initial.rows(torch.tensor([5, 1, 3, 5, 0]))
    assert rows.tolist() == [[5.0], [1.0], [3.0], [5.0], [0.0]]
    rows.fill_(9.0)
    assert initial.to_tensor().tolist() == [[0.0], [1.0], [2.0], [3.0], [0.0], [5.0]]
    assert torch.signbit(initial.to_tensor())[4]


def test_a_table_of_many_blocks_of_mapped_vectors_is_whole(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(size=(25_000, 3)).astype(np.float32)
    vectors.save(vectors.Vectors([f"w{i}" for i in range(25_000)], matrix), tmp_path / "v.safetensors")
    initial = InitialTable.draw(vectors.load(tmp_path / "v.safetensors").matrix, 5, np.random.default_rng(0))
    assert torch.equal(initial.to_tensor()[7:], torch.from_numpy(matrix))
    assert torch.equal(torch.cat(list(initial.blocks())), initial.to_tensor())
    assert len(initial) == 25_007


def test_the_audit_finds_every_planted_change_of_a_bit() -> None:
    before = torch.randn(6, 3)
    before[0, 0] = 0.0
    after = before.clone()
    after[0, 0] = -0.0
    after[4] += 1
    after[5, 2] += 1
    learns = torch.tensor([False, False, False, True, True, False])
    assert compare(before.__getitem__, after.__getitem__, learns) == tagger.Audit(12, 2, 2, 1)
    assert compare(before.__getitem__, before.clone().__getitem__, learns) == tagger.Audit(12, 0, 2, 0)

"""The examples run and print what their docstrings say."""

import re
import runpy
import sys

import pytest

from frostline.record import read_record


@pytest.fixture
def examples(pytestconfig):
    return pytestconfig.rootpath / "examples"


@pytest.fixture
def run(examples, monkeypatch, capsys, tmp_path):
    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(examples / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_each_example_has_a_test(examples):
    tested = {
        "attack_classifier",
        "cbow_attack",
        "known_and_missing_words",
        "new_tokens",
        "only_some_variables",
        "only_these_rows",
        "tagger_embedding_moves",
    }
    assert {path.stem for path in examples.glob("*.py")} == tested


def test_known_words_are_unchanged_and_missing_words_move(run):
    out = run("known_and_missing_words")
    assert "3 of 10 rows learn" in out
    for word in ("<pad>", "the", "ice", "melts", "in", "spring", "snow"):
        assert re.search(rf"^  {re.escape(word)} +(known|padding) +unchanged, bit for bit$", out, re.M)
    moves = re.findall(r"^  (\S+) +missing +moved by (\S+)$", out, re.M)
    assert [word for word, _ in moves] == ["frostline", "permafrosty", "brr"]
    assert all(float(distance) > 0.1 for _, distance in moves)


def test_the_mask_stops_the_gradient_of_four_of_ten_rows(run):
    out = run("known_and_missing_words")
    gradients = dict(re.findall(r"^  row (\d) \w+  gradient (\[.*\])$", out, re.M))
    learning = "[0.5, -1.0, 2.0, 0.25, -0.75]"  # the column that the matrix is multiplied with
    assert gradients == {str(n): "[0.0, 0.0, 0.0, 0.0, 0.0]" if n in (1, 4, 5, 8) else learning for n in range(10)}
    assert "the values pass unchanged: True" in out


def test_w1_converges_and_w2_and_w3_stay_frozen_unless_nothing_stops_them(run, tmp_path):
    out = run("only_some_variables", "--out", str(tmp_path / "pictures"))
    rows = re.findall(r"^(.+?) +moved: w1 (\S+), w2 (\S+), w3 (\S+); from w1 to w2 \* w3: (\S+)$", out, re.M)
    moved = {title: [float(value) for value in values] for title, *values in rows}
    for title in ("only w1 named", "product stopped"):
        w1, w2, w3, gap = moved[title]
        assert w1 > 0.1
        assert w2 == w3 == 0
        assert gap < 1e-2
    assert min(moved["neither"][:3]) > 0.01
    assert "naming and stopping are the same run: True" in out
    picture = tmp_path / "pictures" / "only_some_variables.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in out
    assert read_record(tmp_path / "pictures" / "named")["w1"].steps == list(range(201))
    assert f"frostline report {tmp_path / 'pictures' / 'named'}" in out


def test_of_the_table_only_rows_0_and_3_change(run):
    out = run("only_these_rows")
    rows = re.findall(r"^  row (\d) ( +-?\d\.\d{4}){3}(  \(.+\))?$", out, re.M)
    assert [row for row, _, change in rows if change] == ["0", "3"]
    assert len(rows) == 10
    changed = dict(re.findall(r"^(\w+ +learns \S+(?: 3\]\))?) +rows changed after 20 steps: (\[.*\])$", out, re.M))
    assert changed == {
        "SGD   learns everything": "[0, 3]",
        "SGD   learns rows([0, 3])": "[0, 3]",
        "AdamW learns everything": str(list(range(10))),
        "AdamW learns rows([0, 3])": "[0, 3]",
    }


def test_word_vectors_are_attacked_and_the_run_is_the_one_that_never_was(run):
    out = run("cbow_attack")
    differs = dict(re.findall(r"^  (\S+) +at every tenth step: losses differ from step (\S+)$", out, re.M))
    assert differs == {"torch.autograd.grad": "9", "fl.gradients": "never", "fl.adversarial.perturb": "never"}
    (plain,) = re.findall(r"^the loss is (\S+), a vector's length", out, re.M)
    rows = re.findall(r"^  by (\S+): at random (\S+), one step uphill (\S+), ten steps (\S+)$", out, re.M)
    assert [radius for radius, *_ in rows] == ["0.1", "0.5", "1.0"]
    for _, random, single, ten in rows:
        assert float(single) - float(plain) > 3 * abs(float(random) - float(plain))
        assert float(ten) >= float(single)


def test_the_tagger_moves_the_rows_it_used_and_none_under_nothing(run):
    out = run("tagger_embedding_moves")
    rows = re.findall(r"^  (\S+) +first gradient (\S+)  moved (\S+)$", out, re.M)
    moved = {word: (float(gradient), float(distance)) for word, gradient, distance in rows}
    for word in ("Ada", "met", "Grace", "in", "Oslo", "today"):
        gradient, distance = moved[word]
        assert gradient > 0
        assert distance > 0.05
    for word in ("<pad>", "Paris", "unseen"):
        assert moved[word] == (0, 0)
    assert "with embed.weight: fl.nothing, gradient None, the furthest row moved 0.0000" in out
    losses = [tuple(map(float, pair)) for pair in re.findall(r"loss (\S+) -> (\S+)", out)]
    assert len(losses) == 2
    assert all(last < first for first, last in losses)


def test_two_new_tokens_are_learned_and_nothing_else_moves(run):
    for needed in ("transformers", "tokenizers"):
        pytest.importorskip(needed)
    out = run("new_tokens")
    assert re.search(r"^model.embed_tokens.weight \(= lm_head.weight\) +\d+ x 64 +2 of \d+ rows", out, re.M)
    first, last, before, after = map(
        float, re.search(r"^loss (\S+) -> (\S+), mean probability of </tool> (\S+) -> (\S+)$", out, re.M).groups()
    )
    assert last < first
    assert after > 10 * before
    rows, moved = re.search(r"^of (\d+) rows moved: \[(.+)\]; of the 19 other tensors: none$", out, re.M).groups()
    assert moved == f"{int(rows) - 2}, {int(rows) - 1}"
    assert "head and embedding are still tied: True" in out
    assert int(re.search(r"a file of ([\d,]+) bytes", out)[1].replace(",", "")) < 2_000
    assert "has the same embedding: True" in out


def test_a_classifier_is_attacked_word_by_word(run):
    out = run("attack_classifier")
    accuracy = re.findall(r"^(\d) swaps: accuracy (\d+)% -> (\d+)%$", out, re.M)
    assert [swaps for swaps, _, _ in accuracy] == ["1", "2"]
    (_, before, one), (_, again, two) = accuracy
    assert before == again
    assert int(before) > 80 > int(one) > int(two)
    before, after = (line.split() for line in out.splitlines()[-2:])
    assert 1 <= sum(old != new for old, new in zip(before, after, strict=True)) <= 2

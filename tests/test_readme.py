"""What the README tells people to write runs as it stands, and the README stays one screen."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.cli import make_parser

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
TASKS = README[README.index("| you want to") :].split("\n\n")[0].splitlines()[2:]
CODE = [code for row in TASKS for code in re.findall(r"`([^`]+)`", row.split(" | ")[1])]
LINES = [code for code in CODE if code.startswith(("fl.", "plan = ", "print("))]
COMMANDS = [code for code in CODE if code.startswith("frostline ")]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 3)

    def forward(self, ids):
        return self.head(self.embed(ids).mean(1))


@pytest.fixture
def names():
    """The names that the README uses without saying what they are."""
    torch.manual_seed(0)
    model, ids = Model(), torch.tensor([[1, 2], [3, 4]])
    plan = fl.train_only(model, {"*": fl.everything})
    return {
        "fl": fl,
        "model": model,
        "plan": plan,
        "optimizer": torch.optim.AdamW(plan.parameters(), lr=0.1),
        "ids": ids,
        "loss_fn": lambda: nn.functional.cross_entropy(model(ids), torch.tensor([0, 1])),
        "frozen": torch.tensor([True, False, True, False, True, True]),
        "mask": torch.eye(3, 4) > 0,
        "vocabulary": ["ice", "slush"],
        "vectors": fl.vectors.Vectors(["ice"], torch.ones(1, 4).numpy()),
    }


def language_model():
    """A small model and its tokenizer, made here."""
    import tokenizers
    import transformers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "ice": 1}, unk_token="?"))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=2, pad_token_id=None, **sizes))
    return {"model": model, "tokenizer": transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")}


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_table_of_tasks_runs(line, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "tokenizer" in line:
        names |= language_model()
    exec(line, names)


def test_the_table_of_tasks_was_read():
    assert len(LINES) >= 12
    assert COMMANDS == ["frostline explain train.py"]
    assert make_parser().parse_args(COMMANDS[0].split()[1:])


def test_the_readme_is_one_screen():
    assert len(README.splitlines()) <= 75
    for words in ("freeze rows", "only new tokens", "gradient mask", "not training", "adversarial examples"):
        assert words in README.replace("**", "")

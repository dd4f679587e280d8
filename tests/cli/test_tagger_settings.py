"""Each flag of `frostline tagger train` changes the tagger as it says, and --original is the reference's program."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from frostline.cli import main
from frostline.tagger import ORIGINAL, TaggerConfig
from frostline.tagger.training import train as training
from frostline.tagger.training.loop import TrainingLoop
from frostline.tagger.training.optimizer import Optimizer
from frostline.tagger.training.sampler import BatchSampler

LSTM = {"forwards.weight_ih_l0", "forwards.weight_hh_l0"}
CHANGES = [  # flags that change the bits of every part of the network after two epochs, and nothing of its shape
    "--dropout 0.5",
    "--dropout-input 0.5",
    "--dropout-output 0.5",
    "--dropout-state 0.5",
    "--unk-dropout 50",
    "--batch-size 3",
    "--learning-rate 0.05",
    "--final-rate 1",
    "--weight-decay 0.5",
    "--max-grad-norm 0.01",
    "--ema-decay 0",
    "--by-sentence",
    "--adversarial fgm:0.5",
    "--seed 1",
    "--learn none",
    "--learn all",
]
SHAPES = {
    "--hidden 5": ("forwards.weight_hh_l0", (20, 5)),
    "--shape-width 3": ("shape.weight", (14, 3)),
    "--char-filters 4": ("char_cnn.weight", (3, 256, 4)),
    "--no-vectors --dimension 7": ("embed.weight", (2 + 7, 7)),
    "--no-vectors": ("embed.weight", (2 + 7, 100)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("settings")
    words = ["We left Zork .", "We reached Oslo . .", "Rome .", "Zork reached Rome"]
    lines = [[f"{word}\t{'B-town' if word[0] in 'ZOR' else 'O'}\n" for word in text.split()] for text in words]
    (path / "some.conll").write_text("\n".join("".join(line) for line in lines * 3), encoding="utf-8")
    known = ["we", "left", "reached", "oslo", "rome", ".", "sea", "ice"]
    rows = np.random.default_rng(0).normal(size=(len(known), 3))
    (path / "v.txt").write_text(
        "".join(f"{word} {' '.join(map(str, row))}\n" for word, row in zip(known, rows, strict=True)), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="module")
def train(folder: Path) -> Any:
    def run(flags: str) -> dict[str, Tensor]:
        given = flags.split()
        table = [] if "--no-vectors" in given else ["--vectors", str(folder / "v.txt")]
        small = [] if "--hidden" in given else ["--hidden", "4"]
        out, text = str(folder / "out"), str(folder / "some.conll")
        epochs = ["--epochs", "2", "--token-column", "1"]
        assert (
            main(["tagger", "train", "--train", text, "--dev", text, "--out", out, *epochs, *table, *small, *given])
            == 0
        )
        return load_file(folder / "out" / "model.safetensors")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FROSTLINE_CACHE", str(folder / "cache"))
        yield run


@pytest.fixture(scope="module")
def plain(train: Any) -> dict[str, Tensor]:
    first, again = train(""), train("")
    assert all(torch.equal(first[name], again[name]) for name in first)  # so what differs below is the flag's doing
    return first


@pytest.mark.parametrize("flags", CHANGES)
def test_a_flag_changes_what_is_learned(flags: str, train: Any, plain: dict[str, Tensor]) -> None:
    found = train(flags)
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in plain.items()}
    assert not any(torch.equal(found[name], plain[name]) for name in LSTM)


@pytest.mark.parametrize("flags", SHAPES)
def test_a_flag_changes_the_shape_it_names(flags: str, train: Any, plain: dict[str, Tensor]) -> None:
    name, shape = SHAPES[flags]
    found = train(flags)
    assert found[name].shape == shape
    assert name not in plain or plain[name].shape != shape


def test_dropout_is_that_of_inputs_and_outputs(train: Any) -> None:
    both, apart = train("--dropout 0.4"), train("--dropout-input 0.4 --dropout-output 0.4")
    assert all(torch.equal(both[name], apart[name]) for name in both)


def test_the_bias_of_o_is_subtracted_and_nothing_else_changes(train: Any, plain: dict[str, Tensor]) -> None:
    found = train("--o-bias 0.5")
    torch.testing.assert_close(plain["head.linear.bias"] - found["head.linear.bias"], torch.tensor([0.5, 0.0]))
    assert all(torch.equal(found[name], plain[name]) for name in found if name != "head.linear.bias")


def test_a_softmax_has_no_transitions_and_a_forget_bias_leaves_one_bias(train: Any, plain: dict[str, Tensor]) -> None:
    assert plain.keys() - train("--no-crf").keys() == {"head.crf.transitions", "head.crf.start", "head.crf.end"}
    biased = train("--forget-bias 3")
    assert (biased["forwards.bias_ih_l0"][4:8] > 2.5).all()
    assert (biased["forwards.bias_hh_l0"] == 0).all()
    assert (plain["forwards.bias_hh_l0"] != 0).all()


@pytest.mark.parametrize(
    ("flags", "moved"), [("--learn none", 0), ("", 1 + 1), ("--learn all", 1 + 1 + 8), ("--no-vectors", 1 + 7)]
)
def test_the_rows_that_learn_are_those_that_were_named(
    flags: str, moved: int, train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    train(f"{flags} --weight-decay 0.5")  # which moves every row that learns, read or not
    assert (
        f" frozen entries moved, compared bit by bit; {moved} of {moved} rows that learn moved"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--hidden 0", "--hidden: 0 is out of range. Pass 1 or more."),
        ("--dropout-state 2", "--dropout-state: 2.0 is out of range. Pass 0 to 1."),
        ("--ema-decay nan", "--ema-decay: nan is out of range. Pass 0 to 1."),
        ("--no-vectors --learn none", "--learn: 'none' with --no-vectors, where every word learns. Leave it out."),
        ("--no-vectors --vectors v", "argument --vectors: not allowed with argument --no-vectors"),
        ("", "one of the arguments --vectors --no-vectors is required"),
    ],
)
def test_flags_that_cannot_be_get_one_line(
    flags: str, says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = str(folder / "some.conll")
    table = ["--no-vectors"] if flags.startswith("--") and "vectors" not in flags else []
    command = ["tagger", "train", "--train", text, "--dev", text, "--out", str(folder / "none"), *table, *flags.split()]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_every_argument_of_the_configuration_has_its_flag(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TaggerConfig] = []
    network = training._network
    monkeypatch.setattr(training, "_network", lambda *given: (seen.append(given[-1]), network(*given))[1])
    train("--original --hidden 4")
    train(
        "--no-vectors "
        + " ".join(
            f"--{field.name.replace('_', '-')} 1"
            for field in dataclasses.fields(TaggerConfig)
            if field.name not in ("crf", "by_sentence", "adversarial")
        )
        + " --no-crf --by-sentence --adversarial fgm:1"
    )
    assert seen[0] == dataclasses.replace(ORIGINAL, hidden=4)
    ones: dict[str, Any] = {field.name: 1 for field in dataclasses.fields(TaggerConfig)}
    assert seen[1] == TaggerConfig(**ones | {"crf": False, "by_sentence": True})


DATA = dict(np.load(Path(__file__).parents[1] / "oracles" / "data" / "o4_ner_bilstm.npz"))


def test_the_original_makes_the_losses_and_the_table_of_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From files through the command: only the first values of the weights and the order of batches are given."""
    x, y, lengths = (DATA[name] for name in ("x", "y", "lengths"))
    tags = ["O", "B-a", "B-b", "B-c", "B-d"]
    sentences = [
        [f"w{word}\t{tags[tag]}\n" for word, tag in zip(x[b, s, :length], y[b, s, :length], strict=True)]
        for b in range(5)
        for s, length in enumerate(lengths[b])
    ]
    (tmp_path / "t.conll").write_text("\n".join("".join(lines) for lines in sentences), encoding="utf-8")
    vectors = [f"w{word} {' '.join(repr(float(value)) for value in row)}\n" for word, row in enumerate(DATA["emb"])]
    (tmp_path / "v.txt").write_text("".join(vectors), encoding="utf-8")
    losses: list[float] = []
    network, step = training._network, TrainingLoop._step

    def initialised(*given: Any) -> Any:
        model, unused = network(*given)
        with torch.no_grad():
            for side, suffix in {"forwards": "", "backwards": "_reverse"}.items():
                lstm = getattr(model, side)
                for name in ("weight_ih", "weight_hh", "bias_ih"):
                    getattr(lstm, f"{name}_l0").copy_(torch.tensor(DATA[f"torch_{name}_l0{suffix}"]))
            model.head.linear.weight.copy_(torch.tensor(DATA["torch_linear_weight"]))
            model.head.linear.bias.copy_(torch.tensor(DATA["torch_linear_bias"]))
        return model, unused

    def in_order(sampler: BatchSampler, epochs_done: int) -> None:
        sampler.left = [(0, list(range(4 * batch, 4 * batch + 4))) for batch in reversed(range(5))]

    def noted(loop: TrainingLoop, *given: Any) -> tuple[float, int]:
        losses.append((found := step(loop, *given))[0])
        return found

    def adam_of_tensorflow(own: Optimizer, parameters: Any) -> None:  # adds epsilon before the correction
        own._adamw.param_groups[0]["eps"] = 1e-8 / (1 - 0.999 ** (own.steps_done + 1)) ** 0.5
        optimizer_step(own, parameters)

    optimizer_step = Optimizer.step
    monkeypatch.setattr(training, "_network", initialised)
    monkeypatch.setattr(BatchSampler, "start_epoch", in_order)
    monkeypatch.setattr(TrainingLoop, "_step", noted)
    monkeypatch.setattr(Optimizer, "step", adam_of_tensorflow)
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    files = ["--train", "t.conll", "--dev", "t.conll", "--vectors", "v.txt", "--out", "m"]
    monkeypatch.chdir(tmp_path)
    sizes = "--epochs 1 --hidden 3 --batch-size 4 --dropout 0 --learning-rate 0.01 --max-grad-norm inf"
    assert main(["tagger", "train", *files, "--original", *sizes.split()]) == 0
    np.testing.assert_allclose(losses, DATA["adam5_losses"], rtol=0, atol=2e-6)
    table = load_file(tmp_path / "m" / "model.safetensors")["embed.weight"][2:].numpy()
    real = [word for word in range(12) if word != 1]  # 1 is the reference's padding, which no sentence holds
    np.testing.assert_allclose(table[real], DATA["adam5_emb"][real], rtol=0, atol=2e-6)
    assert (table[real] != DATA["emb"][real]).any()

"""The Trainer of transformers with ExplainCallback: the real step explained, and a run with the bits of one without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl

transformers = pytest.importorskip("transformers")

from frostline.integrations.transformers import ExplainCallback  # noqa: E402
from frostline.probe.trace.patches import is_traced  # noqa: E402


class Network(nn.Module):
    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.embed, self.encoder, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.dropout, self.cut, self.raises = nn.Dropout(0.2), cut, False

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        h = self.encoder(self.embed(ids).mean(1)).tanh()
        if self.cut:
            h = h.detach()  # <- cut here
        if self.raises:
            raise ValueError("the user's own")
        logits = self.head(self.dropout(h))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer(folder: Path, callbacks: list[Any], cut: bool = False, **settings: Any) -> Any:
    torch.manual_seed(0)
    data = [{"ids": torch.randint(20, (5,)), "labels": torch.randint(2, ())} for _ in range(32)]
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        warmup_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    return transformers.Trainer(Network(cut), arguments, train_dataset=data, callbacks=callbacks)


def losses(run: Any) -> list[Any]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("settings", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_a_run_that_is_explained_has_the_bits_of_one_that_is_not(
    tmp_path: Path, settings: dict[str, Any], capsys: Any
) -> None:
    callback = ExplainCallback()
    seen = trainer(tmp_path, [callback], **settings)
    seen.train()
    plain = trainer(tmp_path, [], **settings)
    plain.train()
    assert losses(seen) == losses(plain)
    assert len(set(losses(seen))) == 4
    pairs = zip(seen.model.parameters(), plain.model.parameters(), strict=True)
    assert all(torch.equal(now, then) for now, then in pairs)
    assert callback.explanation is not None
    assert callback.explanation.alarms == []
    assert capsys.readouterr().out.count("No alarm; 5 learn, 0 frozen.") == 1
    assert not is_traced()
    assert not torch._C._len_torch_function_stack()


def test_a_cut_is_named_with_its_line_and_with_fail_ends_the_training(tmp_path: Path) -> None:
    callback = ExplainCallback(fail=True)
    run = trainer(tmp_path, [callback], cut=True)
    with pytest.raises(fl.ProbeError, match="3 of 5 tensors do not train"):
        run.train()
    assert run.state.global_step == 1
    assert callback.explanation is not None
    found = callback.explanation.to_dict()
    assert callback.explanation.alarms == ["embed.weight", "encoder.weight", "encoder.bias"]
    line = int(found["embed.weight"]["where"].rpartition(":")[2])
    assert Path(__file__).read_text(encoding="utf-8").splitlines()[line - 1].endswith("# <- cut here")


def test_when_training_raises_nothing_stays_and_it_can_be_run_again(tmp_path: Path) -> None:
    """The Trainer tells its callbacks no error: the watch ends with the function that has called it."""
    callback, backward = ExplainCallback(), torch.autograd.backward
    run = trainer(tmp_path, [callback])
    run.model.raises = True
    with pytest.raises(ValueError, match="the user's own"):
        run.train()
    run.model.raises = False
    assert torch.autograd.backward is not backward
    torch.ones(1).add(1)  # the next call of any torch function
    assert torch.autograd.backward is backward
    assert not is_traced()
    run.train()
    assert callback.explanation is not None
    assert callback.explanation.alarms == []
    assert not torch._C._len_torch_function_stack()

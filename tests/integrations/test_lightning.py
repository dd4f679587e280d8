"""Lightning's Trainer with ExplainCallback: the real step explained, and a run with the bits of one without it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl

pytest.importorskip("lightning")
import lightning.pytorch as L

from frostline.integrations.lightning import ExplainCallback
from frostline.probe.trace.patches import is_traced

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore")


class Network(L.LightningModule):
    def __init__(self, cut: bool = False, raises: bool = False) -> None:
        super().__init__()
        self.embed, self.encoder, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.dropout, self.cut, self.raises = nn.Dropout(0.2), cut, raises
        self.losses: list[float] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        h = self.encoder(self.embed(batch[0]).mean(1)).tanh()
        if self.cut:
            h = h.detach()  # <- cut here
        if self.raises:
            raise ValueError("the user's own")
        loss = nn.functional.cross_entropy(self.head(self.dropout(h)), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(callbacks: list[Any], precision: Any = "32-true", batches: int = 8, **how: Any) -> Network:
    L.seed_everything(0, verbose=False)
    data = torch.utils.data.TensorDataset(torch.randint(20, (32, 5)), torch.randint(2, (32,)))
    model = Network(**how)
    trainer = L.Trainer(
        max_epochs=1,
        limit_train_batches=batches,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        precision=precision,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=4))
    return model


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_that_is_explained_has_the_bits_of_one_that_is_not(precision: str, capsys: Any) -> None:
    callback = ExplainCallback()
    seen, plain = fit([callback], precision), fit([], precision)
    assert seen.losses == plain.losses
    assert len(set(seen.losses)) > 4
    assert all(torch.equal(now, then) for now, then in zip(seen.parameters(), plain.parameters(), strict=True))
    assert callback.explanation is not None
    assert callback.explanation.alarms == []
    assert capsys.readouterr().out.count("No alarm; 5 learn, 0 frozen.") == 1
    assert not is_traced()
    assert not torch._C._len_torch_function_stack()


def test_a_cut_is_named_with_its_line() -> None:
    callback = ExplainCallback(steps=2)
    fit([callback], cut=True)
    assert callback.explanation is not None
    found = callback.explanation.to_dict()
    assert {name for name, each in found.items() if each["verdict"] == "cut"} == {
        "embed.weight",
        "encoder.weight",
        "encoder.bias",
    }
    assert found["head.weight"]["verdict"] == "learns"
    lines = open(__file__, encoding="utf-8").read().splitlines()  # noqa: PTH123, SIM115
    assert lines[int(found["embed.weight"]["where"].rpartition(":")[2]) - 1].endswith("# <- cut here")


def test_with_fail_an_alarm_ends_the_training() -> None:
    with pytest.raises(fl.ProbeError, match="3 of 5 tensors do not train"):
        fit([ExplainCallback(fail=True)], cut=True)
    assert len(fit([ExplainCallback(fail=True)]).losses) == 8


def test_when_training_raises_its_error_goes_on_and_nothing_stays() -> None:
    backward = torch.autograd.backward
    with pytest.raises(ValueError, match="the user's own"):
        fit([ExplainCallback(fail=True)], raises=True)
    assert not is_traced()
    assert not torch._C._len_torch_function_stack()
    assert torch.autograd.backward is backward


def test_a_training_that_ends_before_the_last_watched_step_is_explained() -> None:
    callback = ExplainCallback(steps=100)
    fit([callback])
    assert callback.explanation is not None
    assert callback.explanation.alarms == []


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_a_number_of_steps_that_is_none_is_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match="steps: expected a number of steps from 1"):
        ExplainCallback(steps=steps)

"""The device and the precision to compute in can be chosen, and change neither what learns nor the saved files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import frostline as fl
from frostline import tagger
from frostline.tagger.config import check_device, precision

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def coarse(toy: Any) -> tagger.TrainingRun:
    return tagger.train(toy.train, toy.dev, toy.vectors, epochs=4, config=toy.config, bf16=True)


def test_in_bfloat16_the_loss_falls_as_in_float32_and_the_weights_are_float32(
    toy: Any, coarse: tagger.TrainingRun
) -> None:
    fine = tagger.train(toy.train, toy.dev, toy.vectors, epochs=4, config=toy.config)
    assert coarse.history[-1].loss < 0.5 * coarse.history[0].loss
    for epoch, fine_epoch in zip(coarse.history, fine.history, strict=True):
        assert epoch.loss == pytest.approx(fine_epoch.loss, rel=0.1)
        assert epoch.loss != fine_epoch.loss  # it did compute in another precision
    assert {value.dtype for value in coarse.tagger.model.state_dict().values()} == {torch.float32}


def test_in_bfloat16_frozen_rows_keep_every_bit(coarse: tagger.TrainingRun) -> None:
    assert coarse.audit.frozen_compared > 0
    assert coarse.audit.frozen_moved == 0
    assert coarse.audit.learned_rows_moved == coarse.audit.learned_rows > 1


def test_in_bfloat16_interrupted_and_resumed_equals_uninterrupted(
    toy: Any, tmp_path: Path, coarse: tagger.TrainingRun
) -> None:
    given = {"epochs": 4, "config": toy.config, "bf16": True, "checkpoint": tmp_path / "c"}
    with pytest.raises(KeyboardInterrupt):
        tagger.train(toy.train, toy.dev, toy.vectors, checkpoint_every=0, callback=toy.stop(33), **given)
    resumed = tagger.train(toy.train, toy.dev, toy.vectors, resume=True, **given)
    weights = coarse.tagger.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in resumed.tagger.model.state_dict().items())
    with pytest.raises(fl.RunFolderError, match="written by a training with bf16 True, and here it is False"):
        tagger.train(toy.train, toy.dev, toy.vectors, resume=True, **given | {"bf16": False})


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "lazy", ""])
def test_a_missing_device_is_refused_in_one_short_line(toy: Any, name: str) -> None:
    with pytest.raises(
        fl.FrostlineError, match=f"device: '{name}' cannot be used here .*Pass one that can: cpu"
    ) as why:
        tagger.train(toy.train, toy.dev, toy.vectors, device=name)
    assert "\n" not in str(why.value)
    assert len(str(why.value)) < 200 + 20 * torch.cuda.device_count()


def test_a_device_without_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(fl.FrostlineError, match=re.escape("bf16: cuda:0 does not support bfloat16. Leave it out.")):
        precision(torch.device("cuda:0"), bf16=True)
    precision(torch.device("cuda:0"), bf16=False)


def test_a_device_that_works_is_returned() -> None:
    assert check_device("cpu") == check_device(torch.device("cpu")) == torch.device("cpu")


@pytest.fixture(scope="module")
def elsewhere(made_up_device: Path, launch: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What train_elsewhere.py writes: trained on the CPU and on a device that torch takes for a different one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    launch(HERE / "train_elsewhere.py", made_up_device, folder)
    return folder


def _found(folder: Path) -> Any:
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def test_the_device_of_these_tests_computes_and_refuses_to_mix_devices_and_to_draw(elsewhere: Path) -> None:
    found = _found(elsewhere)
    assert found["adds"] == [2.0, 2.0, 2.0]
    assert not found["mixes"]
    assert not found["draws"]


def test_another_device_draws_the_same_so_training_differs_by_rounding_alone(elsewhere: Path) -> None:
    found = _found(elsewhere)
    assert found["elsewhere"]["losses"] == pytest.approx(found["cpu"]["losses"], rel=1e-4)
    assert found["elsewhere"]["losses"][-1] < 0.9 * found["elsewhere"]["losses"][0]
    assert found["elsewhere"]["losses"] != found["cpu"]["losses"]  # it did compute elsewhere
    assert found["elsewhere"]["moved"] == found["cpu"]["moved"]
    assert found["elsewhere"]["moved"][0] == 0 < found["elsewhere"]["moved"][1]
    on_cpu, on_device = (load_file(elsewhere / name / "model.safetensors") for name in ("cpu", "elsewhere"))
    for name, value in on_cpu.items():
        torch.testing.assert_close(on_device[name], value, rtol=1e-2, atol=1e-3)


def test_interrupted_on_another_device_and_resumed_equals_uninterrupted(elsewhere: Path) -> None:
    found = _found(elsewhere)
    assert found["resumed"] == found["elsewhere"]
    whole, resumed = ((elsewhere / name / "model.safetensors").read_bytes() for name in ("elsewhere", "resumed"))
    assert resumed == whole


def test_a_saved_tagger_predicts_on_another_device_what_it_predicts_on_the_cpu(elsewhere: Path) -> None:
    found = _found(elsewhere)
    assert found["device"].startswith("elsewhere")
    assert found["predicted elsewhere"] == found["predicted"]
    assert {tag for tags in found["predicted"] for tag in tags} == {"O", "B-x"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_learns_the_same_as_the_cpu(toy: Any, tmp_path: Path, bf16: bool) -> None:
    given = {"epochs": 4, "config": toy.config, "bf16": bf16}
    here = tagger.train(toy.train, toy.dev, toy.vectors, **given)
    there = tagger.train(
        toy.train, toy.dev, toy.vectors, device="cuda", checkpoint=tmp_path / "c", checkpoint_every=0, **given
    )
    for on_cpu, on_gpu in zip(here.history, there.history, strict=True):
        assert on_cpu.loss == pytest.approx(on_gpu.loss, rel=0.1 if bf16 else 1e-2)
    assert there.history[-1].loss < 0.5 * there.history[0].loss
    assert there.audit.frozen_moved == 0
    assert there.audit.learned_rows_moved == there.audit.learned_rows > 1
    there.tagger.save(tmp_path / "model")
    loaded = tagger.Tagger.load(tmp_path / "model")
    loaded.model.to("cuda")
    tokens = [sentence.tokens for sentence in toy.dev]
    assert loaded.predict(tokens) == there.tagger.predict(tokens)

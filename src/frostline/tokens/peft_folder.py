"""Write what has been learned as an adapter that PEFT loads: trainable tokens, and LoRA where there is one.

PEFT keeps the rows of trainable tokens as they are, not as a difference, and copies them into the table at each use. So
an adapter folder needs the rows and their ids, in PEFT's names:
    adapter_config.json          trainable tokens alone: `token_indices`; with LoRA: `trainable_token_indices`
    adapter_model.safetensors    ...embed_tokens[.token_adapter].trainable_tokens_delta, and LoRA's own tensors
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from frostline.errors import LearnedFileError, MissingExtraError, PartialTensorError
from frostline.files import replacing
from frostline.partial.checks import check_not_sharded
from frostline.partial.model_tensors import ModelTensor, find_tensors
from frostline.resize_embeddings import find_tables

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_DELTA = "trainable_tokens_delta"


def export_peft(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write what has learned in `model` to a folder that `PeftModel.from_pretrained` loads.

    The base model that it is loaded into needs a row for each token: call `resize_token_embeddings` there first, with
    the number of rows that `model` has.

    Args:
        model: A transformers model, or a PeftModel with LoRA, in which rows of the embedding, and of an untied head,
            learn: after `add_tokens`, or `train_only` with `fl.rows`. It does not change.
        folder: Where to write; made if it is missing. Other files in it stay.

    Raises:
        PartialTensorError: Something else learns too, or in the head other rows than in the embedding; or the head has
            a bias, which PEFT's trainable tokens leave out; or the model is sharded.
        LearnedFileError: The folder cannot be written. What was in it is still there.
        MissingExtraError: PEFT is not installed.

    Cost: writes what learns, in the dtype in which it learns.

    Example:
        >>> import frostline as fl, tempfile
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> sizes = {"n_embd": 2, "n_layer": 1, "n_head": 1, "n_positions": 8, "bos_token_id": 1, "eos_token_id": 1}
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=4, **sizes))
        >>> plan = fl.train_only(model, {"transformer.wte.weight": fl.rows([3, 1])})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fl.export_peft(model, folder)  # then PeftModel.from_pretrained(base, folder)
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    try:
        import peft
    except ImportError:
        raise MissingExtraError("export_peft needs PEFT. Install it: pip install peft") from None
    check_not_sharded(model)
    config, tensors = _adapter_of(model)
    tokens = _rows_that_learn(model, config is not None)
    ids = {name: table.indices.index[0].tolist() for name, table in tokens.items() if table.indices is not None}
    if config is None:
        if len({tuple(each) for each in ids.values()}) > 1:
            raise PartialTensorError("model: in the head other rows learn than in the embedding; PEFT wants the same.")
        targets, base = list(ids), getattr(getattr(model, "config", None), "name_or_path", None)
        config = peft.TrainableTokensConfig(
            token_indices=next(iter(ids.values())), target_modules=targets, base_model_name_or_path=base
        )
    else:
        config.trainable_token_indices = ids
    for name, table in tokens.items():
        assert table.learned is not None
        if config.peft_type == peft.PeftType.LORA:
            tensors[f"base_model.model.{name}.token_adapter.{_DELTA}"] = table.learned
        else:  # then PEFT wants the rows under each name of a tied table
            tensors |= {f"base_model.model.{_base_name(tied)}.{_DELTA}": table.learned for tied in table.names}
    config.inference_mode = True
    _write(Path(folder), config, {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()})


def _adapter_of(model: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return a copy of the configuration of the LoRA in `model` and its tensors; None if there is none."""
    import peft

    if not isinstance(model, peft.PeftModel):
        return None, {}
    name = model.active_adapter
    config = model.peft_config[name]
    if config.peft_type != peft.PeftType.LORA or len(model.peft_config) > 1:
        raise PartialTensorError("model: a PeftModel with one LoRA adapter can be exported; merge or remove others.")
    return copy.deepcopy(config), dict(peft.get_peft_model_state_dict(model, save_embedding_layers=False))


def _rows_that_learn(model: Any, lora: bool) -> dict[str, ModelTensor]:
    """Return the tables whose rows learn, by their module's name in the base model; raise if anything else learns."""
    tables = {id(table.tensor) for table in find_tables(model)}
    found: dict[str, ModelTensor] = {}
    for tensor in find_tensors(model):
        if (tensor.learned is None and not tensor.tensor.requires_grad) or (lora and ".lora_" in tensor.name):
            continue
        rows = tensor.indices is not None and tensor.indices.kind == "rows"
        if not rows or id(tensor.tensor) not in tables or tensor.tensor.ndim != 2:
            raise PartialTensorError(
                f"model: {tensor.name} learns, and PEFT's trainable tokens hold rows of the embedding and the head "
                "only. Use fl.save_learned, or fl.merge and save_pretrained."
            )
        found[_base_name(tensor.name)] = tensor
    if not found:
        raise PartialTensorError("model: no row of its embedding learns. Call fl.add_tokens first.")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if getattr(head, "bias", None) is not None:
        raise PartialTensorError("model: its head has a bias, which PEFT's trainable tokens leave out. Use fl.merge.")
    return found


def _base_name(name: str) -> str:
    """Return the name in the base model of the module that has the weight `name`."""
    return name.removeprefix("base_model.model.").removesuffix(".weight")


def _write(folder: Path, config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write both files, and replace those that are there only once both are written, the weights first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as both:
            description = both.enter_context(replacing(folder / _CONFIG))
            weights = both.enter_context(replacing(folder / _WEIGHTS))
            description.write_text(_json(config), encoding="utf-8")
            save_file(dict(tensors), weights, metadata={"format": "pt"})
    except OSError as error:
        raise LearnedFileError(
            f"{folder}: cannot be written: {error.strerror or error}. Name another folder."
        ) from None


def _json(config: Any) -> str:
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    return json.dumps(values, indent=2, sort_keys=True)

"""What a learned file and a model have in common: which tensor gets which values, and how file and plan differ.

Tensors are found by name, tied ones under each of their names. Rows that are those of tokens are found by the text of
the token: the same token may have another id in another tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from frostline.errors import LearnedFileError
from frostline.partial.checks import is_fully_sharded
from frostline.partial.learned_format import Saved, dtype_name
from frostline.partial.model_tensors import ModelTensor, state_of
from frostline.partial.sharded import is_sharded
from frostline.partial.tensor.indices import LearnedIndices
from frostline.printing import listed

_MOST = 8  # rows, tokens or tensors that a message lists


def resolve(
    saved: dict[str, Saved], model: nn.Module, targets: list[ModelTensor], strict: bool
) -> tuple[list[tuple[ModelTensor, Saved]], dict[str, tuple[Tensor, Saved]]]:
    """Return which tensors of the model get what, and which buffers."""
    by_name = {name: target for target in targets for name in target.names}
    by_name |= {name: target for target in targets for name in target.stands_for}
    buffers_of_model = dict(model.named_buffers())
    writes: dict[int, tuple[ModelTensor, Saved, str]] = {}
    buffers = {}
    for name, item in saved.items():
        if item.kind == "buffer" and name in buffers_of_model:
            _check_fits(name, buffers_of_model[name], item)
            buffers[name] = (buffers_of_model[name], item)
            continue
        names = [] if item.kind == "buffer" else [each for each in (name, *item.tied) if each in by_name]
        if not names and strict:
            raise LearnedFileError(f"the model has no {name}. Load it into the model it was made for.")
        for target in {id(by_name[each]): by_name[each] for each in names}.values():
            if is_sharded(target.tensor) and is_fully_sharded(model):
                raise LearnedFileError(f"{target.name} is sharded in the model. Load before fully_shard.")
            mine = _with_tokens_of(target, item, strict)
            _check_fits(target.name, target.tensor, mine)
            _, other, other_name = writes.setdefault(id(target), (target, mine, name))
            if other is not mine and not _same(other, mine):
                raise LearnedFileError(
                    f"{other_name} and {name} are one tensor in the model, and differ in the file. "
                    "Load it into a model in which they are not tied."
                )
    if not writes and not buffers:
        raise LearnedFileError("the model has none of its tensors. Load it into the model it was made for.")
    return [(target, item) for target, item, _ in writes.values()], buffers


def _check_fits(name: str, target: Tensor, item: Saved) -> None:
    if tuple(target.shape) != item.shape:
        raise LearnedFileError(f"{name} has shape {item.shape} in the file, but {tuple(target.shape)} in the model.")
    if item.values.is_complex() and not target.is_complex():
        raise LearnedFileError(f"{name} is complex in the file, but {dtype_name(target)} in the model.")


def _same(a: Saved, b: Saved) -> bool:
    """Return whether two items write the same values to the same elements."""
    if a.kind != b.kind or a.values.dtype != b.values.dtype or a.values.shape != b.values.shape:
        return False
    if a.indices is None or b.indices is None:
        return torch.equal(a.values, b.values)
    return a.indices.same_entries(b.indices) and torch.equal(a.values, b.values)


def _with_tokens_of(target: ModelTensor, item: Saved, strict: bool) -> Saved:
    """Return `item` with the rows that its tokens have in the model."""
    here = tokens_of(target)
    if item.kind != "rows" or item.indices is None:
        return item
    if not item.tokens:
        unsaid = [text for text, row in here.items() if bool((item.indices.flat == row).any())]
        if unsaid and strict:
            raise LearnedFileError(
                f"{target.name}: the file does not say which tokens its rows are, and in the model they are those of "
                f"{_quoted(unsaid)}. Pass strict=False to load them by their numbers."
            )
        return item
    if not here:
        raise LearnedFileError(
            f"{target.name}: the file holds the tokens {_quoted(item.tokens)}, and of the model no tokens are known. "
            f"Call fl.add_tokens(model, tokenizer, {list(item.tokens)[:_MOST]}) first."
        )
    if (missing := [text for text in item.tokens if text not in here]) and strict:
        raise LearnedFileError(
            f"{target.name}: the file holds tokens that the model does not have: {_quoted(missing)}. "
            "List them in fl.add_tokens, or pass strict=False to leave them out."
        )
    row_to_text = {row: text for text, row in item.tokens.items()}
    rows = item.indices.flat.tolist()
    kept = [k for k, row in enumerate(rows) if row_to_text.get(row) not in missing or row not in row_to_text]
    new = [here[row_to_text[rows[k]]] if rows[k] in row_to_text else rows[k] for k in kept]
    others = [row for row in rows if row not in row_to_text]
    size = len(target.tensor)
    if len(set(new)) != len(new) or (others and (item.shape[0] != size)):
        raise LearnedFileError(f"{target.name}: beside tokens the file holds rows {_listed(others)}, which do not fit.")
    if not new:
        raise LearnedFileError(f"{target.name}: the model has none of the file's tokens {_quoted(item.tokens)}.")
    found = {text: here[text] for text in item.tokens if text not in missing}
    indices = LearnedIndices(torch.tensor(new, dtype=torch.int64), (size,), None)
    shape = (size, *item.shape[1:]) if not others else item.shape
    return replace(item, shape=shape, values=item.values[kept], indices=indices, tokens=found)


def tokens_of(target: ModelTensor) -> dict[str, int]:
    """Return the rows of a table that `add_tokens` knows: text -> row."""
    for module, name in target.owners:
        if (state := state_of(module)) is not None and name in state.tokens:
            return state.tokens[name]
    return {}


def _has_plan(module: nn.Module) -> bool:
    state = state_of(module)
    return state is not None and bool(state.requires_grad or state.partial or state.frozen_stats)


def check_plan(
    targets: list[ModelTensor], writes: list[tuple[ModelTensor, Saved]], buffers: Iterable[str], model: nn.Module
) -> None:
    """Raise unless the file holds exactly what the plan lets learn; a model without a plan is fine."""
    if not any(map(_has_plan, model.modules())):
        return
    saved = {id(target): item for target, item in writes}
    problems: list[str] = []
    for target in targets:
        item, name = saved.get(id(target)), target.name
        kind = "nothing" if not target.tensor.requires_grad else "everything"
        kind = kind if target.indices is None else target.indices.kind
        if item is None:
            problems += [] if kind == "nothing" else [f"{name}: learns ({kind}), and is not in the file"]
        elif kind == "nothing":
            problems.append(f"{name}: does not learn, and the file holds {described(item)}")
        elif kind != item.kind:
            problems.append(f"{name}: {kind} in the plan, {item.kind} in the file")
        elif item.indices is not None and target.indices is not None:
            planned = set(map(tuple, torch.stack(target.indices.index, dim=1).tolist()))
            found = set(map(tuple, item.ids.tolist()))
            if extra := sorted(found - planned):
                problems.append(f"{name}: {kind} {_listed(extra)} of the file do not learn")
            if lacking := sorted(planned - found):
                problems.append(f"{name}: {kind} {_listed(lacking)} learn, and are not in the file")
    for prefix, module in model.named_modules():
        if (state := state_of(module)) is not None and state.frozen_stats:
            held = [name for name in buffers if name.rpartition(".")[0] == prefix]
            problems += [f"{name}: frozen statistics, which the file holds" for name in held]
    if problems:
        more = f" and {len(problems) - _MOST} more" if len(problems) > _MOST else ""
        raise LearnedFileError(
            f"file and plan differ: {'; '.join(problems[:_MOST])}{more}. "
            "Make the plan that it was saved under, or pass strict=False to load what the file has."
        )


def described(item: Saved) -> str:
    """Return what a file holds of a tensor, in words."""
    if item.indices is None:
        return item.kind
    count = len(item.indices)
    return f"{count:,} {item.kind}" if count != 1 else "1 row" if item.kind == "rows" else "1 entry"


def _quoted(texts: object) -> str:
    return listed(map(repr, texts), _MOST)  # type: ignore[call-overload]


def _listed(ids: list[tuple[int, ...]] | list[int]) -> str:
    return listed((str(each[0] if isinstance(each, tuple) and len(each) == 1 else each) for each in ids), _MOST)

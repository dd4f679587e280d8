"""A case carried out on frostline's module and on the oracle, and everything that must hold.

Both runs go step by step, side by side. In every evaluation of the loss the gradients of the learned entries are
compared; then the oracle goes on from ours, so that from the same gradients the same numbers must come out.
    gradients   bit for bit where both take the same sums; where a product is taken apart, or a compiler reorders it,
                within SUMS units of rounding of the dtype that is computed in
    values      bit for bit against the learned part held apart; within STEPS units of rounding against the whole tensor
                (a vectorized kernel may round the last numbers of a tensor otherwise than those in its middle)
    frozen      every bit, as integers: -0.0 is not 0.0 here
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import frostline as fl

from . import others
from .cases import DEVICE, DTYPES, Case
from .modules import KINDS, PADDING
from .optimizers import FAMILIES, KERNELS
from .oracle import Dense, Part

SUMS = 32  # products of at most 12 terms, through at most three layers
STEPS = 32  # RMSprop and its like divide by the size of a gradient, also where that is a sum that cancels
TURNS = 4  # optimizer steps; what is drawn for `between` happens after two


def run(case: Case) -> dict[str, int]:
    """Run one case and return what was counted; raise AssertionError if a comparison fails."""
    with warnings.catch_warnings():
        _ignore_what_torch_says()
        return Comparison(case).run()


def _ignore_what_torch_says() -> None:
    """Warnings of torch's own, about plain modules and optimizers as well."""
    for text in (
        "Detected call of `lr_scheduler.step",  # a step that the scaler skips
        "The .grad attribute of a Tensor that is not a leaf",  # torch's compiler hides it, as an error it would stop
        "None of the inputs have requires_grad",
        "Sparse invariant checks are implicitly disabled",
    ):
        warnings.filterwarnings("ignore", message=text)


class Ours:
    """The partial module, with the interface of the oracle."""

    def __init__(self, case: Case, model: nn.Module, selections: dict[str, Any]) -> None:
        self.case, self.selections = case, selections
        self.sparse = KINDS[case.kind].sparse
        self.names = [name for name, _ in model.named_parameters()]
        self.adopt(model, fresh=True)

    def adopt(self, model: nn.Module, fresh: bool = False) -> None:
        """Continue with this module: the plan for a fresh one, or a new plan for the one that has a plan."""
        hook = self.case.hook
        if fresh and hook == "before the plan":
            others.put_hooks(hook, list(model.parameters()), self.sparse)
        self.model = model
        self.plan = fl.train_only(model, self.selections)
        self.parameters = self.plan.parameters()
        self.learning_names = [
            name for name, parameter in model.named_parameters() if any(parameter is p for p in self.parameters)
        ]
        if fresh and hook in ("on gradients", "accumulated"):
            others.put_hooks(hook, self.parameters, self.sparse)
        self._forward = _caller(self.case.call, model)

    def adopt_copy(self, model: nn.Module) -> None:
        """Continue with a copy, which already has its plan; hooks are not copied, as they are not of Parameters."""
        self.model = model
        self.parameters = [p for name, p in model.named_parameters() if name in self.learning_names]
        if self.case.hook != "none":
            others.put_hooks(self.case.hook, self.parameters, self.sparse)
        self._forward = _caller(self.case.call, model)

    @property
    def given(self) -> list[nn.Parameter]:
        """What the optimizer is given: not what is frozen as a whole, which would learn once it is switched on."""
        if self.case.given == "learned":
            return self.parameters
        tensors = dict(self.model.named_parameters())
        return [p for name, p in tensors.items() if name in self.learning_names or f"{name}_learned" in tensors]

    def weight(self, name: str) -> Tensor:
        """The tensor of this name, as a user takes it from its module."""
        path, _, own = name.rpartition(".")
        return getattr(self.model.get_submodule(path), own)

    def weights(self) -> list[Tensor]:
        """The tensors as they are now, each as a whole."""
        return [self.weight(name) for name in self.names]

    def call(self, x: Tensor) -> Tensor:
        return self._forward(x)

    def slopes(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, self.parameters, create_graph=True, materialize_grads=True))

    def before_forward(self) -> None:
        """A compiled forward leaves the memory as it is, which must be current: optimizers write outside steps, too."""
        if self.case.call in ("aot_eager", "inductor"):
            self.weights()

    def collect(self) -> list[Tensor]:
        gradients = [parameter.grad for parameter in self.parameters]
        assert all(gradient is not None for gradient in gradients), "a learned part got no gradient"
        return [gradient.clone() for gradient in gradients]

    def after_step(self) -> None:
        """Nothing has to be restored."""


def _caller(call: str, model: nn.Module) -> Callable[[Tensor], Tensor]:
    if call in ("aot_eager", "inductor"):
        torch._dynamo.reset()
        recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
        return torch.compile(model, backend=call, fullgraph=not recurrent)
    if call == "functional":
        return lambda x: functional_call(model, dict(model.named_parameters()), (x,))
    if call.startswith("checkpoint"):
        # The reentrant kind gives gradients only if one of its inputs asks for them.
        asks = torch.zeros((), device=DEVICE, requires_grad=True)
        return lambda x: checkpoint(lambda x, _: model(x), x, asks, use_reentrant="reentrant" in call)
    return model


class Trainer:
    """A training run on either side, as a user would write it."""

    def __init__(self, case: Case, side: Ours | Dense, audit: Callable[[Tensor, float, float], None]) -> None:
        self.case, self.side, self.audit = case, side, audit
        self.family = FAMILIES[case.optimizer]
        self.scaler = torch.amp.GradScaler(DEVICE, init_scale=8.0, enabled=case.scaler)
        self.make()

    def make(self, states: tuple[Any, Any] | None = None) -> None:
        """An optimizer and a schedule for the side's parameters; with `states` going on from those."""
        case = self.case
        self.optimizer = self.family.make(self.side.given, case.decay, case.momentum, KERNELS[case.kernel])
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda turn: 1 / (1 + turn) if case.schedule else 1.0
        )
        self._step: Callable[[], Any] = self.optimizer.step
        if case.kernel == "compiled":
            torch._dynamo.reset()
            self._step = torch.compile(self.optimizer.step, backend="aot_eager")
        if states is not None:
            self.optimizer.load_state_dict(states[0])
            self.schedule.load_state_dict(states[1])
        self.learning(True)

    def learning(self, on: bool) -> None:
        """Optimizers that average weights themselves show others while they learn."""
        switch = getattr(self.optimizer, "train" if on else "eval", None)
        if switch is not None:
            switch()

    def states(self) -> tuple[Any, Any]:
        return self.optimizer.state_dict(), self.schedule.state_dict()

    def step(self, turn: int, batches: list[Tensor]) -> None:
        """One optimizer step over micro-batches."""
        case, side = self.case, self.side

        def evaluate() -> Tensor:
            self.optimizer.zero_grad(set_to_none=case.set_to_none)
            side.before_forward()
            total, terms = torch.zeros((), dtype=torch.float64, device=DEVICE), 1.0
            for x in batches:
                with torch.autocast(DEVICE, torch.bfloat16) if case.autocast else nullcontext():
                    out = side.call(x)
                    loss = loss_of(out) + others.term(case.loss, side.weights())
                    if case.double_backward:
                        loss = loss + 0.1 * sum(torch.sin(slope).sum() for slope in side.slopes(loss))  # bounded
                if turn == case.overflow:
                    loss = loss * torch.inf
                self.scaler.scale(loss).backward()
                total += loss.detach().double()
                terms = max(terms, float(out.detach().double().pow(2).mean()))  # what cancels in `loss_of`
            self.audit(total, self.scaler.get_scale() if case.scaler else 1.0, terms)
            if self.family.closure:
                self._clip()
            return total

        if self.family.closure:
            self.optimizer.step(evaluate)
        else:
            evaluate()
            if case.clip != "none":
                self.scaler.unscale_(self.optimizer)
                self._clip()
            if case.scaler:
                self.scaler.step(self.optimizer)
                self.scaler.update()
            else:
                self._step()
        self.schedule.step()
        side.after_step()

    def _clip(self) -> None:
        parameters = self.side.parameters
        if self.case.clip == "norm":
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        elif self.case.clip == "ours":
            fl.clip_grad_norm_(parameters, 0.5)
        elif self.case.clip == "value":
            torch.nn.utils.clip_grad_value_(parameters, 0.1)


def loss_of(out: Tensor) -> Tensor:
    """Return a loss with another slope for every entry, none of them 0, and a curvature."""
    out = out if out.dtype == torch.float64 else out.float()
    slopes = torch.linspace(-1.0, 2.0, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return (out * slopes).sum() / out.numel() ** 0.5 + 0.1 * out.pow(2).mean()


class Comparison:
    """Both sides of one case."""

    def __init__(self, case: Case) -> None:
        self.case, self.kind = case, KINDS[case.kind]
        self.dtype = DTYPES[case.dtype]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.values)
            plain = self.kind.build().to(DEVICE, self.dtype)
        with torch.no_grad():
            for parameter in plain.parameters():
                if parameter.ndim:  # bits that a comparison of numbers, or a flush to zero, would miss
                    parameter.view(-1)[0] = -0.0
                    parameter.view(-1)[-1] = torch.finfo(self.dtype).tiny / 4
        self.generator = torch.Generator().manual_seed(case.values)
        self.keys = list(plain.state_dict())
        dense = copy.deepcopy(plain)
        self.keys_of = _keys(dense)
        self.looked_up = _looked_up(dense)
        if "rows, padding too" in case.selections:
            for module in dense.modules():
                if isinstance(module, nn.Embedding):
                    module.padding_idx = None
        chosen = {
            name: self._choose(name, parameter, selection)
            for (name, parameter), selection in zip(plain.named_parameters(), case.selections, strict=True)
        }
        self.ours = Ours(case, plain, {name: selection for name, (selection, _) in chosen.items()})
        self.parts = [part for _, part in chosen.values() if part is not None]
        names = [name.removesuffix("_learned") for name, p in plain.named_parameters() if p.requires_grad]
        self.parts.sort(key=lambda part: names.index(part.name))
        self.dense = Dense(dense, self.parts, case.oracle == "restored")
        if case.hook != "none":
            others.put_hooks(case.hook, self.dense.weights(), self.kind.sparse)
        if case.shared:
            self.ours.model.share_memory()
        self.held: dict[str, Any] = {}
        self.seen: list[tuple[Tensor, list[Tensor], list[Tensor | None]]] = []
        self.slope_seen = False
        low = torch.bfloat16 if case.autocast else self.dtype
        self.unit = torch.finfo(low).eps
        taken_apart = any(
            name in self.kind.learns_by_linear and "rows" in selection
            for name, selection in zip(self.dense.whole, case.selections, strict=True)
        )
        self.exact = (
            DEVICE == "cpu"
            and case.call not in ("aot_eager", "inductor")
            and not case.autocast  # it keeps rounded copies of whole leaves and adds up their gradients rounded
            # A tensor that is used more than once gets more terms, in another order.
            and not case.double_backward
            and case.loss == "nothing"
            and not (
                taken_apart
                or self.kind.reordered
                or self.kind.sparse
                or any("float32" in selection for selection in case.selections)
            )
        )

    def _choose(self, name: str, tensor: Tensor, selection: str) -> tuple[Any, Part | None]:
        """A selection of ours, and what it is to mean, found by hand."""
        dtype = torch.float32 if "float32" in selection else None
        padded = "padded" in self.case.kind and name.split(".")[-1] == "weight" and tensor.ndim == 2
        if selection in ("everything", "nothing"):
            part = Part(name, ..., tensor.dtype) if selection == "everything" else None
            return getattr(fl, selection), part
        if "rows" in selection:
            ids = torch.randperm(len(tensor), generator=self.generator)
            ids = ids if padded is False or selection == "rows, padding too" else ids[ids != PADDING]
            if selection == "no rows":
                ids = ids[:0]
            elif selection == "rows, padding too":
                ids = torch.cat([ids[ids != PADDING][:3], torch.tensor([PADDING])])
            elif selection != "all rows":
                ids = ids[: 1 + int(torch.randint(len(ids), (), generator=self.generator))]
            learn_padding = selection == "rows, padding too"
            part = Part(name, (ids.to(DEVICE),), dtype or tensor.dtype) if len(ids) else None
            return fl.rows(ids.tolist(), learn_padding=learn_padding, dtype=dtype), part
        mask = torch.rand(tensor.shape, generator=self.generator) < 0.5
        if selection != "entries" and dtype is None:
            mask = torch.full(tensor.shape, selection == "all entries")
        if padded:
            mask[PADDING] = False
        part = Part(name, mask.to(DEVICE).nonzero(as_tuple=True), dtype or tensor.dtype) if mask.any() else None
        if part is not None and tensor.ndim == 0:
            part = Part(name, ..., tensor.dtype)
        return fl.entries(mask, dtype=dtype), part

    def run(self) -> dict[str, int]:
        batches = [[self._batch() for _ in range(self.case.accumulate)] for _ in range(TURNS)]
        learned = sum(self.dense.whole[part.name].detach()[part.index].numel() for part in self.parts)
        assert sum(parameter.numel() for parameter in self.ours.parameters) == learned == self.ours.plan.learned
        if not self.parts:
            self._nothing_learns(batches[0][0])
            return {"cases in which nothing learns": 1}
        ours, theirs = Trainer(self.case, self.ours, self._note), Trainer(self.case, self.dense, self._compare)
        averages = [_average(self.ours.model), _average(self.dense.module)] if self.case.average else []
        self.last = self._learned_bits()
        self.moved = torch.zeros(learned, dtype=torch.bool, device=DEVICE)
        self._hold()
        for turn in range(TURNS):
            if turn % 2:
                self._write()
                self._toggle(batches[0][0])
            ours.step(turn, batches[turn])
            if not (self.case.write == "learned data" and turn == self.case.overflow):  # nothing could notice the write
                self._reading_is_current()
            theirs.step(turn, batches[turn])
            assert not self.seen, "one side evaluated the loss more often than the other"
            self._values_agree(ours)
            for average, model in zip(averages, (self.ours.model, self.dense.module), strict=False):
                average.update_parameters(model)
            self._held_agree()
            if turn == TURNS // 2 - 1:
                self._between(ours, theirs)
        ours.learning(False)
        theirs.learning(False)
        self.dense.after_step()
        self._values_agree(ours)
        self._memory_is_bounded(ours)
        if averages:
            self._averages_agree(averages[0].module, averages[1].module)
        self._all_ways_to_read_agree()
        # A line search takes tiny first steps, and none along a gradient that a hook has made another one.
        stays = ours.family.closure and (self.dtype != torch.float64 or self.case.kind == "hooked views")
        assert self.moved.any() or not self.slope_seen or stays, "there was a gradient, and nothing moved"
        return {"learned numbers that moved": int(self.moved.sum()), "frozen numbers compared": self._frozen()}

    def _batch(self) -> Tensor:
        x = self.kind.batch(self.generator)
        return x.to(DEVICE, self.dtype) if x.is_floating_point() else x.to(DEVICE)

    def _nothing_learns(self, x: Tensor) -> None:
        assert self.ours.parameters == []
        with torch.no_grad():
            near(self.ours.model(x), self.dense.call(x), 0.0 if self.exact else SUMS * self.unit, "the output")
        self._all_ways_to_read_agree()

    def _note(self, loss: Tensor, scale: float, terms: float) -> None:
        learning, names = self.ours.learning_names, dict(self.ours.model.named_parameters())
        for name, parameter in names.items():
            plain = name in self.ours.names and f"{name}_learned" not in names  # frozen as a whole, and switched on
            may = name in learning or (plain and parameter.requires_grad)
            assert parameter.grad is None or may, f"{name} is frozen and got a gradient"
        self.seen.append((loss, self.ours.collect(), _retained(self.ours.model)))

    def _compare(self, loss: Tensor, scale: float, terms: float) -> None:
        """The oracle's loss and gradients against ours in the same evaluation; the oracle goes on from ours."""
        ours_loss, gradients, retained = self.seen.pop(0)
        if loss.isfinite():
            if self.case.call in ("plain", "functional"):  # checkpoints make other views in the backward
                for mine, theirs in zip(retained, _retained(self.dense.module), strict=True):
                    assert mine is not None, "a view has no gradient"
                    near(mine / scale, theirs / scale, SUMS * self.unit, "the gradient of a view")
            named = [self.dense.rows_named(part) for part in self.parts]
            for part, ours, theirs, rows in zip(self.parts, gradients, self.dense.collect(), named, strict=True):
                if rows is not None and ours.is_sparse:
                    learned = torch.zeros_like(rows)
                    learned[ours._indices()[0]] = True
                    assert torch.equal(learned, rows), f"{part.name}: the sparse gradient names other rows"
                whole = ours.to_dense() if ours.is_sparse else ours
                self.slope_seen |= bool(theirs.count_nonzero())
                if self.exact:
                    assert torch.equal(whole, theirs), f"{part.name}: the gradient differs"
                else:
                    near(whole / scale, theirs / scale, SUMS * self.unit * terms, f"{part.name}: the gradient")
            near(ours_loss, loss, 0.0 if self.exact else SUMS * self.unit * terms, "the loss")
        else:
            assert not ours_loss.isfinite()
        self.dense.give(gradients)
        loss.copy_(ours_loss)

    def _values_agree(self, ours: Trainer) -> None:
        """The learned values equal the oracle's."""
        for part, mine, theirs in zip(self.parts, self.ours.parameters, self.dense.learned(), strict=True):
            if self.case.oracle == "apart":
                assert torch.equal(bits(mine), bits(theirs)), f"{part.name}: from the same gradients, other values"
            else:
                near(mine, theirs, STEPS * torch.finfo(mine.dtype).eps, f"{part.name}: the learned values")
        if self.case.oracle == "restored":
            self.dense.continue_from(self.ours.parameters)
        self.moved |= self._learned_bits() != self.last  # at any step: a search may come back to where it began
        self.last = self._learned_bits()

    def _between(self, ours: Trainer, theirs: Trainer) -> None:
        """Copy, save and load, or plan again, in the middle of the run: the result is the same."""
        for trainer in (ours, theirs):
            trainer.learning(False)
            trainer.learning(True)
        self.dense.after_step()
        self._values_agree(ours)
        if self.case.between == "deepcopy":
            self.ours.adopt_copy(copy.deepcopy(self.ours.model))
            ours.make(copy.deepcopy(ours.states()))
        elif self.case.between == "save and load":
            file = io.BytesIO()
            torch.save((self.ours.model.state_dict(), *ours.states()), file)
            file.seek(0)
            model, *states = torch.load(file, weights_only=True)
            assert list(model) == self.keys
            fresh = self.kind.build().to(DEVICE, self.dtype)
            self.ours.adopt(fresh, fresh=True)
            fresh.load_state_dict(model)
            ours.make((states[0], states[1]))
        elif self.case.between == "plan again":
            self.ours.adopt(self.ours.model)
            ours.make()
            theirs.make()
        elif self.case.between == "load in place":
            self.dense.rewrite(lambda _, whole: whole.mul_(0.5).add_(0.125))
            saved = {key: value.detach().clone() for key, value in self.dense.module.state_dict().items()}
            self.ours.model.load_state_dict(saved)
        elif self.case.between == "another dtype and back":
            via = torch.float32 if self.dtype == torch.float64 else torch.float64
            self.dense.rewrite(lambda _, whole: whole.copy_(whole.to(via).to(self.dtype)))
            self.ours.model.to(via).to(self.dtype)
        if self.case.between in ("deepcopy", "save and load"):
            self.held = {}
        elif self.case.between == "another dtype and back" and self.case.held != "weights":
            self.held = {}  # a view of a plain Parameter would show the memory that it had before
        self.last = self._learned_bits()
        self._held_agree(may_raise=self.case.between in ("plan again", "another dtype and back"))

    def _hold(self) -> None:
        """Take what somebody keeps of the partial tensors."""
        if self.case.held != "nothing" and (DEVICE == "cpu" or self.case.held != "numpy"):
            weights = zip(self.ours.names, self.ours.weights(), strict=True)
            partial = {name: weight for name, weight in weights if isinstance(weight, fl.PartialTensor)}
            self.held = {name: others.take(self.case.held, weight) for name, weight in partial.items()}

    def _held_agree(self, may_raise: bool = False) -> None:
        """What was taken shows the values of now, and has a gradient; or, after some events, raises for good."""
        expected = self._expected()
        for name, held in list(self.held.items()):
            self.ours.weight(name).detach()  # what is only looked up is brought up to date when somebody asks
            try:
                mine, theirs = others.shown(self.case.held, held, expected[name])
            except fl.PartialTensorError:
                assert may_raise, f"{name}: what was taken from the module raises"
                del self.held[name]
                continue
            assert torch.equal(bits(mine), bits(theirs)), f"{name}: what was taken from the module is not current"
            if self.case.held in ("weights", "views"):
                part = next(part for part in self.parts if part.name == name)
                learned = dict(self.ours.model.named_parameters())[f"{name}_learned"]
                wanted = torch.zeros_like(expected[name])
                (wanted if self.case.held == "weights" or not wanted.ndim else wanted[-1:]).fill_(0.125)
                try:
                    (slope,) = torch.autograd.grad((held * 0.125).sum(), learned)
                except RuntimeError as error:
                    # A tensor of another dtype accumulates its gradient elsewhere; `backward()` still reaches it.
                    converted = may_raise and self.case.between == "another dtype and back"
                    if not converted or "not have been used" not in str(error):
                        raise AssertionError(f"{name}: no gradient by it") from error
                    del self.held[name]
                    continue
                factor = 2 if self.case.hook in ("on gradients", "before the plan") else 1
                assert torch.equal(slope, factor * wanted[part.index].to(slope.dtype)), f"{name}: no gradient by it"

    def _write(self) -> None:
        """What other code writes to the weights reaches both parts."""
        write = self.case.write
        if write == "nothing":
            return
        if write == "learned data":
            for parameter in self.ours.parameters:
                parameter.data.mul_(0.5)
            self.dense.rewrite_learned(0.5)
        else:
            with torch.no_grad():
                for weight in self.ours.model.parameters() if write == "every parameter" else self.ours.weights():
                    others.WRITERS[write](weight)
            self.dense.rewrite(lambda _, whole: others.WRITERS[write](whole))
            for name, value in self._expected().items():
                assert torch.equal(bits(read(self.ours.model, name)), bits(value)), f"{name}: a write was lost"
            written = self.dense.learned()
            for part, mine, theirs in zip(self.parts, self.ours.parameters, written, strict=True):
                assert torch.equal(bits(mine), bits(theirs)), f"{part.name}: a write did not reach what learns"
        self.last = self._learned_bits()

    def _toggle(self, x: Tensor) -> None:
        """Other code sets `requires_grad`: nothing frozen learns, and what learned learns on once it may again."""
        model, toggle = self.ours.model, self.case.toggle
        if toggle == "all on":
            model.requires_grad_(True)
        elif toggle == "each parameter on":
            for parameter in model.parameters():
                parameter.requires_grad = True
        elif toggle == "each module on":
            for module in model.modules():
                module.requires_grad_()
        elif toggle == "off and on":
            model.requires_grad_(False)
            self._without_gradients(x)
            model.requires_grad_(True)
        elif toggle == "weights off and on":
            on = [weight for weight in self.ours.weights() if weight.requires_grad]
            for weight in on:
                weight.requires_grad = False
            self._without_gradients(x)
            for weight in self.ours.weights():
                weight.requires_grad_(True)

    def _without_gradients(self, x: Tensor) -> None:
        self.dense.before_forward()
        out = self.ours.model(x)
        assert not out.requires_grad, "all was switched off, and there is a graph"
        near(out, self.dense.call(x), 0.0 if self.exact else SUMS * self.unit, "the output")

    def _reading_is_current(self) -> None:
        """After a step, the memory holds what was learned; that of a table that is only looked up once it is asked."""
        if self.case.reading == "nothing":
            return
        expected = self._expected()
        masks = self._frozen_masks()
        raw = self.case.reading in ("raw", "first parameter")
        for key, mine in others.readings(self.case.reading, self.ours.model).items():
            name = self.keys_of.get(key)
            if name is not None and not (raw and name in self.looked_up):
                how, moved = f"{key}: read as {self.case.reading}", bits(mine) != bits(expected[name])
                assert not moved[masks[name]].any(), f"{how}: frozen moved"
                assert not moved.any(), f"{how}: it is not current"

    def _expected(self) -> dict[str, Tensor]:
        """Each tensor as a whole: frozen values as they were, learned ones as they are."""
        expected = {name: before.clone() for name, before in self.dense.before.items()}
        for part, values in zip(self.parts, self.ours.parameters, strict=True):
            expected[part.name][part.index] = values.detach().to(self.dtype)
        return expected

    def _learned_bits(self) -> Tensor:
        return torch.cat([bits(parameter).flatten().long() for parameter in self.ours.parameters])

    def _memory_is_bounded(self, ours: Trainer) -> None:
        held = [tensor for state in ours.optimizer.state.values() for tensor in _tensors(state)]
        learned = sum(parameter.numel() for parameter in self.ours.parameters)
        bound = ours.family.kept * learned + 8 * len(self.parts)
        if self.case.given == "learned" or "Adagrad" not in self.case.optimizer:  # that makes all of its state at once
            assert sum(tensor.numel() for tensor in held) <= bound, "the optimizer keeps more than what learns needs"
        tensors = dict(self.ours.model.named_parameters())
        frozen = [p for name, p in tensors.items() if f"{name}_learned" in tensors or not p.requires_grad]
        assert all(parameter.grad is None for parameter in frozen), "a frozen part has a gradient"

    def _averages_agree(self, ours: nn.Module, theirs: nn.Module) -> None:
        """Averaged weights: frozen ones every bit; learned ones near, averaged in tensors of other sizes."""
        expected = dict(theirs.named_parameters())
        for name, frozen in self._frozen_masks().items():
            mine = read(ours, name)
            assert torch.equal(bits(mine)[frozen], bits(self.dense.before[name])[frozen]), f"{name}: the average moved"
            near(mine[~frozen], expected[name].detach()[~frozen], STEPS * self.unit, f"{name}: the average")

    def _all_ways_to_read_agree(self) -> None:
        """Read from the module, its state dict and after merging: frozen bits as before, learned ones as learned."""
        model, masks = self.ours.model, self._frozen_masks()
        expected = self._expected()
        readings = {"read": {name: read(model, name) for name in expected}, "state dict": dict(model.state_dict())}
        assert list(readings["state dict"]) == self.keys
        readings["state dict"] = {name: value.clone() for name, value in readings["state dict"].items()}
        fl.merge(model)
        assert list(model.state_dict()) == self.keys
        assert not any(isinstance(parameter, fl.PartialTensor) for parameter in model.parameters())
        readings["merged"] = {name: parameter.detach() for name, parameter in model.named_parameters()}
        for how, values in readings.items():
            for name, frozen in masks.items():
                now = bits(values[name])
                assert torch.equal(now[frozen], bits(self.dense.before[name])[frozen]), f"{how}: {name}: frozen moved"
                assert torch.equal(now, bits(expected[name])), f"{how}: {name}: the learned values differ"
        self._held_after_a_merge()

    def _held_after_a_merge(self) -> None:
        """What was taken before shows what the plain Parameters hold, or raises."""
        with torch.no_grad():
            for parameter in self.ours.model.parameters():
                parameter.add_(0.5)
        for name, held in self.held.items():
            now = read(self.ours.model, name)
            try:
                mine, theirs = others.shown(self.case.held, held, now)
            except fl.PartialTensorError:
                continue
            assert torch.equal(bits(mine), bits(theirs)), f"{name}: what was taken before the merge is not current"

    def _frozen_masks(self) -> dict[str, Tensor]:
        masks = {
            name: torch.ones(whole.shape, dtype=torch.bool, device=DEVICE) for name, whole in self.dense.before.items()
        }
        for part in self.parts:
            masks[part.name][part.index] = False
        return masks

    def _frozen(self) -> int:
        return sum(int(mask.sum()) for mask in self._frozen_masks().values())


def _keys(plain: nn.Module) -> dict[str, str]:
    """Every name of each tensor -> the first of them."""
    first = {parameter: name for name, parameter in plain.named_parameters()}
    return {name: first[parameter] for name, parameter in plain.named_parameters(remove_duplicate=False)}


def _looked_up(plain: nn.Module) -> set[str]:
    """Names of the tensors whose modules all look rows up."""
    others_use = {
        parameter
        for module in plain.modules()
        for parameter in module._parameters.values()
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    return {name for name, parameter in plain.named_parameters() if parameter not in others_use}


def _retained(model: nn.Module) -> list[Tensor | None]:
    """The gradients that views of the weights have kept, if its forward makes any; the views are dropped."""
    views = getattr(model, "views", [])
    gradients = [view.grad for view in views]
    views.clear()  # a plan refuses a module that keeps views of its weights
    return [None if gradient is None else gradient.clone() for gradient in gradients]


def read(model: nn.Module, name: str) -> Tensor:
    """The whole tensor, as a user reads it."""
    path, _, own = name.rpartition(".")
    return getattr(model.get_submodule(path), own).detach().clone()


def bits(tensor: Tensor) -> Tensor:
    """The same memory as integers: shape as before."""
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(sizes[tensor.element_size()])


def near(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    """Within `tolerance`, of 1 or of the largest number where that is more: sums cancel, so small ones are no finer."""
    scale = max(1.0, float(theirs.detach().abs().nan_to_num(0.0, 0.0).max())) if theirs.numel() else 1.0
    a, b = ours.detach().double(), theirs.detach().double()
    same = (a == b) | (a.isnan() & b.isnan())  # both may overflow
    far = torch.where(same, 0.0, (a - b).abs()).max() if theirs.numel() else torch.zeros(())
    assert far <= tolerance * scale, f"{what} differs by {float(far):.3g}, more than {tolerance * scale:.3g}"


def _average(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))


def _tensors(state: Any) -> list[Tensor]:
    """The tensors that an optimizer keeps, in lists and dicts too."""
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for value in values for tensor in _tensors(value)]

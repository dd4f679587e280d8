"""The user's own steps, watched: the verdicts of `explain`, what became of the whole step, and the same bits."""

import contextlib
import copy
import math
import re

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import frostline as fl

from .cases import line_of, two_layers


def watched(model, loss_fn, optimizer):
    """Return the explanation of a plain training step."""
    with fl.watching(model, optimizer) as seen:
        loss_fn().backward()
        optimizer.step()
    return seen.explanation


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    fl.train_only(model, {"*": fl.everything, "0.weight": fl.rows([1, 2])})
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)


def train(watch, amp=False):
    model, optimizer = network()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    losses = []

    def step():
        for _ in range(2):  # accumulated
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                loss = model(torch.randint(9, (6,))).float().square().mean()
            loss.backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    for number in range(5):
        if watch and number in (0, 2):
            with fl.watching(model, optimizer) as seen:
                step()
            assert seen.explanation.alarms == []
            seen.check()
        else:
            step()
    state = [tensor for values in optimizer.state.values() for tensor in values.values()]
    return [*losses, torch.rand(2).tolist()], [*model.state_dict().values(), *state]


@pytest.mark.parametrize("amp", [False, True])
def test_a_watched_run_has_the_bits_of_one_that_is_not(amp):
    (losses, state), (plain_losses, plain_state) = train(True, amp), train(False, amp)
    assert losses == plain_losses
    assert all(torch.equal(now, then) for now, then in zip(state, plain_state, strict=True))
    assert len(set(map(str, losses))) == len(losses)


def test_nothing_stays_of_a_watched_step():
    model, optimizer = network()
    backward, apply = torch.autograd.backward, torch.autograd.Function.__dict__["apply"]
    inside = []
    with fl.watching(model, optimizer):
        inside.append(torch.autograd.backward)
    assert inside != [backward]
    with pytest.raises(KeyError), fl.watching(model, optimizer):
        raise KeyError
    assert torch.autograd.backward is backward
    assert torch.autograd.Function.__dict__["apply"] is apply
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_without_an_optimizer_the_step_is_not_judged():
    model, loss_fn = two_layers()
    with fl.watching(model) as seen:
        loss_fn().backward()
    assert seen.explanation.alarms == []


def test_before_the_block_has_ended_there_is_no_explanation():
    model, loss_fn = two_layers()
    with fl.watching(model) as seen:
        with pytest.raises(fl.ProbeError, match="the block has not ended"):
            _ = seen.explanation
        loss_fn().backward()
    seen.check()


@pytest.mark.parametrize("arguments", [(3,), (nn.Linear(1, 1), 3)])
def test_what_is_no_model_or_optimizer_is_refused(arguments):
    with pytest.raises(TypeError, match=r"model: expected|optimizer: int"):
        fl.watching(*arguments)


def plain():
    model, loss_fn = two_layers()
    return model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)


def accumulates(model, loss_fn, optimizer):
    for _ in range(3):
        loss_fn().backward()


def steps_first(model, loss_fn, optimizer):
    optimizer.step()
    loss_fn().backward()


def zeroes_late(model, loss_fn, optimizer):
    loss_fn().backward()
    optimizer.zero_grad()
    optimizer.step()


def zeroes_late_in_place(model, loss_fn, optimizer):
    loss_fn().backward()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()


def clips_to_nothing(model, loss_fn, optimizer):
    loss_fn().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.0)
    optimizer.step()


def copies_back(model, loss_fn, optimizer):
    average = copy.deepcopy(model)
    loss_fn().backward()
    optimizer.step()
    for parameter, old in zip(model.parameters(), average.parameters(), strict=True):
        parameter.data.copy_(old)  # <- copied back


def copies_data_back(model, loss_fn, optimizer):
    state = copy.deepcopy(model.state_dict())
    loss_fn().backward()
    optimizer.step()
    model.load_state_dict(state)  # <- loaded back


WHOLE = {
    accumulates: ("not stepped", "no step came after 3 backward passes"),
    steps_first: ("not stepped", "the step came before the backward pass"),
    zeroes_late: ("gradient lost", "zero_grad came before step"),
    zeroes_late_in_place: ("gradient lost", "clipped to nothing, or zeroed"),
    clips_to_nothing: ("gradient lost", "clipped to nothing, or zeroed"),
    copies_back: ("overwritten", "given its old values again"),
    copies_data_back: ("overwritten", "given its old values again"),
}


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("fault", WHOLE, ids=lambda fault: fault.__name__)
def test_what_became_of_the_whole_step_is_said(fault, kind):
    model, loss_fn = two_layers()
    optimizer = kind(model.parameters(), lr=0.1)
    with fl.watching(model, optimizer) as seen:
        fault(model, loss_fn, optimizer)
    verdict, reason = WHOLE[fault]
    for found in seen.explanation.findings:
        assert (found.verdict, reason in found.reason) == (verdict, True)
    with pytest.raises(fl.ProbeError, match=re.escape(verdict)):
        seen.check()


@pytest.mark.parametrize(("fault", "mark"), [(copies_back, "copied back"), (copies_data_back, "loaded back")])
def test_the_line_that_overwrites_the_weights_is_named(fault, mark):
    model, loss_fn, optimizer = plain()
    with fl.watching(model, optimizer) as seen:
        fault(model, loss_fn, optimizer)
    assert seen.explanation.findings[0].where.endswith(f"test_watching.py:{line_of(__file__, mark)}")


def test_weights_that_are_only_clamped_after_the_step_are_remarked():
    model, loss_fn, optimizer = plain()
    with fl.watching(model, optimizer) as seen:
        loss_fn().backward()
        optimizer.step()
        for parameter in model.parameters():
            parameter.data.clamp_(-0.01, 0.01)  # <- clamped
    assert seen.explanation.alarms == []
    (remark,) = seen.explanation.remarks
    assert remark.startswith("Weights were written to after the step, in ")
    assert f":{line_of(__file__, 'clamped')}" in remark


@pytest.mark.parametrize(("steps", "alarm"), [(1, False), (2, False), (0, True)])
def test_a_rate_of_zero_under_a_warm_up_is_a_note_and_an_alarm_where_it_lasts(steps, alarm):
    model, loss_fn, optimizer = plain()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    with fl.watching(model, optimizer) as seen:
        for _ in range(steps or 2):
            loss_fn().backward()
            optimizer.step()
            optimizer.zero_grad()
            if steps:
                scheduler.step()
    assert bool(seen.explanation.alarms) is alarm
    found = seen.explanation.findings[0]
    assert "learning rate 0" in (found.notes if not alarm else found.verdicts)


@pytest.mark.parametrize(("steps", "alarm"), [(1, False), (2, True)])
def test_the_first_step_that_a_scaler_skips_is_a_note_and_an_alarm_where_all_are(steps, alarm):
    model, loss_fn, optimizer = plain()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, backoff_factor=0.999)
    with fl.watching(model, optimizer) as seen:
        for _ in range(steps):
            scaler.scale(loss_fn() * math.pi * 1e9).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert bool(seen.explanation.alarms) is alarm
    if not alarm:
        assert seen.explanation.findings[0].notes == ["step skipped"]
        assert "A scaler skipped the step" in str(seen.explanation)


def test_a_scaler_that_does_not_skip_is_no_alarm():
    model, loss_fn, optimizer = plain()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with fl.watching(model, optimizer) as seen:
        scaler.scale(loss_fn()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert seen.explanation.alarms == []


@pytest.mark.parametrize("gate", [False, True])
def test_behind_a_factor_that_starts_at_zero_a_parameter_learns(gate):
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    scale = model["b"].register_parameter("gate", nn.Parameter(torch.zeros(()))) if gate else None
    if not gate:
        nn.init.zeros_(model["b"].weight)
    x = torch.randn(5, 3)

    def loss_fn():
        h = model["b"](model["a"](x))
        return ((h * model["b"].gate if gate else h) - 1).square().mean()

    found = watched(model, loss_fn, torch.optim.Adam(model.parameters())).to_dict()
    assert found["a.weight"]["verdict"] == "learns"
    assert found["a.weight"]["notes"] == ["zero gradient"]
    assert scale is None


def test_two_models_in_turn_are_each_explained():
    torch.manual_seed(0)
    maker, judge, x = nn.Linear(2, 2), nn.Linear(2, 1), torch.randn(4, 2)
    one, two = torch.optim.SGD(maker.parameters(), lr=0.1), torch.optim.SGD(judge.parameters(), lr=0.1)
    with fl.watching(nn.ModuleDict({"maker": maker, "judge": judge}), [one, two]) as seen:
        judge(maker(x).detach()).mean().backward()
        two.step()
        two.zero_grad()
        (-judge(maker(x)).mean()).backward()
        one.step()
        one.zero_grad()
    assert seen.explanation.alarms == []


def test_a_compiled_model_trains_and_is_said_to_be_compiled():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)), torch.randn(8, 4)
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    explanation = watched(compiled, lambda: compiled(x).square().mean(), optimizer)
    assert explanation.alarms == []
    assert "compiled" in explanation.remarks[0]


def test_a_watch_inside_of_another_is_refused_and_the_outer_one_sees_the_step() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fl.watching(model, optimizer) as seen:
        with pytest.raises(fl.ProbeError, match="watched or explained already"), fl.watching(model, optimizer):
            pass
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert seen.explanation.to_dict()["weight"]["verdict"] == "learns"
    with fl.watching(model, optimizer) as again:  # one after the other is fine
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert again.explanation.alarms == []


@pytest.mark.parametrize("how", ["positional", "keyword"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.LBFGS])
def test_a_pass_inside_of_the_step_is_seen(kind, how):
    """LBFGS and Lightning run forward and backward in a closure, which the step calls."""

    def train(watch):
        torch.manual_seed(0)
        model = nn.ModuleDict({name: nn.Linear(3, 3) for name in "abc"})
        x = torch.randn(5, 3)
        optimizer = kind(model.parameters(), lr=0.1)

        def closure():
            optimizer.zero_grad()
            loss = (model["b"](model["a"](x).detach()) - 1).square().mean()  # <- cut inside
            loss.backward()
            return loss

        with fl.watching(model, optimizer) if watch else contextlib.nullcontext() as seen:
            loss = optimizer.step(closure) if how == "positional" else optimizer.step(closure=closure)
        return seen, [loss.detach(), *(p.detach() for p in model.parameters())]

    (seen, bits), (_, plain) = train(True), train(False)
    assert all(torch.equal(now, then) for now, then in zip(bits, plain, strict=True))
    found = seen.explanation.to_dict()
    assert {name: found[f"{name}.weight"]["verdict"] for name in "abc"} == {"a": "cut", "b": "learns", "c": "unused"}
    assert found["a.weight"]["where"].endswith(f":{line_of(__file__, 'cut inside')}")


def test_in_a_pass_inside_of_the_step_a_gradient_can_be_lost():
    model, loss_fn, optimizer = plain()

    def closure():
        loss_fn().backward()
        optimizer.zero_grad()

    with fl.watching(model, optimizer) as seen:
        optimizer.step(closure)
    assert {found.verdict for found in seen.explanation.findings} == {"gradient lost"}


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_learns_inside_of_a_checkpoint_is_seen(reentrant):
    """A reentrant checkpoint makes its graph in the backward pass; a factor of zeros is behind it, as in LoRA."""
    torch.manual_seed(0)
    names = ("embed", "a", "b", "cut", "head")
    model = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in names})
    nn.init.zeros_(model["b"].weight)
    x = torch.randn(8, 4)

    def block(h):
        return h + model["b"](model["a"](h)) + model["cut"](h).detach()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fl.watching(model, optimizer) as seen:
        h = torch.utils.checkpoint.checkpoint(block, model["embed"](x), use_reentrant=reentrant)
        (model["head"](h) - 1).square().mean().backward()
        optimizer.step()
    found = {name: seen.explanation.to_dict()[f"{name}.weight"]["verdict"] for name in names}
    assert found == {"embed": "learns", "a": "learns", "b": "learns", "cut": "cut", "head": "learns"}
    assert seen.explanation.to_dict()["a.weight"]["notes"] == ["zero gradient"]

"""What surrounds the call: autocast, accumulation, threads, gradients of gradients, other tensors, torch itself."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import frostline as fl

from .cases import line_of, two_layers, verdicts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [None, torch.optim.SGD])
def test_inside_an_autocast_block_a_factor_that_starts_at_zero_is_no_alarm(make, dtype):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)), torch.randn(3, 2)
    nn.init.zeros_(model[1].weight)
    optimizer = make and make(model.parameters(), lr=0.1)
    with torch.autocast("cpu", dtype):
        assert fl.explain(model, lambda: model(x).float().sum(), optimizer).alarms == []


@pytest.mark.parametrize("look", [None, "gradients", "trial_step", "explain"])
def test_a_look_between_two_passes_of_an_autocast_block_leaves_no_cast_weight_behind(look):
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2), torch.randn(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn():
        return model(x).float().square().mean()

    with torch.autocast("cpu", torch.bfloat16):
        if look == "gradients":
            fl.gradients(loss_fn, [model.weight])
        elif look:
            getattr(fl, look)(model, loss_fn, optimizer)
        loss = loss_fn()
    loss.backward()
    optimizer.step()
    torch.manual_seed(0)
    other = nn.Linear(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = other(x).float().square().mean()
    loss.backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert torch.equal(model.weight, other.weight)


class Accumulating:
    """A wrapper that steps every other time, as accelerate's does under accumulation."""

    def __init__(self, optimizer):
        self.optimizer, self.calls = optimizer, 0

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self):
        self.calls += 1
        if self.calls % 2 == 0:
            self.optimizer.step()


def test_a_wrapper_that_accumulates_is_not_taken_for_rounding():
    model, loss_fn = two_layers()
    wrapper = Accumulating(torch.optim.SGD(model.parameters(), lr=0.1))
    explanation = fl.explain(model, loss_fn, wrapper)
    assert explanation.alarms == []
    assert [remark for remark in explanation.remarks if remark.startswith("Accumulating did not step")]
    assert wrapper.calls == 0
    wrapper.calls = 1
    assert fl.explain(model, loss_fn, wrapper).remarks == ()


def test_accelerates_wrapper_in_the_middle_of_an_accumulation_is_understood(request):
    accelerate = pytest.importorskip("accelerate")
    request.addfinalizer(accelerate.state.GradientState._reset_state)  # all accelerators of a process share it
    request.addfinalizer(accelerate.state.AcceleratorState._reset_state)
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=4, cpu=True)
    model = nn.Linear(2, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with accelerator.accumulate(model):
        assert verdicts(model, lambda: model(torch.ones(1, 2)).sum(), optimizer) == {
            "weight": "learns",
            "bias": "learns",
        }


def test_older_gradients_everywhere_are_remarked():
    model, loss_fn = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn().backward()
    explanation = fl.explain(model, loss_fn, optimizer)
    assert [remark for remark in explanation.remarks if "older `.grad`" in remark]
    assert explanation.alarms == []
    optimizer.zero_grad()
    assert fl.explain(model, loss_fn, optimizer).remarks == ()


def pool(model, x):
    with ThreadPoolExecutor(1) as workers:
        return workers.submit(lambda: model(x).detach()).result()  # <- pool


WAITING = ThreadPoolExecutor(1)


def waiting_pool(model, x):
    return WAITING.submit(lambda: model(x).detach()).result()  # <- waiting_pool


def started(model, x):
    results = []
    thread = threading.Thread(target=lambda: results.append(model(x).detach()))  # <- started
    thread.start()
    thread.join()
    return results[0]


class Runs(threading.Thread):
    def __init__(self, model, x):
        super().__init__()
        self.model, self.x = model, x

    def run(self):
        self.result = self.model(self.x).detach()  # <- subclass


def subclass(model, x):
    thread = Runs(model, x)
    thread.start()
    thread.join()
    return thread.result


@pytest.mark.parametrize("way", [pool, waiting_pool, started, subclass], ids=lambda way: way.__name__)
def test_a_cut_in_another_thread_is_named_with_its_line(way):
    model, scale, x = nn.Linear(2, 3), nn.Parameter(torch.ones(())), torch.randn(4, 2)
    both = nn.ModuleDict({"model": model})
    both.scale = scale
    WAITING.submit(lambda: None).result()
    found = fl.explain(both, lambda: (way(model, x) * scale).sum()).to_dict()
    assert found["model.weight"]["verdict"] == "cut"
    assert found["model.weight"]["where"].endswith(f":{line_of(__file__, way.__name__)}")
    assert found["scale"]["verdict"] == "learns"


def test_a_forward_in_another_thread_that_is_whole_learns():
    model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), torch.randn(4, 2)

    def loss_fn():
        with ThreadPoolExecutor(2) as workers:
            return sum(workers.map(lambda part: model(part).sum(), x.split(2)))

    assert set(verdicts(model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1)).values()) == {"learns"}


def test_a_bias_that_no_gradient_penalty_depends_on_is_unused():
    torch.manual_seed(0)
    critic, x = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(3, 2)

    def penalty():
        h = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(h).sum(), h, create_graph=True)
        return ((gradient.norm(dim=1) - 1) ** 2).mean()

    found = fl.explain(critic, penalty, torch.optim.SGD(critic.parameters(), lr=0.1)).to_dict()
    assert {name: finding["verdict"] for name, finding in found.items()} == {
        "0.weight": "learns",
        "0.bias": "learns",
        "2.weight": "learns",
        "2.bias": "unused",
    }
    assert "torch.autograd.grad" in found["2.bias"]["reason"]
    with_loss = fl.explain(critic, lambda: critic(x).mean() + penalty())
    assert with_loss.alarms == []


def test_a_gradient_penalty_without_a_graph_is_cut():
    critic, x = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(3, 2)

    def penalty():
        h = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(h).sum(), h)  # <- no graph
        return gradient.square().mean() * critic(x).mean().detach()

    found = fl.explain(critic, penalty).to_dict()
    assert found["0.weight"]["verdict"] == "cut"


def test_what_the_user_switches_off_after_a_plan_is_not_the_plans():
    model, x = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)), torch.ones(1, 2)
    fl.train_only(model, {"1.*": fl.everything, "2.*": fl.everything})
    model[1].requires_grad_(False)
    found = fl.explain(model, lambda: model(x).sum(), torch.optim.SGD(model[2].parameters(), lr=0.1)).to_dict()
    assert {found[f"{index}.weight"]["verdict"] for index in (0,)} == {"frozen by plan"}
    assert (found["1.weight"]["verdict"], found["1.weight"]["reason"]) == ("frozen", "requires_grad is False")
    assert found["2.weight"]["verdict"] == "learns"
    fl.train_only(model, {"0.*": fl.everything})
    assert fl.explain(model, lambda: model(x).sum()).to_dict()["1.weight"]["verdict"] == "frozen by plan"


def test_a_plan_that_raises_leaves_what_was_frozen_by_whom():
    model, x = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), torch.ones(1, 2)
    fl.train_only(model, {"1.*": fl.everything})
    with pytest.raises(fl.FrostlineError):
        fl.train_only(model, {"0.*": fl.everything, "1.weight": fl.rows([9])})
    assert fl.explain(model, lambda: model(x).sum()).to_dict()["0.weight"]["verdict"] == "frozen by plan"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
@pytest.mark.parametrize("call", ["gradients", "trial_step", "explain"])
def test_a_cond_in_the_forward_runs_as_it_does_without_a_look(call):
    torch.manual_seed(0)
    model, x = nn.Linear(2, 2), torch.ones(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn():
        return torch.cond(x.sum() > 0, lambda h: h.sin(), lambda h: h.cos(), (model(x),)).sum()

    loss_fn().backward()
    expected = model.weight.grad.clone()
    if call == "gradients":
        assert torch.equal(fl.gradients(loss_fn, [model.weight])[0], expected)
    elif call == "trial_step":
        assert fl.trial_step(model, loss_fn, optimizer)["weight"].entries_moved
    else:
        assert fl.explain(model, loss_fn, optimizer).alarms == []
    assert torch.equal(model.weight.grad, expected)


def test_frozen_weights_of_a_wrapper_class_are_explained_and_restored():
    from torch.testing._internal.two_tensor import TwoTensor

    model, x = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1)), torch.randn(3, 2)
    wrapped = TwoTensor(torch.ones(2, 2), torch.ones(2, 2))
    model[0].weight = nn.Parameter(wrapped, requires_grad=False)
    x = TwoTensor(x, x.clone())

    def loss_fn():
        h = model[0](x)
        return model[1](h.a).square().mean()

    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    before = model[0].weight
    assert verdicts(model, loss_fn, optimizer) == {"0.weight": "frozen", "1.weight": "learns", "1.bias": "learns"}
    assert fl.trial_step(model, loss_fn, optimizer)["1.weight"].entries_moved == 2
    assert model[0].weight is before
    assert torch.equal(before.a, torch.ones(2, 2))


def _patched():
    places = [(torch.autograd.Function, "apply"), (nn.Parameter, "__new__"), (threading.Thread, "start")]
    return [vars(where)[name] for where, name in (*places, (ThreadPoolExecutor, "submit"))]


def test_looks_that_overlap_in_two_threads_leave_torch_unpatched():
    before = _patched()
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    found = {}

    def look(name, enter, wait):
        model, calls = nn.Linear(2, 1), []

        def loss_fn():
            if not calls:
                enter.set()
                assert wait.wait(20)
            calls.append(1)
            return model(torch.ones(1, 2)).sum()

        found[name] = fl.explain(model, loss_fn).alarms

    def first():
        look("first", first_in, second_in)
        first_out.set()

    def second():
        assert first_in.wait(20)
        look("second", second_in, first_out)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {"first": [], "second": []}
    assert _patched() == before


def test_many_looks_at_once_all_say_the_same():
    found, errors = [], []

    def look():
        try:
            for _ in range(5):
                model, loss_fn = nn.Linear(2, 1), None
                loss_fn = lambda model=model: model(torch.ones(1, 2)).detach().sum() + model.bias.sum()  # noqa: E731
                found.append(tuple(finding.verdict for finding in fl.explain(model, loss_fn).findings))
        except Exception as error:
            errors.append(error)

    before = _patched()
    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert found == [("cut", "learns")] * 20
    assert _patched() == before


def test_another_threads_functions_and_parameters_are_not_traced():
    inside, done = threading.Event(), threading.Event()
    made = []

    def other():
        assert inside.wait(20)
        made.append(nn.Parameter(torch.ones(2)) * 2)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    model = nn.Linear(2, 1)

    def loss_fn():
        inside.set()
        assert done.wait(20)
        return model(torch.ones(1, 2)).sum()

    assert fl.explain(model, loss_fn).remarks == ()
    thread.join(20)
    assert made[0].requires_grad

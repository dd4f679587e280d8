"""`frostline explain script.py`: everything a script sees of Python is as under `python script.py`."""

import json
import subprocess
import sys

import pytest

SHOW = """
import sys
early = sorted({"torch", "numpy", "safetensors"} & set(sys.modules))
import atexit, inspect, pickle
class Thing: pass
def last(): print("at exit", sys.modules["__main__"].__dict__ is globals(), type(pickle.loads(pickle.dumps(Thing()))))
atexit.register(last)
from pathlib import Path
print(early, sys.argv, sys.path[0], __name__, __file__, __package__, __spec__ and __spec__.name, sorted(globals()))
print(inspect.getsource(Thing), sys.stdin.read())
"""
SCRIPTS = {
    "show.py": SHOW,
    "package/__init__.py": "",
    "package/__main__.py": "from .show import *",
    "package/show.py": SHOW,
    "raises.py": "def f():\n    1 / 0\ntry:\n    f()\nexcept ZeroDivisionError as e:\n    raise KeyError from e",
    "syntax.py": "x = (",
    "hooked.py": "import sys\nsys.excepthook = lambda *error: print('mine', error[1], file=sys.stderr)\n1 / 0",
    "exits.py": "import sys\nsys.exit({'none': None, 'text': 'a text', 'seven': 7, 'true': True}[sys.argv[1]])",
    "thread.py": "import threading, time\nthreading.Timer(0.2, lambda: print('late')).start()\nprint(1)",
    "forks.py": "import os\npid = os.fork()\nprint('child' if not pid else os.waitpid(pid, 0)[1], flush=True)",
    "spawns.py": (
        "import multiprocessing as mp, sys\nclass Thing: pass\n"
        "def work(queue): queue.put((__name__, sys.argv, Thing))\n"
        "if __name__ == '__main__':\n"
        "    context = mp.get_context('spawn')\n    queue = context.Queue()\n"
        "    process = context.Process(target=work, args=(queue,))\n    process.start()\n    print(queue.get())\n"
        "    process.join()\n    print(process.exitcode)"
    ),
}
CALLS = [
    ("show.py", "a", "--json", "b"),
    ("./show.py",),
    ("package/show.py", "--step"),
    ("-m", "package", "--fail"),
    ("-m", "package.show", "x"),
    ("raises.py",),
    ("syntax.py",),
    ("hooked.py",),
    *(("exits.py", code) for code in ("none", "text", "seven", "true")),
    ("thread.py",),
    ("forks.py",),
    ("spawns.py",),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    for name, text in SCRIPTS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def run(folder, *arguments):
    command = [sys.executable, "-W", "error", *arguments]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, input="typed", timeout=120, check=False)
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_script_runs_as_under_python(folder, call):
    code, out, errors = run(folder, *call)
    own_code, own_out, own_errors = run(folder, "-m", "frostline", "explain", *call)
    assert (own_code, own_out) == (code, out)
    said, _, rest = own_errors.partition("\nfrostline: ")
    assert said == errors
    assert "no module with parameters that learn has run" in rest


def test_a_module_that_is_not_there_and_one_that_cannot_be_imported_are_told_apart(folder):
    (folder / "broken").mkdir(exist_ok=True)
    (folder / "broken" / "__init__.py").write_text("import no_such_library")
    (folder / "broken" / "train.py").write_text("")
    assert run(folder, "-m", "frostline", "explain", "-m", "broken.nothing")[0] == 1
    code, _, errors = run(folder, "-m", "frostline", "explain", "-m", "broken.train")
    assert (code, "No module named 'no_such_library'" in errors) == (1, True)
    code, _, errors = run(folder, "-m", "frostline", "explain", "-m", "nothing.train")
    assert (code, errors) == (2, "frostline: -m nothing.train: no such module, here or installed.\n")


TRAIN = """
import os
os.environ["OMP_NUM_THREADS"] = "1"
import sys, warnings
from importlib.util import find_spec
find_spec("torch")  # asked for, but not imported yet
assert "torch" not in sys.modules and "numpy" not in sys.modules
import torch
from torch import nn
from torch.utils.data import DataLoader

threads = torch.get_num_threads()
backward = torch.autograd.backward
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
optimizer = torch.optim.AdamW(model.parameters())
data = torch.randn(24, 3)
for batch in DataLoader(data, 8, shuffle=True, num_workers=2):
    loss = model(batch).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(loss.item().hex(), torch.rand(()).item().hex())
state = [value for values in optimizer.state.values() for value in values.values()]
print([value.double().sum().item().hex() for value in (*model.state_dict().values(), *state)])
from torch.nn.modules.module import _global_forward_pre_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks
assert torch.autograd.backward.__module__ == "torch.autograd" and not torch._C._len_torch_function_stack()
assert not _global_forward_pre_hooks and not _global_optimizer_pre_hooks
print(threads, len(warnings.filters))
sys.exit(5)
"""


def test_a_watched_training_has_the_bits_of_one_that_is_not_and_nothing_stays_patched(folder):
    (folder / "train.py").write_text(TRAIN)
    code, out, errors = run(folder, "train.py")
    own_code, own_out, table = run(folder, "-m", "frostline", "explain", "--fail", "--json", "found.json", "train.py")
    assert (code, errors) == (5, "")
    assert (own_code, own_out) == (code, out)
    assert "No alarm; 6 learn" in table
    found = json.loads((folder / "found.json").read_text())
    assert {each["verdict"] for each in found["model: Sequential"].values()} == {"learns"}


def test_each_process_of_a_training_agrees_and_the_first_one_writes(folder, launch):
    script, found = folder / "parallel.py", folder / "parallel.json"
    script.write_text(
        """
import sys, torch
import torch.distributed as dist
from torch import nn
dist.init_process_group("gloo")
torch.manual_seed(0)
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 3) for _ in range(3))
    def forward(self, x):
        h = self.a(x) + self.b(x).detach()
        return self.c(h) if dist.get_rank() else h  # c learns from the second process's batch
model = nn.parallel.DistributedDataParallel(Model(), find_unused_parameters=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    model(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
print(dist.get_rank(), flush=True)
dist.destroy_process_group()
"""
    )
    command = ("-m", "frostline", "explain", "--json", found, script)
    assert sorted(launch(*command, processes=2).split()) == ["0", "1"]
    (table,) = json.loads(found.read_text()).values()
    verdicts = {name: each["verdict"] for name, each in table.items() if name.endswith("weight")}
    assert verdicts == {"a.weight": "learns", "b.weight": "cut", "c.weight": "learns"}
    assert table["b.weight"]["where"].endswith("parallel.py:12")

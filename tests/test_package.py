"""The public names, and what an import costs."""

import ast
import builtins
import re
import subprocess
import sys
from pathlib import Path

import pytest

import frostline as fl
from frostline import errors

PROJECT = Path(__file__).resolve().parents[1]
EXTRAS = [
    "rich",
    "argcomplete",
    "gensim",
    "matplotlib",
    "transformers",
    "peft",
    "polars",
    "pyarrow",
    "scipy",
    "plotly",
    "tensorboard",
]


def test_the_public_names_are_pinned():
    assert sorted(fl.__all__) == [
        "Changes",
        "CheckpointError",
        "DataFileError",
        "Explanation",
        "FileError",
        "FrostlineError",
        "LearnedFileError",
        "MissingExtraError",
        "ModelFolderError",
        "PartialTensor",
        "PartialTensorError",
        "PatternError",
        "Plan",
        "ProbeError",
        "Recorder",
        "RowError",
        "RunFolderError",
        "SelectionError",
        "ShapeError",
        "StaleOptimizerError",
        "Trial",
        "VectorFileError",
        "add_tokens",
        "adversarial",
        "apply_changes",
        "clip_grad_norm_",
        "digest",
        "entries",
        "everything",
        "explain",
        "export_peft",
        "gradients",
        "integrations",
        "load_learned",
        "mapped_embedding",
        "mark",
        "merge",
        "nothing",
        "optim",
        "probe",
        "record",
        "rows",
        "save_learned",
        "scale_gradient",
        "stop_gradient",
        "tagger",
        "train_only",
        "trial_step",
        "vectors",
        "watching",
        "word2vec",
    ]


def test_type_checkers_see_the_names_that_are_there():
    (block,) = [node for node in ast.parse(Path(fl.__file__).read_text()).body if isinstance(node, ast.If)]
    assert sorted(node.names[0].asname for node in block.body) == fl.__all__


@pytest.mark.parametrize("name", fl.__all__)
def test_every_public_name_is_reachable_and_documented(name):
    assert getattr(fl, name) is not None
    assert name in dir(fl)
    assert getattr(fl, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'frostline' has no attribute 'freeze'"):
        _ = fl.freeze


def in_a_fresh_interpreter(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_every_room_loads_no_extra():
    rooms = "import frostline as fl; [getattr(fl, name) for name in fl.__all__]"
    loaded = in_a_fresh_interpreter(f"{rooms}; import sys; print(sorted(set({EXTRAS}) & set(sys.modules)))")
    assert loaded == "[]"


def test_importing_every_room_does_not_load_torchs_compiler():
    rooms = "import frostline as fl; [getattr(fl, name) for name in fl.__all__]"
    loaded = in_a_fresh_interpreter(
        f"{rooms}; import sys; print([n in sys.modules for n in ('torch', 'torch._dynamo')])"
    )
    assert loaded == "[True, False]"


def test_importing_frostline_alone_does_not_load_torch():
    assert in_a_fresh_interpreter("import sys, frostline; print('torch' in sys.modules)") == "False"


def test_the_version_is_the_one_in_the_metadata_and_the_changelog():
    assert f'version = "{fl.__version__}"' in (PROJECT / "pyproject.toml").read_text()
    versions = re.findall(r"^## \[([^\]]+)\]", (PROJECT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions[:2] == ["Unreleased", fl.__version__]


def test_all_errors_are_frostline_errors_and_the_builtin_their_page_names():
    drawn = re.findall(r"[├└]── (\w+) +(\w*)", errors.__doc__)
    assert len(drawn) == sum(isinstance(value, type) for value in vars(errors).values()) - 1
    for name, _ in drawn:
        assert issubclass(getattr(errors, name), fl.FrostlineError)
    named = {name: builtin for name, builtin in drawn if builtin.endswith("Error")}
    assert set(named) == {
        "SelectionError",
        "PartialTensorError",
        "StaleOptimizerError",
        "ProbeError",
        "FileError",
        "MissingExtraError",
    }
    for name, builtin in named.items():
        assert issubclass(getattr(errors, name), getattr(builtins, builtin))

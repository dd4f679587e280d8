"""A prebuilt library is loaded where its instruction set is, and for its own source only."""

import pytest

from frostline.optim import compiler, prebuilt

CODE = b'extern "C" int answer() { return 42; }'
V2 = "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"
V3 = f"{V2} abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.fixture
def libraries(cpp_compiler, tmp_path, monkeypatch):
    """A folder with a library of CODE for each instruction set; all are the same machine code, for any CPU."""
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path)
    library = tmp_path / prebuilt.file_name(CODE, "x86-64-v2")
    compiler.build(compiler.find_compiler(), CODE, "-O2", library)
    for level in ("x86-64-v3", "x86-64-v4"):
        (tmp_path / prebuilt.file_name(CODE, level)).write_bytes(library.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (V4, "x86-64-v4"),
        (V4.replace("avx512dq ", ""), "x86-64-v3"),
        (V3, "x86-64-v3"),
        (V3.replace("movbe ", ""), "x86-64-v2"),
        (V2, "x86-64-v2"),
    ],
)
def test_the_best_instruction_set_of_the_cpu_is_chosen(libraries, monkeypatch, flags, level):
    monkeypatch.setattr(prebuilt, "_cpu_flags", lambda: set(flags.split()))
    library, why = prebuilt.load(CODE)
    assert library.answer() == 42
    assert why == f"prebuilt for {level}"


def test_on_an_older_or_another_cpu_none_fits(libraries, monkeypatch):
    for flags in (V2.replace("popcnt ", ""), "", "fp asimd evtstrm"):
        monkeypatch.setattr(prebuilt, "_cpu_flags", lambda flags=flags: set(flags.split()))
        assert prebuilt.load(CODE) is None


def test_a_library_of_another_source_and_a_damaged_one_are_passed_over(libraries, monkeypatch):
    monkeypatch.setattr(prebuilt, "_cpu_flags", lambda: set(V4.split()))
    assert prebuilt.load(CODE + b"\n") is None
    (libraries / prebuilt.file_name(CODE, "x86-64-v4")).write_bytes(b"not a library")
    assert prebuilt.load(CODE)[1] == "prebuilt for x86-64-v3"


def test_without_the_folder_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(prebuilt, "_cpu_flags", lambda: pytest.fail("read the CPU's flags"))
    assert not prebuilt.FOLDER.exists()
    assert prebuilt.load(CODE) is None

"""`frostline vectors` inspects, converts and compares files of word vectors, and answers wrong input in one line."""

import io
import json
import sys
import zipfile

import pytest

from frostline.cli import main
from frostline.vectors import load


@pytest.fixture(autouse=True)
def in_a_folder_with_vectors(tmp_path, monkeypatch):
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.txt").write_text("ice 1 0\nsnow 3 4\nfire -1 0\n", encoding="utf-8")
    (tmp_path / "text.txt").write_text("Ice and snow ,\nsnow and rain ,\n", encoding="utf-8")


def output_of(capfd, *arguments):
    code = main(["vectors", *arguments])
    out, err = capfd.readouterr()
    return code, out, err


def test_info_prints_the_number_of_words_and_the_dimension(capfd):
    assert output_of(capfd, "info", "v.txt") == (0, "3 words, dimension 2; the first: ice snow fire\n", "")
    assert json.loads(output_of(capfd, "info", "v.txt", "--json")[1]) == {
        "file": "v.txt",
        "words": 3,
        "dimension": 2,
        "first": ["ice", "snow", "fire"],
    }


def test_convert_writes_what_load_reads(capfd):
    assert output_of(capfd, "convert", "v.txt", "v.safetensors") == (0, "3 words, dimension 2, in v.safetensors\n", "")
    assert load("v.safetensors")["snow"].tolist() == [3, 4]


def test_cover_counts_different_words_and_all_words(capfd):
    code, out, err = output_of(capfd, "cover", "v.txt", "text.txt", "--lowercase")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "2 of 5 different words have a vector (40.0%)",
        "3 of 8 words in the text (37.5%)",
        "most frequent missing words: and (2) , (2) rain (1)",
    ]
    values = json.loads(output_of(capfd, "cover", "v.txt", "text.txt", "--json")[1])
    assert values["missing"] == ["and", ",", "Ice", "rain"]
    assert (values["found"], values["tokens_found"], values["share"]) == (1, 2, 0.2)


def test_cover_reads_from_a_pipe(capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("ice été".encode()), encoding="ascii"))
    assert output_of(capfd, "cover", "v.txt")[1].startswith("1 of 2 different words have a vector (50.0%)\n")


def test_near_lists_words_by_cosine(capfd):
    assert output_of(capfd, "near", "v.txt", "ice")[1].split() == ["0.6000", "snow", "-1.0000", "fire"]
    assert json.loads(output_of(capfd, "near", "v.txt", "ice", "--count", "1", "--json")[1]) == {
        "word": "ice",
        "near": [{"word": "snow", "cosine": 0.6}],
    }


def test_near_answers_an_analogy_with_or_without_quotes(capfd):
    expected = (0, " 1.0000  fire\n", "")
    assert output_of(capfd, "near", "v.txt", "fire", "-", "ice", "+", "snow", "--count", "1")[0] == 0
    assert output_of(capfd, "near", "v.txt", "snow - snow - ice", "--count", "1") == expected
    assert output_of(capfd, "near", "v.txt", "snow", "-", "snow", "-", "ice", "--count", "1") == expected


def test_a_member_of_an_archive_is_named_after_a_colon(capfd, tmp_path):
    with zipfile.ZipFile("v.zip", "w") as archive:
        archive.write("v.txt")
        archive.writestr("two.txt", "a 1\nb 2\n")
    assert output_of(capfd, "info", "v.zip:two.txt")[1] == "2 words, dimension 1; the first: a b\n"
    code, _, err = output_of(capfd, "near", "v.zip", "ice")
    assert (code, err.count("\n")) == (2, 1)
    assert "the zip archive holds 2 files: v.txt, two.txt. Name one: " in err
    assert "or v.zip:v.txt on the command line" in err


def test_words_with_two_vectors_are_said_by_info_and_by_every_command(capfd, tmp_path):
    (tmp_path / "dup.vec").write_text("3 2\na 1 2\na 5 6\nb 3 4\n")
    said = "1 word is listed again with another vector: 'a'. The first vector of each is used."
    for _ in range(2):
        code, out, err = output_of(capfd, "info", "dup.vec")
        assert (code, out.splitlines()[1], err) == (0, said, "")
        assert output_of(capfd, "near", "dup.vec", "a")[2] == f"frostline: warning: dup.vec: {said}\n"
    values = json.loads(output_of(capfd, "info", "dup.vec", "--json")[1])
    assert values["duplicates"] == {"total": 1, "conflicting": 1, "first": ["a"]}


def test_the_cache_is_listed_and_cleared(capfd, tmp_path):
    folder = tmp_path / "cache" / "vectors"
    assert output_of(capfd, "cache") == (0, f"0.0 MB in {folder}\n", "")
    output_of(capfd, "info", "v.txt")
    code, out, _ = output_of(capfd, "cache")
    assert (code, out.splitlines()[2].endswith(str(tmp_path / "v.txt"))) == (0, True)
    assert json.loads(output_of(capfd, "cache", "--json")[1])["files"][0]["source"] == str(tmp_path / "v.txt")
    assert output_of(capfd, "cache", "--clear")[1] == f"0.0 MB freed in {folder}\n"
    assert list(folder.iterdir()) == []


def test_cover_says_what_lower_case_would_find(capfd):
    out = output_of(capfd, "cover", "v.txt", "text.txt")[1]
    assert out.splitlines()[-1] == "1 more words in the text have a vector in lower case: --lowercase"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["info", "none.txt"], "frostline: none.txt: cannot be opened: No such file or directory. Check the path."),
        (["info", "text.txt"], "frostline: text.txt:1: no word vectors: expected a word and its numbers on a line"),
        (
            ["convert", "v.txt", "v.npy"],
            "frostline: path: v.npy ends in none of .safetensors (opens in milliseconds), .txt",
        ),
        (["cover", "v.txt", "none.txt"], "frostline: none.txt: No such file or directory. Check the path."),
        (["cover", "v.txt", "latin.txt"], "frostline: latin.txt:2: not UTF-8."),
        (["near", "v.txt", "rain"], "frostline: word: 'rain' is not among the 3 words."),
        (["near", "v.txt", "ice", "--count", "0"], "frostline: count: 0 is below 1."),
        (["near", "v.txt"], "WORD"),
        ([], "action"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(capfd, tmp_path, arguments, says):
    (tmp_path / "latin.txt").write_bytes(b"ice\ncaf\xe9\n")
    code, out, err = output_of(capfd, *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1

"""The labels come from the markup, and no markup is left in the text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import frostline as fl
from frostline.demo import corpus

TOPIC = """\
The "with" statement
********************

The "with" statement wraps a *block*; see the context man-
ager's "__exit__()" method.  It may raise "TypeError".

   with_stmt ::= "with" expression ":" suite

* one item of a list with "None" in it;

* another item, "x.y", of the same list.

   x = "code, not prose, and never read."

"__file__"
   The "__file__" of a module is a path to it.
"""


@pytest.fixture(scope="module")
def topics() -> dict[str, str]:
    return corpus.python_topics()


@pytest.fixture(scope="module")
def parts(topics: dict[str, str]) -> corpus.Parts:
    return corpus.split(topics)


def terms(sentence: corpus.Sentence) -> list[str]:
    found: list[list[str]] = []
    for token, tag in zip(sentence.tokens, sentence.tags, strict=True):
        if tag == "B-code":
            found.append([token])
        elif tag == "I-code":
            found[-1].append(token)
    return ["".join(words) for words in found]


def test_prose_is_kept_and_code_grammar_and_headings_are_left_out() -> None:
    assert list(corpus.paragraphs(TOPIC)) == [
        'The "with" statement wraps a *block*; see the context man-ager\'s "__exit__()" method. '
        'It may raise "TypeError".',
        'one item of a list with "None" in it;',
        'another item, "x.y", of the same list.',
        'The "__file__" of a module is a path to it.',
    ]


def test_every_marked_term_becomes_one_entity() -> None:
    found = [terms(sentence) for sentence in corpus.sentences(TOPIC)]
    assert found == [["with", "__exit__()"], ["TypeError"], ["None"], ["x.y"], ["__file__"]]


def test_the_markup_is_gone_from_the_tokens() -> None:
    tokens = [token for sentence in corpus.sentences(TOPIC) for token in sentence.tokens]
    assert "block" in tokens
    assert not {'"', "*"}.intersection(tokens)


@pytest.mark.parametrize(
    ("text", "plain", "spans"),
    [
        ('"a" and ("b.c").', "a and (b.c).", [(0, 1), (7, 10)]),
        ("a **PEP 3** *x*.", "a PEP 3 x.", []),
        ('"*args" stays.', "*args stays.", [(0, 5)]),
        ("\"{'one': 1}\" is.", "{'one': 1} is.", [(0, 10)]),
    ],
)
def test_markup_is_read(text: str, plain: str, spans: list[tuple[int, int]]) -> None:
    assert corpus.read_markup(text) == (plain, spans)


@pytest.mark.parametrize(
    "text", ['The string ""ss"" is odd.', 'One " alone is not a pair.', 'So are "ExceptionGroup"s.']
)
def test_quotes_that_cannot_be_paired_safely_drop_the_sentence(text: str) -> None:
    assert corpus.read_markup(text) is None
    assert corpus.label(text) is None


def test_markup_does_not_change_the_tokens() -> None:
    marked, plain = corpus.label('call "x.pop(1)" on it'), corpus.label("call x.pop(1) on it")
    assert marked is not None
    assert plain is not None
    assert marked.tokens == plain.tokens
    assert marked.tags != plain.tags


def test_curly_quotes_become_those_of_the_docstrings() -> None:
    sentence = corpus.label("the module’s “name” here")
    assert sentence is not None
    assert sentence.tokens == ("the", "module", "'s", '"', "name", '"', "here")


def test_topics_that_share_a_paragraph_are_a_family() -> None:
    shared = "A paragraph of enough words, in two topics."
    texts = {"a": f"Begin.\n\n{shared}", "b": "Alone here, with enough words too.", "c": shared, "d": "Begin."}
    assert corpus.families(texts) == [["a", "c"], ["b"], ["d"]]


def test_no_sentence_is_in_two_parts_or_twice_in_one(parts: corpus.Parts) -> None:
    tokens = [sentence.tokens for part in parts for sentence in part]
    assert len(tokens) == len(set(tokens))
    assert all(parts)


def test_a_family_is_never_divided(topics: dict[str, str], parts: corpus.Parts) -> None:
    part_of = {sentence.tokens: index for index, part in enumerate(parts) for sentence in part}
    parts_of_family, first_at = [], {}
    for family, names in enumerate(corpus.families(topics)):
        own = {s.tokens for name in names for s in corpus.sentences(topics[name])}
        new = {tokens for tokens in own if first_at.setdefault(tokens, family) == family}
        parts_of_family.append({part_of[tokens] for tokens in new})
    assert max(len(found) for found in parts_of_family) == 1
    assert set().union(*parts_of_family) == {0, 1, 2}


def test_python_s_own_topics_hold_thousands_of_sentences_and_marked_terms(parts: corpus.Parts) -> None:
    everything = [sentence for part in parts for sentence in part]
    assert len(everything) > 2000
    assert sum(len(terms(sentence)) for sentence in everything) > 1500
    assert "None" in {term for sentence in everything for term in terms(sentence)}


def test_most_marked_terms_of_the_prose_are_recovered(topics: dict[str, str]) -> None:
    marks = sum(text.count('"') // 2 for topic in topics.values() for text in corpus.paragraphs(topic))
    found = sum(len(terms(sentence)) for topic in topics.values() for sentence in corpus.sentences(topic))
    assert 0.9 * marks < found <= marks


def test_the_split_is_the_same_every_time(topics: dict[str, str], parts: corpus.Parts) -> None:
    assert corpus.split(dict(reversed(topics.items()))) == parts


def test_docstrings_are_read_and_code_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_it.py").write_text('"""A test."""', encoding="utf-8")
    (tmp_path / "it.py").write_text('"""Module."""\nclass A:\n    "Class."\n1 / 0\n', encoding="utf-8")
    (tmp_path / "bad.py").write_text("def (", encoding="utf-8")
    assert corpus.library_docstrings(tmp_path) == ["Module.", "Class."]


def test_a_library_without_source_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(fl.DataFileError, match=r"no docstring in any \.py file") as refused:
        corpus.library_docstrings(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_a_python_without_its_topics_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(fl.DataFileError, match=r"pydoc_data\.topics: not part of the Python at "):
        corpus.python_topics()

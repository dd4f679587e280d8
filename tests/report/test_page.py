"""The page is one file, shows what is there, names what is missing, and escapes every word."""

import html
import json
import re
import sys
from html.parser import HTMLParser

import pytest
import torch

import frostline as fl
from frostline.record import RowChanges, describe_run
from frostline.report import write_page

pytest.importorskip("plotly", reason="the page's charts need plotly, of the extra report")


def own(path):
    """Return the page without plotly's script."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"<script>/\*\*.*?</script>", "", text, flags=re.S)


def words_of(path):
    main = own(path).split("<main>")[1].split("</main>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", main)).split())


class Tags(HTMLParser):
    """Collects tags and links, and asserts that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def written(recorded, tmp_path):
    return write_page(recorded, tmp_path / "page.html")


def test_the_page_is_one_file_that_asks_for_no_other(written):
    text = own(written)
    tags = Tags(text)
    assert tags.open == []
    assert tags.links == ["data:,"]
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert "@import" not in text
    assert [path.name for path in written.parent.iterdir()] == ["page.html"]


def test_words_and_titles_of_the_run_are_escaped(written):
    tags = Tags(own(written))
    assert tags.seen.count("script") == 2  # the data of the charts and what draws them; plotly is left out here
    assert "Some <words> & a bias" in words_of(written)
    assert "<seed> <i>0 & 1</i>" in words_of(written)
    text = re.search(r'id="figures">(.*?)</script>', own(written), re.S)[1]
    assert "<" not in text
    data = json.loads(text)
    assert "<extra></extra>" in data["chart2"]["data"][0]["hovertemplate"]
    ticks = data["chart2"]["layout"]["yaxis"]["ticktext"]
    assert "&lt;script&gt;alert(1)&lt;/scrip…" in ticks
    assert not [tick for tick in ticks if "<" in tick]


def test_the_key_figures_come_first_then_the_sections(written):
    text = words_of(written)
    positions = [
        text.index(part) for part in ("of the model learns", "What learns", "Curves", "How far rows moved", "Audit")
    ]
    assert positions == sorted(positions)
    assert "25.7 % of the model learns: 54 of 210 parameters" in text


def test_each_missing_file_is_named_in_one_line(tmp_path):
    describe_run(tmp_path, title="Nothing but a title")
    text = words_of(write_page(tmp_path, tmp_path / "page.html"))
    assert "Nothing but a title" in text
    for says in ("No plan.json and no explanation.json here", "No curves here", "No rows here", "No audit.json here"):
        assert says in text


@pytest.mark.parametrize("run", ["recorded", "trained", "explained"])
def test_every_run_folder_has_a_page_with_its_charts(run, request, tmp_path):
    page = write_page(request.getfixturevalue(run), tmp_path / "page.html")
    text = own(page)
    elements = re.findall(r'class="chart" id="(.*?)"', text)
    data = json.loads(re.search(r'id="figures">(.*?)</script>', text, re.S)[1])
    assert list(data) == elements
    assert len(elements) >= 4
    assert "No curves here" not in text


def test_an_explanation_is_coloured_and_alarms_are_counted(explained, tmp_path):
    text = own(write_page(explained, tmp_path / "page.html"))
    assert '<div class="bad"><b>1</b><span>tensors with an alarm</span></div>' in text
    assert '<div class="bad"><b>2 of 30</b>' in text
    assert "<code>model.py:31</code>" in text
    assert "detach &lt;here&gt;" in text


def test_a_cut_that_explain_finds_is_on_the_page_with_its_line(tmp_path):
    layers = torch.nn.ModuleDict({"first": torch.nn.Linear(2, 2), "second": torch.nn.Linear(2, 1)})

    def loss():
        return layers["second"](layers["first"](torch.ones(3, 2)).detach()).sum()

    line = loss.__code__.co_firstlineno + 1
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    describe_run(tmp_path, explanation=fl.explain(layers, loss, optimizer))
    page = write_page(tmp_path, tmp_path / "page.html")
    assert f"test_page.py:{line}</code>" in own(page)
    assert "2 tensors with an alarm" in words_of(page)
    assert "2 cut 2 learns" in words_of(page)


def test_a_trained_tagger_shows_that_no_frozen_value_moved(trained, tmp_path):
    text = words_of(write_page(trained, tmp_path / "page.html"))
    assert "0 of 30 frozen values moved, bit by bit" in text  # 4 known words and the padding row, 6 values each
    assert "learns in part" in text
    assert "sentences 4" in text


def test_the_same_folder_gives_the_same_page(recorded, tmp_path):
    first, second = (write_page(recorded, tmp_path / f"{n}.html").read_bytes() for n in (1, 2))
    assert first == second


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_a_run_is_one_line(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(fl.RunFolderError) as caught:
        write_page(tmp_path / name, tmp_path / "page.html")
    assert str(caught.value).startswith(f"{tmp_path / name}: no")
    assert "Name " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written_is_one_line_and_leaves_nothing(recorded, tmp_path):
    with pytest.raises(fl.RunFolderError, match=r"cannot be written: .*-o"):
        write_page(recorded, tmp_path / "no" / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_without_plotly_one_line_says_what_to_install(recorded, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(fl.MissingExtraError, match=r"pip install 'frostline\[report\]'"):
        write_page(recorded, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_rows_of_which_none_moved_have_no_map(tmp_path):
    with fl.Recorder(tmp_path / "run", {"rows": (torch.ones(3, 2), [0, 1])}) as recorder:
        recorder()
        recorder()
    text = words_of(write_page(tmp_path / "run", tmp_path / "page.html"))
    assert "How far rows moved" in text
    assert "Where they moved" not in text


def test_a_run_of_a_recorder_alone_has_the_name_of_its_folder(tmp_path):
    with fl.Recorder(tmp_path / "first", {"weight": torch.zeros(3)}) as recorder:
        recorder(loss=1.0)
    text = words_of(write_page(tmp_path / "first", tmp_path / "page.html"))
    assert "The run in first" in text
    assert "Recorded tensors" in text


def test_a_tagger_shows_what_it_finds_by_type_and_its_commonest_errors(tmp_path):
    scores = {
        "text": "dev <1>",
        "types": {"<i>town": {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "gold": 4, "found": 2}},
        "all": {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "gold": 4, "found": 2},
        "errors": [[3, "missed <i>town: 'Oz'"]],
    }
    describe_run(tmp_path / "run", title="t", scores=scores)
    text = write_page(tmp_path / "run", tmp_path / "page.html").read_text("utf-8")
    assert "<td>&lt;i&gt;town</td><td>50.0%</td><td>25.0%</td><td>33.3%</td><td>4</td><td>2</td>" in text
    assert "<td>3</td><td>missed &lt;i&gt;town: &#x27;Oz&#x27;</td>" in text
    assert "<b>33.3 %</b><span>F1 in dev &lt;1&gt;</span>" in text
    with pytest.raises(ValueError, match="scores: does not hold"):
        describe_run(tmp_path / "run", scores=scores | {"all": {}})


def test_a_map_that_would_be_a_tangle_is_one_line(tmp_path):
    words = [f"w{row}" for row in range(20)]
    for name, after in {
        "tangle": torch.eye(20),
        "plane": torch.eye(20)[:, :2].repeat(1, 10) * torch.arange(20)[:, None],
    }.items():
        changes = RowChanges.from_tables(words, torch.zeros(20, 20), after, torch.arange(20))
        describe_run(tmp_path / name, row_changes=changes)
        text = write_page(tmp_path / name, tmp_path / "page.html").read_text("utf-8")
        assert ("the two main directions hold 10% of how rows moved" in text) == (name == "tangle")
        assert ("A ring is a row before training" in text) == (name == "plane")

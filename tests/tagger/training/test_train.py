"""Training moves what the plan says, keeps every other bit, and learns."""

from __future__ import annotations

import dataclasses
import re
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch

import frostline as fl
from frostline import tagger


def _train(toy: Any, **changes: Any) -> tagger.TrainingRun:
    given = {"epochs": 3, "config": toy.config} | changes
    return tagger.train(given.pop("train", toy.train), given.pop("dev", toy.dev), toy.vectors, **given)


@pytest.fixture(scope="module")
def run(toy: Any) -> tagger.TrainingRun:
    return _train(toy, epochs=6)


def _bits(table: torch.Tensor) -> torch.Tensor:
    return table.contiguous().view(torch.int32)


def test_missing_words_and_unknown_learn_and_every_other_row_keeps_every_bit(run: tagger.TrainingRun) -> None:
    missing = run.tagger.vocabulary.missing
    assert missing == 10
    end = run.tagger.model.embed.weight.detach().clone()
    same = (_bits(end) == _bits(run.initial_table.to_tensor())).all(dim=1)
    assert same[0]
    assert not same[1 : 2 + missing].any()
    assert same[2 + missing :].all()
    assert run.audit == tagger.Audit(
        frozen_compared=(len(same) - 1 - missing) * 8, frozen_moved=0, learned_rows=11, learned_rows_moved=11
    )


def test_words_that_training_never_saw_are_tagged_by_their_pretrained_vectors(run: tagger.TrainingRun) -> None:
    assert run.best.dev_f1 > 0.9
    assert run.tagger.predict([["Person3", "sees", "place4"]]) == [["B-person", "O", "B-place"]]


def test_nothing_of_the_table_learns_under_none_and_the_rest_of_the_network_does(toy: Any) -> None:
    run = _train(toy, learn="none")
    assert torch.equal(_bits(run.tagger.model.embed.weight.detach()), _bits(run.initial_table.to_tensor()))
    assert (run.audit.frozen_compared, run.audit.learned_rows) == (run.initial_table.to_tensor().numel(), 0)
    assert run.history[-1].loss < 0.7 * run.history[0].loss


def test_pretrained_rows_move_under_all_and_padding_stays_zero(toy: Any) -> None:
    run = _train(toy, learn="all")
    end = run.tagger.model.embed.weight.detach()
    assert (end != run.initial_table.to_tensor())[1:].any(dim=1).all()
    assert (end[0] == 0).all()
    assert run.audit.learned_rows == run.audit.learned_rows_moved == len(end) - 1


@pytest.mark.parametrize("learn", ["missing", "none", "all"])
def test_what_learns_is_what_the_plan_hands_to_the_optimizer(toy: Any, learn: Any) -> None:
    run = _train(toy, learn=learn, epochs=1)
    learning = [parameter for parameter in run.tagger.model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in run.plan.parameters()} == {id(parameter) for parameter in learning}
    of_the_network = sum(
        weight.numel() for name, weight in run.tagger.model.named_parameters() if not name.startswith("embed.")
    )
    of_the_table = {"missing": 11 * 8, "none": 0, "all": run.initial_table.to_tensor().numel()}[learn]
    assert sum(parameter.numel() for parameter in learning) == of_the_network + of_the_table


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(toy: Any) -> None:
    first, again, other = (_train(toy, seed=seed, epochs=2).tagger.model.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.linear.weight"], other["head.linear.weight"])


def test_the_global_random_generator_is_left_as_it_was(toy: Any) -> None:
    before = torch.get_rng_state()
    _train(toy, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_returned_tagger_is_that_of_the_best_epoch(toy: Any) -> None:
    config = dataclasses.replace(toy.config, learning_rate=0.3, max_grad_norm=100.0)  # so that later epochs get worse
    run = _train(toy, epochs=5, config=config)
    assert run.best.dev_f1 == max(epoch.dev_f1 for epoch in run.history)
    assert run.best.loss == min(epoch.loss for epoch in run.history if epoch.dev_f1 == run.best.dev_f1)
    assert run.tagger.evaluate(toy.dev).f1 == run.best.dev_f1
    assert run.best is not run.history[-1]


def test_a_callback_gets_the_plan_every_token_and_every_epoch(toy: Any) -> None:
    class Notes(tagger.Callback):
        def __init__(self) -> None:
            self.started: list[str] = []
            self.tokens = 0
            self.epochs: list[tagger.Epoch] = []

        def start(self, plan: fl.Plan, coverage: tagger.Coverage) -> None:
            self.started.append(str(coverage))

        def batch(self, tokens: int) -> None:
            self.tokens += tokens

        def epoch(self, epoch: tagger.Epoch) -> None:
            self.epochs.append(epoch)

    notes = Notes()
    run = _train(toy, epochs=2, callback=notes)
    assert notes.started == [str(run.coverage)]
    assert notes.tokens == 2 * sum(len(tokens) for tokens, _ in toy.train)
    assert notes.epochs == run.history
    assert [epoch.number for epoch in run.history] == [1, 2]


def test_plain_pairs_empty_sentences_and_tags_that_only_dev_has_are_fine(toy: Any) -> None:
    pairs = [(list(tokens), list(tags)) for tokens, tags in toy.train]
    run = _train(toy, train=[([], []), *pairs], dev=[*toy.dev, (["x"], ["B-new"]), ([], [])], epochs=1)
    same = _train(toy, dev=[*toy.dev, (["x"], ["B-new"])], epochs=1)
    assert run.history[0].dev_f1 == same.history[0].dev_f1
    assert "B-new" not in run.tagger.tags
    assert run.tagger.evaluate(toy.dev) == same.tagger.evaluate(toy.dev)


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"epochs": 0}, ValueError, "epochs: 0 is out of range. Pass 1 or more."),
        ({"seed": -1}, ValueError, "seed: -1 is out of range. Pass 0 to 2**63 - 1."),
        ({"seed": 2**63}, ValueError, "seed: 9223372036854775808 is out of range."),
        ({"learn": "rows"}, ValueError, "learn: expected one of 'missing', 'none', 'all', got 'rows'"),
        ({"train": []}, fl.DataFileError, "train: no sentence with a token"),
        ({"auxiliary": [[(["a"], ["O"])], []]}, fl.DataFileError, "auxiliary[1]: no sentence with a token"),
        ({"dev": [([], [])]}, fl.DataFileError, "dev: no sentence with a token"),
        ({"train": [(["a"], ["O", "O"])]}, ValueError, "train: sentence 0 has 1 tokens and 2 tags"),
        ({"train": [(["a"], ["S-place"])]}, ValueError, "train: the tag 'S-place'. Pass O, B-type and I-type"),
        ({"dev": [(["a"], ["place"])]}, ValueError, "dev: the tag 'place'. Pass O, B-type and I-type"),
        (
            {"train": [(["нет", "слов"], ["O", "O"])]},
            fl.VectorFileError,
            "none of the 2 training words is among",
        ),
    ],
)
def test_bad_arguments_are_named(toy: Any, changes: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=re.escape(says)):
        _train(toy, **changes)


def test_an_entity_that_begins_with_i_is_learned_as_if_it_began_with_b(toy: Any) -> None:
    sloppy = [(tokens, [tag.replace("B-", "I-") for tag in tags]) for tokens, tags in toy.train]
    assert [tags for _, tags in sloppy] != [list(tags) for _, tags in toy.train]
    corrected, clean = (_train(toy, train=train, epochs=1).tagger for train in (sloppy, toy.train))
    assert corrected.tags == clean.tags == ["O", "B-person", "B-place", "I-person"]
    assert torch.equal(corrected.model.head.linear.weight, clean.model.head.linear.weight)


def test_without_an_average_the_weights_kept_are_those_of_the_last_step(toy: Any) -> None:
    config = dataclasses.replace(toy.config, ema_decay=0.0)
    last, mean = (_train(toy, epochs=1, config=o).tagger.model.head.linear.weight for o in (config, toy.config))
    assert not torch.equal(last, mean)


def test_an_auxiliary_corpus_teaches_the_network_its_words_and_leaves_none_of_its_tags(toy: Any) -> None:
    few = toy.train[:3]
    other = [
        (tokens, [tag.replace("person", "who").replace("place", "where") for tag in tags]) for tokens, tags in toy.train
    ]
    alone, both = _train(toy, train=few, epochs=4), _train(toy, train=few, auxiliary=[other], epochs=4)
    assert alone.best.dev_f1 < both.best.dev_f1
    assert both.tagger.tags == alone.tagger.tags
    assert both.tagger.model.state_dict().keys() == alone.tagger.model.state_dict().keys()
    assert both.coverage.words > alone.coverage.words
    assert both.history[0].tokens == sum(len(tokens) for tokens, _ in [*few, *other])
    assert both.audit.frozen_moved == 0
    assert both.audit.learned_rows_moved == both.audit.learned_rows == 11


def test_an_auxiliary_corpus_has_a_head_of_its_own(toy: Any) -> None:
    """Its tags contradict those of the main corpus, which a shared head would not learn."""
    swap = {"B-person": "B-place", "I-person": "I-place", "B-place": "B-person"}
    contrary = 2 * [(tokens, [swap.get(tag, tag) for tag in tags]) for tokens, tags in toy.train]
    assert _train(toy, auxiliary=[contrary], epochs=4).best.dev_f1 > 0.9
    assert _train(toy, train=[*toy.train, *contrary], epochs=4).best.dev_f1 < 0.8


def test_the_first_epoch_reads_all_of_an_auxiliary_corpus_each_next_one_less_and_the_last_none(toy: Any) -> None:
    train, other = ([(["Person20", "sees", "place20"], ["B-person", "O", tag])] * 40 for tag in ("B-place", "O"))
    alone, both = _train(toy, train=train, epochs=5), _train(toy, train=train, auxiliary=[other], epochs=5)
    assert [epoch.tokens for epoch in alone.history] == [120] * 5
    assert [epoch.tokens for epoch in both.history] == [240, 216, 168, 144, 120]  # 5, 4, 2, 1, 0 batches of 8
    assert [epoch.tokens for epoch in _train(toy, train=train, auxiliary=[other], epochs=1).history] == [240]


def test_the_learning_rate_falls_linearly_to_a_tenth_also_with_an_auxiliary_corpus(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)))
    _train(toy, auxiliary=[toy.train[:50]], epochs=4)
    assert len(rates) == 4 * 25 + (7 + 5 + 2 + 0)  # 200 and 50 sentences in batches of 8
    falls = [(before - after) / toy.config.learning_rate for before, after in pairwise(rates)]
    assert falls == pytest.approx([0.9 / len(rates)] * len(falls))
    assert rates[0] == toy.config.learning_rate


def test_training_and_prediction_use_one_thread_and_leave_the_setting_as_it_was(toy: Any) -> None:
    class Notes(tagger.Callback):
        seen: ClassVar[list[int]] = []

        def batch(self, tokens: int) -> None:
            self.seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run = _train(toy, epochs=1, callback=Notes())
        run.tagger.predict([["Person3"]])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(Notes.seen) == {1}


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_training_called_under_no_grad_learns_the_same(toy: Any, without: Any) -> None:
    outside = _train(toy, epochs=1)
    with without():
        inside = _train(toy, epochs=1)
    weights = inside.tagger.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in outside.tagger.model.state_dict().items())
    assert inside.audit.learned_rows_moved > 1


def test_a_loss_of_nan_ends_the_training_at_its_step(toy: Any) -> None:
    config = dataclasses.replace(toy.config, learning_rate=1e38)
    with pytest.raises(fl.FrostlineError, match=r"train: the loss is nan in step \d+ of 75\. .* below 1e\+38\."):
        _train(toy, config=config)


def test_text_without_any_entity_is_learned_as_such(toy: Any) -> None:
    plain = [(tokens, ["O"] * len(tokens)) for tokens, _ in toy.train]
    run = _train(toy, train=plain, epochs=1)
    assert run.tagger.tags == ["O"]
    assert run.tagger.predict([["Person3", "sees"]]) == [["O", "O"]]


def test_o_bias_is_subtracted_from_the_logit_of_o_once_and_changes_nothing_else(toy: Any) -> None:
    runs = [_train(toy, epochs=1, config=dataclasses.replace(toy.config, o_bias=o_bias)) for o_bias in (0.0, 2.0)]
    plain, biased = (run.tagger.model.state_dict() for run in runs)
    bias = plain["head.linear.bias"].clone()
    bias[0] -= 2.0
    assert torch.equal(biased.pop("head.linear.bias"), bias)
    assert all(torch.equal(biased[name], plain[name]) for name in biased)
    assert runs[0].history[0].loss == runs[1].history[0].loss
    assert runs[1].best.dev_f1 == runs[1].tagger.evaluate(toy.dev).f1

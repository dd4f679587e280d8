"""`frostline attack MODEL [FILE]`: exchange words of sentences so that a model errs, and count what that costs it."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.cli.explain.function import load_function
from frostline.cli.tagger.options import add_columns, add_device, at_least, columns, device, use_utf8_stdout
from frostline.errors import DataFileError, FrostlineError
from frostline.files import standard_input

if TYPE_CHECKING:
    from frostline.adversarial.attack import Attacked, Prediction, Summary, Victim

HELP = "exchange words of sentences so that a model errs, and count what that costs it"

_EXAMPLES = """\
examples:
  frostline attack model dev.conll --columns
  echo "Ada Lovelace lived in London." | frostline attack model
  frostline attack model dev.conll --columns --max-swaps 1 --json > attacked.jsonl
  frostline attack classifier.py:make reviews.tsv --labels

MODEL is a folder that `frostline tagger train` wrote, or a function that takes nothing and returns model, loss and
vocabulary, and perhaps the names of the classes (examples/attack_classifier.py is one to start from):
  model(ids)             int64 (N, T) -> scores, (N, K) for a class of each sentence or (N, T, K) of each token
  loss(scores, classes)  a loss a row, (N,); classes are -100 at padding
  vocabulary             word -> id, with <pad> and <unk>
FILE is text, one sentence a line (default: stdin); with --columns one token a line, its gold tag last; with --labels a
class, a TAB and the sentence. Without gold the attack is on the first prediction. Entities, numbers and signs stay; a
word is exchanged for one of the 50 nearest in the table. Nothing is drawn, so the same text gives the same attack.
--json: an object a sentence (before, after, swaps, predicted_before, predicted_after, gold, loss_before, loss_after,
passes, success), then one with the summary (success, accuracy, f1, words_changed, passes, sentences_per_second, ...):
success is the share of sentences predicted right before that are wrong after; the rest is after the attack."""
_REPORTED_EVERY = 5.0  # seconds, in a pipe


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    parser.add_argument("model", metavar="MODEL", help="a tagger's folder, or package.module:make or file.py:make")
    parser.add_argument("file", metavar="FILE", nargs="?", help="UTF-8 text, one sentence a line (default: stdin)")
    gold = parser.add_mutually_exclusive_group()
    gold.add_argument("--columns", action="store_true", help="FILE is CoNLL columns with gold tags")
    gold.add_argument("--labels", action="store_true", help="each line is a class, a TAB and the sentence")
    parser.add_argument("--max-swaps", metavar="N", type=at_least(1), default=2, help="words exchanged (default 2)")
    parser.add_argument(
        "--k", metavar="N", type=at_least(1), default=4, help="replacements tried exactly for each swap (default 4)"
    )
    parser.add_argument(
        "--beam", metavar="N", type=at_least(1), default=2, help="of which so many go on to the next (default 2)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines: each sentence, then the summary")
    add_device(parser)
    add_columns(parser)


def run(args: argparse.Namespace) -> int:
    """Attack and print."""
    from frostline.adversarial.attack import Summary, attack

    use_utf8_stdout()
    victim = _victim(args)
    sentences = list(_sentences(args))
    if not sentences:
        raise DataFileError(f"{args.file or 'stdin'}: no sentence in it.")
    summary, done = Summary(), []
    options: dict[str, Any] = {"max_swaps": args.max_swaps, "k": args.k, "beam": args.beam, "summary": summary}
    with _one_thread(), _progress(len(sentences)) as advance:
        for sentence in attack(victim, sentences, **options):
            print(json.dumps(sentence.to_dict(), ensure_ascii=False) if args.json else _shown(sentence), flush=True)
            done.append(sentence)
            advance()
    figures = summary.to_dict() | _f1(done)
    print(json.dumps(figures) if args.json else _summary(figures, summary))
    return 0


def _victim(args: argparse.Namespace) -> Victim:
    if ":" in args.model and not Path(args.model).exists():
        from frostline.adversarial.classifier import Classifier

        search_path = [*sys.path]
        sys.path.insert(0, str(Path.cwd()))
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what the user's code prints must not get into --json
                made = load_function(args.model)()
        finally:
            sys.path[:] = search_path
        if not isinstance(made, tuple) or len(made) not in (3, 4):
            raise FrostlineError(f"{args.model}: it must return model, loss and vocabulary, and perhaps class names.")
        made[0].to(device(args))
        return Classifier(*made)
    from frostline.tagger import Tagger
    from frostline.tagger.attack import TaggerVictim

    loaded = Tagger.load(args.model)
    loaded.model.to(device(args))
    return TaggerVictim(loaded)


def _sentences(args: argparse.Namespace) -> Iterator[tuple[Sequence[str], Prediction | None]]:
    """Yield tokens, and what is right, of each sentence; empty lines of text are left out."""
    from frostline.tagger import read_conll, tokenize
    from frostline.tagger.data.conll import decode_lines

    if args.columns:
        if args.file is None:
            raise FrostlineError("--columns needs a FILE.")
        yield from ((list(tokens), list(tags)) for tokens, tags in read_conll(args.file, columns(args)))
        return
    with contextlib.ExitStack() as stack:
        file = standard_input() if args.file is None else stack.enter_context(Path(args.file).open("rb"))
        for number, line in enumerate(decode_lines(file, args.file or "stdin"), start=1):
            if not line.strip():
                continue
            label, tab, text = line.partition("\t") if args.labels else (None, "\t", line)
            if not tab:
                raise DataFileError(f"{args.file or 'stdin'}:{number}: no TAB after the class.")
            yield [token.text for token in tokenize(text)], label


def _shown(sentence: Attacked) -> str:
    """Return a sentence before and after: changed words in brackets, what was predicted, and what it cost."""
    changed = {position for position, _, _ in sentence.swaps}
    lines = []
    for name, tokens, predicted in (
        ("before", sentence.before, sentence.predicted_before),
        ("after", sentence.after, sentence.predicted_after),
    ):
        words = [f"[{token}]" if index in changed else token for index, token in enumerate(tokens)]
        lines += [f"{name:<7}{' '.join(words)}", f"       {_prediction(tokens, predicted)}"]
    outcome = "wrong after" if sentence.success else "still right" if sentence.target else "empty"
    if not sentence.success and list(sentence.target) != _tags(sentence.predicted_before):
        outcome = "wrong before"
    cost = f"{len(changed)} of {len(sentence.before)} words, loss {sentence.loss_before:.2f} -> "
    return "\n".join([*lines, f"cost   {cost}{sentence.loss_after:.2f}, {sentence.passes} passes: {outcome}", ""])


def _tags(predicted: Prediction) -> list[str]:
    return [predicted] if isinstance(predicted, str) else list(predicted)


def _prediction(tokens: Sequence[str], predicted: Prediction) -> str:
    if isinstance(predicted, str):
        return predicted
    from frostline.tagger import spans

    found = [f"{' '.join(tokens[start:end])}/{kind}" for kind, start, end in spans(predicted)]
    return ", ".join(found) or "no entity"


def _f1(done: Iterable[Attacked]) -> dict[str, float]:
    """Return entity F1 before and after, if the predictions are tags."""
    from frostline.tagger import score

    tagged = [sentence for sentence in done if not isinstance(sentence.predicted_before, str)]
    if not tagged:
        return {}
    gold = [sentence.target for sentence in tagged]
    before, after = ([_tags(getattr(s, f"predicted_{when}")) for s in tagged] for when in ("before", "after"))
    return {"f1_before": score(gold, before).f1, "f1": score(gold, after).f1}


def _summary(figures: dict[str, float], summary: Summary) -> str:
    from frostline.printing import text_table

    rows = [("", "before", "after")]
    for name, key in (("accuracy", "accuracy"), ("entity F1", "f1")):
        if key in figures:
            rows.append((name, f"{figures[f'{key}_before']:.1%}", f"{figures[key]:.1%}"))
    return (
        f"{summary.sentences:,} sentences, {summary.right:,} of them predicted right before: "
        f"{figures['success']:.1%} of these are wrong after\n{text_table(rows, right=[1, 2])}\n"
        f"{figures['words_changed']:.1%} of the words changed; {figures['passes']:.1f} passes for a sentence, "
        f"{figures['sentences_per_second']:.0f} sentences a second"
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    from frostline.tagger.tagger import one_thread

    with one_thread():
        yield


@contextlib.contextmanager
def _progress(sentences: int) -> Iterator[Any]:
    """Yield a function to call after each sentence: a bar on stderr if that is a terminal, else a line now and then."""
    began = shown = time.perf_counter()
    done = 0
    bar = None
    if sys.stderr.isatty() and not sys.stdout.isatty():  # on a terminal the sentences themselves show progress
        with contextlib.suppress(ImportError):
            from rich import console, progress

            bar = progress.Progress(console=console.Console(stderr=True), transient=True)
            bar.start()
            bar.add_task("attacking", total=sentences)

    def advance() -> None:
        nonlocal done, shown
        done += 1
        now = time.perf_counter()
        if bar is not None:
            bar.advance(bar.task_ids[0])
        elif now - shown > _REPORTED_EVERY and not sys.stdout.isatty():
            rate = done / (now - began)
            print(
                f"{done:,} of {sentences:,} sentences, {rate:.0f} a second, {(sentences - done) / rate:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
            shown = now

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()

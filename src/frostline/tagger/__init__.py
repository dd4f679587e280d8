"""Find entities in text: a bidirectional LSTM over pretrained word vectors of which only chosen rows learn.

From files, on the command line: `frostline tagger train | evaluate | predict | score`. From Python:

    from frostline import tagger

    sentences = tagger.read_conll("train.conll")        # list of Sentence(tokens, tags); plain pairs will do
                                                        # (tagger.Columns(token=1, tag=-1, separator=None,
                                                        #   comments=None) says where a file keeps them)
    run = tagger.train(
        sentences, dev_sentences, vectors,              # vectors: fl.vectors.load(...) or Vectors(words, matrix)
        also=[more_sentences],                          # corpora with tag sets of their own, to learn from as well
        learn="missing",                                # which rows of the table learn: "missing", "none" or "all"
        epochs=16, seed=0,
        options=tagger.Options(hidden=64),              # sizes and rates, all with defaults; tagger.ORIGINAL: the
                                                        #   form of the TensorFlow tagger this one comes from
        watch=None,                                     # a tagger.Watcher: its start(plan, coverage), batch(tokens),
                                                        #   epoch(Epoch) and resumed(history, tokens) are called; a
                                                        #   subclass may define any; tagger.Progress prints them
        patience=None,                                  # stop after so many epochs without a better F1 on dev
        checkpoint="file", every=30.0, resume=False,    # keep the state of training there; go on from it, bit for bit
        together=False,                                 # with the other processes of torch.distributed's group
        device="cpu", bf16=False,                       # where to compute, and whether matrices multiply in bfloat16
    )                                                   # -> TrainingRun
    run.plan                                            # what learns: the printable plan
    run.history                                         # list of Epoch(number, loss, dev_f1, seconds, tokens)
    run.best                                            # the Epoch whose weights were kept: the best dev F1
    tagger.look_up(tokens, vectors.words)               # Lookups: how tokens of any text find their vectors
    run.coverage                                        # Coverage: which training words the vectors have
    run.audit                                           # Audit: frozen_compared, frozen_moved, learned_rows,
                                                        #   learned_rows_moved (compared bit by bit with the start)
    run.start                                           # the table before training, shape (2 + words, D), a copy
                                                        #   made when asked for; run.before.rows(ids): some of its rows
    run.tagger                                          # Tagger

    run.tagger.predict([["Ada", "lives", "here"]])      # [["B-person", "O", "O"]]
    tokens = tagger.tokenize("Ada lives here")          # list of Token(text, start, end)
    tags = run.tagger.predict([[token.text for token in tokens]])[0]
    tagger.Tagged("Ada lives here", tokens, tags)       # .entities, with places in the text; .to_dict(),
                                                        #   .colored(types)
    run.tagger.evaluate(dev_sentences)                  # Score: precision, recall, f1 (fractions), per_type
    found = tagger.analyse(texts, gold, predicted)      # of many sentences each -> Errors: .kinds, .confusion,
                                                        #   .frequent(20), .longest(20)
    tagger.draw_confusion(found, "confusion.png")
    tagger.surface_score(texts, gold, predicted)        # Score of the set of (type, text)
    tagger.score_file("output.conll")                   # Score of any system's output, as conlleval counts
    run.tagger.save("folder"); tagger.Tagger.load("folder")
    tagger.leave("folder", run, title=..., facts={})    # plan, curves, audit and movement, for `frostline report`
    run.tagger.model.embed.weight                       # the table, (2 + words, D); .detach().clone() joins it
    run.tagger.vocabulary.words                         # word of row 2, 3, ...: first the missing words (they learn
                                                        #   under "missing", like row 1, <unk>), then those of `vectors`
    run.tagger.vocabulary.missing                       # how many missing words: rows 1 .. 1 + missing learn
    run.tagger.vocabulary.row("word")                   # its row; lower case as a fallback; 1 (<unk>) when unknown
"""

from __future__ import annotations

from frostline.tagger.config import ORIGINAL, Options
from frostline.tagger.data.conll import Columns, Sentence
from frostline.tagger.data.conll import read as read_conll
from frostline.tagger.data.tagged_text import Entity, Tagged
from frostline.tagger.data.tags import Span, spans
from frostline.tagger.data.tokenizer import Token, split, tokenize
from frostline.tagger.data.vocabulary import Coverage, Lookups, Vocabulary, look_up
from frostline.tagger.network.model import LSTMTagger
from frostline.tagger.saved import CHECKPOINT, check_free
from frostline.tagger.scoring.confusion import draw_confusion
from frostline.tagger.scoring.error_analysis import Errors, Pair, analyse, surface_score, unknown_types
from frostline.tagger.scoring.score_file import score_file
from frostline.tagger.scoring.scores import Score, score
from frostline.tagger.tagger import Tagger
from frostline.tagger.training.callbacks import Epoch, Progress, Watcher
from frostline.tagger.training.initial_table import Audit
from frostline.tagger.training.run_folder import leave
from frostline.tagger.training.train import TrainingRun, train

__all__ = [
    "CHECKPOINT",
    "ORIGINAL",
    "Audit",
    "Columns",
    "Coverage",
    "Entity",
    "Epoch",
    "Errors",
    "LSTMTagger",
    "Lookups",
    "Options",
    "Pair",
    "Progress",
    "Score",
    "Sentence",
    "Span",
    "Tagged",
    "Tagger",
    "Token",
    "TrainingRun",
    "Vocabulary",
    "Watcher",
    "analyse",
    "check_free",
    "draw_confusion",
    "leave",
    "look_up",
    "read_conll",
    "score",
    "score_file",
    "spans",
    "split",
    "surface_score",
    "tokenize",
    "train",
    "unknown_types",
]

"""Find entities in text: a bidirectional LSTM over pretrained word vectors of which only chosen rows learn.

    from frostline import tagger, vectors

    sentences, dev = tagger.read_conll("train.conll"), tagger.read_conll("dev.conll")
    run = tagger.train(sentences, dev, vectors.load("glove.6B.50d.txt.gz"), learn="missing")
    print(run.plan, run.audit, run.dev_score)         # what learned, what moved, how well it does
    run.tagger.predict([["Ada", "lives", "here"]])    # [["B-person", "O", "O"]]
    run.tagger.save("folder")                         # tagger.Tagger.load("folder")

Training is set up by a `TaggerConfig`, watched by a `Callback`, and scored by `score`, `score_file` and `analyse`. On
the command line: `frostline tagger train | evaluate | predict | score`. docs/tagger.md is the manual.
"""

from __future__ import annotations

from frostline.tagger.config import ORIGINAL, TaggerConfig
from frostline.tagger.data.columns import CONLLU, Columns
from frostline.tagger.data.conll import Sentence, read_conll
from frostline.tagger.data.tagged_text import Entity, Tagged
from frostline.tagger.data.tags import Span, spans
from frostline.tagger.data.tokenizer import Token, tokenize
from frostline.tagger.data.vocabulary import Vocabulary
from frostline.tagger.network.model import LSTMTagger
from frostline.tagger.scoring.error_analysis import Errors, analyse, surface_score
from frostline.tagger.scoring.score_file import score_file
from frostline.tagger.scoring.scores import Score, score
from frostline.tagger.tagger import Tagger
from frostline.tagger.training.callbacks import Callback, Epoch
from frostline.tagger.training.initial_table import Audit
from frostline.tagger.training.train import TrainingRun, train

__all__ = [
    "CONLLU",
    "ORIGINAL",
    "Audit",
    "Callback",
    "Columns",
    "Entity",
    "Epoch",
    "Errors",
    "LSTMTagger",
    "Score",
    "Sentence",
    "Span",
    "Tagged",
    "Tagger",
    "TaggerConfig",
    "Token",
    "TrainingRun",
    "Vocabulary",
    "analyse",
    "read_conll",
    "score",
    "score_file",
    "spans",
    "surface_score",
    "tokenize",
    "train",
]

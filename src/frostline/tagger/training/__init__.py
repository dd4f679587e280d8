"""From sentences and vectors to a trained tagger."""

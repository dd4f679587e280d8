"""How good a tagger is (conlleval's figures) and what it gets wrong."""

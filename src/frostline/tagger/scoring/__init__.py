"""How well a tagger does, and what it gets wrong."""

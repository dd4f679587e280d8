"""The whole story on this machine's own data: word vectors, a tagger in three regimes, an audit, pictures."""

"""From labelled text to batches of indices: tags, files, tokens, vocabulary, spelling, batches."""

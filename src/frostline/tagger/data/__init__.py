"""From labelled text to batches of indices."""

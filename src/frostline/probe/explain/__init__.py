"""Say of each parameter whether it will move, and why."""

"""Follow which parameters reach a tensor, and where in the user's code their gradient is lost."""

"""Optimizers that change only the rows that a step used: RowSGD, RowAdagrad, RowAdamW."""

"""From trees to trained tokens: rows, datasets, training recipes and before/after evaluation."""

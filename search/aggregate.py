"""From scores of steps to one score of a trajectory: `core.aggregate`, under the name searches use."""

from counterplay.core.aggregate import AGGREGATIONS, aggregate, last, max_drop, mean, minimum, product

__all__ = ["AGGREGATIONS", "aggregate", "last", "max_drop", "mean", "minimum", "product"]

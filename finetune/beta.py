"""P(X > Y) for two Beta variables, as pairs are weighed by it: `counterplay.core.beta`."""

from counterplay.core.beta import beta_greater, incomplete_beta, probability_better

__all__ = ["beta_greater", "incomplete_beta", "probability_better"]

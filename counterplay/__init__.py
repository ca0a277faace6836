"""counterplay: counterfactual replay for multi-call agents."""

__version__ = "0.1.0"

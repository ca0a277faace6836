"""Search over counterfactuals: one file an algorithm, each a function from a state to a tree. No third-party imports."""

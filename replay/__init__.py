"""Policies, environments, effects and fidelity: what re-enacts a state and plays on from it."""

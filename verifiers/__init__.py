"""Verifiers: loading, combinators, schema rules and domain packs. A verifier is any callable of a trajectory."""

"""Packs: verifiers to start from, each a domain: tools, policies, ledgers, SQL, code, maths, text, state and length."""

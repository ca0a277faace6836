"""The nouns and protocols every room shares. Imports the standard library and pydantic only."""

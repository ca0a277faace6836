"""Batch jobs: a file says what is to be done over how many logs, and a store remembers how far that is."""

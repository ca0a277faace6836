"""Rounds of search, labels and training that make an agent better, each examined on held-out tasks."""

from counterplay.improve.rounds import Improved, Round, improve
from counterplay.improve.settings import Improvement

__all__ = ["Improved", "Improvement", "Round", "improve"]

"""Judges: language models as verifiers. By criteria, relative among siblings, by typed questions, in ensembles, and as critics."""

from counterplay.verifiers.judges.autorace import derive_criteria
from counterplay.verifiers.judges.criteria import Criteria, Criterion
from counterplay.verifiers.judges.critic import Critic, Critique
from counterplay.verifiers.judges.ensemble import Ensemble
from counterplay.verifiers.judges.judge import Judge
from counterplay.verifiers.judges.model import ChatModel
from counterplay.verifiers.judges.siblings import Siblings
from counterplay.verifiers.judges.typed import Question, TypedJudge

__all__ = [
    "ChatModel",
    "Criteria",
    "Criterion",
    "Critic",
    "Critique",
    "Ensemble",
    "Judge",
    "Question",
    "Siblings",
    "TypedJudge",
    "derive_criteria",
]

"""Labels for process reward models, made from search trees: each a pure function from a tree to labelled steps."""

from counterplay.finetune.labels.filters import Consensus, compress, consensus, first_error, reflection
from counterplay.finetune.labels.monte_carlo import Probe, monte_carlo, sorm, undecided
from counterplay.finetune.labels.mutation import Mutation, mutated, mutation_labels, mutations
from counterplay.finetune.labels.omega import Candidate, candidates, omega
from counterplay.finetune.labels.pairwise import PairwiseNode, pairwise
from counterplay.finetune.labels.rows import StepwiseRow, TokenRow, stepwise_rows, token_rows, trl_records
from counterplay.finetune.labels.steps import StepLabel
from counterplay.finetune.labels.values import advantages, rest_values, td_targets

__all__ = [
    "Candidate",
    "Consensus",
    "Mutation",
    "PairwiseNode",
    "Probe",
    "StepLabel",
    "StepwiseRow",
    "TokenRow",
    "advantages",
    "candidates",
    "compress",
    "consensus",
    "first_error",
    "monte_carlo",
    "mutated",
    "mutation_labels",
    "mutations",
    "omega",
    "pairwise",
    "reflection",
    "rest_values",
    "sorm",
    "stepwise_rows",
    "td_targets",
    "token_rows",
    "trl_records",
    "undecided",
]

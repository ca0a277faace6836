"""The job file to begin with: valid as it is, and every section is in it."""

STARTER = """\
# A batch job for: counterplay run job.toml
# Killed at any moment, the same command goes on. What decides results makes it the same job; pace and engine may change in between.
# Every key is described by: counterplay run --schema

[job]
name = "overnight"
store = "counterplay.duckdb"   # one file; paths are relative to this file
seed = 0

[[source]]                     # taken in first; what is held already is not stored again
path = "logs"                  # a file, a folder, s3://..., langfuse://HOST/PROJECT, postgresql://...
# redact = ["pii"]             # secrets always are

[select]                       # which traces; all that is given has to hold
which = "failed"               # failed, succeeded or all
# agents = ["support"]
# tags = ["production"]
# since = "7d"                 # or a date
# cost_above_usd = 0.05
# sample = 0.1
limit = 100

[policy]                       # who is asked what else could have been done
spec = "openai:my-model"
base_urls = ["http://localhost:8000/v1"]
temperature = 1.0
price = [0.15, 0.60]           # US dollars per million input and output tokens
# api_key = "${MY_KEY}"        # only secrets are read from the environment

[environment]                  # where alternatives are played out
spec = "recorded"              # or module:attr, a factory of worlds by task
# allow_external = ["send_mail"]
# simulate = "nearest"

[[verifier]]                   # all must be content; without one, the outcome decides
spec = "outcome"

[search]
algorithm = "fork_best_of_n"   # docs/searching.md says which suits what; stitch asks no model
options = { n = 4, num_pivots = 2 }
# fork = "value_drop"
# stop_when = "value=1"

[budget]                       # divided once over the units; never exceeded in sum, however often the job is killed
total = { model_calls = 20000, usd = 20 }
# per_trace = { model_calls = 400 }

[pace]
in_flight = 32
# requests_per_minute = 600

[engine]
kind = "local"                 # or ray
# processes = 4                # for models and verifiers that compute
at_once = 16                   # units at once
attempts = 3                   # then a unit is parked, for somebody to look at

[[export]]                     # made once all units have settled
kind = "sft"
# tokenizer = "my-model-folder"  # a folder whose chat template measures the rows
held_out = 0.1

[[export]]
kind = "dpo"
tau = 0.8

[output]
folder = "out"
"""

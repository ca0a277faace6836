/**
 * The contract between the page and `counterplay view`: every question and every answer of its JSON API, which only reads.
 *
 * How the page gets its data, in both modes, is in `viewer/API.md`. In short:
 * - served: `fetch("api/...")`, a relative URL, same origin. The browser was given a cookie when it was opened by the URL with
 *   the token; the page does nothing about it. 401 means: open the URL that the command printed again.
 * - self-contained: `<script type="application/json" id="counterplay-data">` holds an `Embedded`; its `answers` are keyed by the very
 *   URL the page would fetch (`"api/meta"`, `"api/traces/abc"`), byte for byte. No key: that page is not in this file.
 *
 * Ids are put into URLs with `encodeURIComponent`. All text is untrusted: it comes from logs, and is only ever shown as text.
 * Null means not known or not applicable, and is never zero. Times are microseconds since 1970 (`_us`), seconds (`_s`), US dollars (`_usd`).
 */

// ---------------------------------------------------------------- what every page shares

export interface Embedded {
  /** Format of this object; 1. */
  format: 1;
  /** The answers, by the URL of their question. */
  answers: Record<string, unknown>;
  /** Where the page starts, as location hash without `#`: "/traces/ID", "/searches/ID". */
  start: string;
}

/** Any answer with a status other than 200 has this body. */
export interface Problem {
  error: {
    /** What was found, in words for a person. */
    got: string;
    /** What was wanted; may be "". */
    wanted: string;
    /** What to do; may be "". */
    do: string;
  };
}

/** GET api/meta */
export interface Meta {
  /** Version of counterplay. */
  version: string;
  /** File name of the store, without its folder. */
  store: string;
  /** True where another process is writing the store and this is a copy of it as it was at `as_of_us`. */
  copied: boolean;
  as_of_us: number;
  /** What there is: pages without anything need no place in the navigation. In a self-contained file: what is in the file. */
  counts: {
    traces: number;
    searches: number;
    datasets: number;
    /** Reports of `counterplay verifiers evaluate`. */
    verifiers: number;
    trainings: number;
    /** Folders of `counterplay improve`. */
    improvements: number;
    evaluations: number;
    scalings: number;
  };
  /** True in a self-contained file: nothing can be asked that is not embedded. */
  embedded: boolean;
}

export type Grade = "exact" | "reused" | "executed" | "simulated" | "stale";
export type Coverage = "full" | "stitched" | "partial" | "none";
export type OutcomeName = "success" | "failed" | "unknown";

/** A figure with its 95 % interval; null bounds: too few groups for one. `n` items in `groups` groups. */
export interface Estimate {
  value: number;
  low: number | null;
  high: number | null;
  n: number;
  groups: number;
}

// ---------------------------------------------------------------- traces

/**
 * GET api/traces?offset=0&limit=100&...   Query parameters, all optional:
 * - offset (0), limit (100, at most 500): the window of a virtual list.
 * - task, agent, source, tag: equal to this value. Facet values go in as they came. The empty string asks for those without one.
 * - outcome: success | failed | unknown.
 * - failing: yes | no: whether a failing step is known (`failing_step`).
 * - min_cost, max_cost: US dollars, bounds included.
 * - id: begins with this (whole trace ids, task names and sessions).
 * - text: this occurs in a message, whatever its case. Messages are searched in the background: while `text_search.done` is false,
 *   ask again (every 300 ms): rows and total grow. Order is stable.
 * - sort: ingested (default) | started | id | task | agent | outcome | steps | tokens | cost | duration | failing; order: asc (default) | desc.
 *   Rows without a value come last either way.
 */
export interface TraceList {
  /** Matching traces in all. */
  total: number;
  offset: number;
  rows: TraceSummary[];
  /** Null where no text was asked for. */
  text_search: { done: boolean; searched: number; of: number } | null;
}

export interface TraceSummary {
  id: string;
  task: string | null;
  session: string | null;
  agent: string | null;
  /** Connector format, such as "langfuse". */
  source: string;
  outcome: OutcomeName;
  reward: number | null;
  /** Steps of the main trajectory, i.e. model calls. */
  steps: number;
  /** 1 + sub-agents. */
  trajectories: number;
  tokens: number;
  cost_usd: number | null;
  started_at_us: number | null;
  duration_s: number | null;
  /** The first step of the main trajectory that is known to have failed or gone wrong (see Step.failing); null where none is known. */
  failing_step: number | null;
  /** Searches that forked this trace. */
  searches: number;
  grade: Grade;
  tags: string[];
}

/** GET api/facets?...   The same filters as api/traces but text; each facet is counted under the other filters. */
export interface Facets {
  total: number;
  /** At most 200 values each, the commonest first. `value` "" stands for none. */
  task: Facet[];
  agent: Facet[];
  source: Facet[];
  tag: Facet[];
  outcome: Facet[];
  /** "yes" and "no". */
  failing: Facet[];
  /** Least and largest known cost of all traces; null where none is known. */
  cost: { min: number; max: number } | null;
}

export interface Facet {
  value: string;
  count: number;
}

/** GET api/traces/{id} */
export interface TraceDetail {
  summary: TraceSummary;
  /** The main trajectory first, then sub-agents; `index` is the place here. */
  trajectories: TrajectoryView[];
  outcome: { reward: number | null; success: boolean | null; source: string; details: Json };
  /** Opinions on the whole trace (those on steps are at the steps). */
  scores: ScoreView[];
  searches: SearchSummary[];
  provenance: {
    format: string;
    dialect: string;
    uri: string;
    line: number | null;
    session: string | null;
    /** Contents this id was ingested with, this one included. */
    revisions: number;
    metadata: Json;
    models: string[];
  };
  completeness: Completeness;
}

export interface Completeness {
  inputs: Coverage;
  outputs: Coverage;
  tools_known: boolean;
  system_prompt_known: boolean;
  dropped_attributes: number;
  truncated: boolean;
  redacted: boolean;
  open_spans: number;
  notes: string[];
}

export interface TrajectoryView {
  index: number;
  /** Name of the agent; "" where not known. */
  agent: string;
  /** The step of the main trajectory that started this sub-agent; null for the main one or where not known. */
  parent_step: number | null;
  /** Index of the trajectory this one goes on from after a compaction. */
  continues: number | null;
  tools: ToolView[];
  prompt: MessageView[];
  steps: StepView[];
}

export interface ToolView {
  name: string;
  description: string;
  /** JSON schema. */
  parameters: Json;
  /** "pure", "read accounts", "write accounts", "external". */
  effect: string;
}

export interface MessageView {
  role: string;
  /** Text of the content; parts that are not text stand as "[image_url]" and the like. */
  text: string;
  reasoning: string | null;
  /** Name of the sender or tool; null where there is none. */
  name: string | null;
  /** Only tool messages: the call they answer. */
  tool_call_id: string | null;
  /** The message as logged, as JSON text: shown on demand. */
  wire: string;
}

/** One model call and what followed. */
export interface StepView {
  /** 0-based within its trajectory; in a tree: steps from the very beginning (fork_step + depth - 1). */
  index: number;
  text: string;
  reasoning: string | null;
  /** Calls in order, each with its result, matched by call id (in order of appearance where ids repeat). */
  calls: CallView[];
  /** What followed and answers no call: user turns and the like. */
  followed: ObservationView[];
  /** Did a model write the action (else it was put in its mouth)? */
  sampled: boolean;
  terminated: boolean;
  truncated: boolean;
  /** Failure of the machinery. */
  error: string | null;
  reward: number | null;
  grade: Grade;
  /** Opinions on this very step or on the state after it. */
  scores: ScoreView[];
  /** Mean scaled value of `scores`; null where there is none. */
  value: number | null;
  /** Why this step counts as failed: an error of the machinery, a tool error, a logged score below 0.5 at the step; "" where it doesn't. */
  failing: string;
  /** What is known about the model call; null where nothing is. */
  call: ModelCall | null;
  /** The action as logged, as JSON text. */
  wire: string;
}

export interface CallView {
  id: string;
  name: string;
  /** The text that the model wrote; JSON as a rule, not always. */
  arguments: string;
  /** Null where no result was logged. */
  result: ObservationView | null;
}

export interface ObservationView extends MessageView {
  grade: Grade;
  /** A tool's result that says it failed. */
  is_error: boolean;
}

export interface ModelCall {
  model: string | null;
  input_tokens: number;
  output_tokens: number;
  cached_tokens: number;
  reasoning_tokens: number;
  cost_usd: number | null;
  latency_s: number | null;
  first_token_s: number | null;
  started_at_us: number | null;
  finish_reason: string | null;
  inputs: Coverage;
  params: Json;
}

export interface ScoreView {
  name: string;
  version: string;
  /** As logged: a number on any scale, a boolean, a category or a text. */
  value: string | number | boolean | null;
  /** In [0, 1]; null where the scale is not known. */
  scaled: number | null;
  /** Whose word: environment, harness, human, judge, feedback, unknown, verifier. */
  source: string;
  /** Comment or reason; with a failed verifier, its error. */
  comment: string;
}

// ---------------------------------------------------------------- searches and trees

/** GET api/searches?offset=0&limit=100&trace=ID&task=NAME&algorithm=NAME   The latest first. */
export interface SearchList {
  total: number;
  offset: number;
  rows: SearchSummary[];
}

export interface SearchSummary {
  id: string;
  algorithm: string;
  trace: string | null;
  task: string | null;
  fork_step: number;
  nodes: number;
  /** Leaves whose trajectory has ended. */
  finished: number;
  /** Why it ended; "" while it runs or where it was killed. */
  stopped: string;
  /** Best score of a finished leaf that left the logged branch; null where none is scored. */
  best: number | null;
}

/** GET api/searches/{id}   The whole tree in columns: entry i of every column is node i; node 0 is the root; parents come first. */
export interface Tree {
  search: SearchSummary;
  config: Json;
  /** Null: not counted. */
  used: Record<"simulations" | "model_calls" | "tokens" | "usd" | "tool_calls" | "seconds", number | null>;
  /** Calls that failed, by kind, with the first message of each. */
  failures: Json;
  /** What the state before the root was: steps up to the fork. They are the steps of the trace where `search.trace` is known. */
  root_steps: number;
  nodes: {
    /** -1 at the root. */
    parent: number[];
    /** Steps below the root. */
    depth: number[];
    /** "look_up(account=1200); post(...)" or "\"what was said\"", at most 160 characters. */
    action: string[];
    /** Names of the tools called, joined by "+", or the beginning of what was said, at most 24 characters: fits a node. */
    label: string[];
    visits: number[];
    /** Q = W / N in [0, 1]; null before the first visit. */
    value: (number | null)[];
    score: (number | null)[];
    /** Index into `verifiers`; -1 where there is no score. */
    verifier: number[];
    prior: number[];
    /** Index into `grades`: the worst grade of the node's own observations. */
    grade: number[];
    /** Bits: 1 logged branch, 2 terminated, 4 truncated, 8 error, 16 on the best path, 32 contested fork (its best children can't be told apart; of the 60 forks with the most lines),
     * 64 sampled. */
    flags: number[];
    reward: (number | null)[];
    /** Largest score, or value, of a finished node at or below it: what a folded branch is worth; null where none is. */
    best_below: (number | null)[];
  };
  /** "name@version". */
  verifiers: string[];
  grades: Grade[];
  /** Reasons by node index (as text), only where there is one. */
  reasons: Record<string, string>;
  /** The last node of the logged branch in this tree; null where the tree does not hold it: compare with the trace's own steps then. */
  logged_tip: number | null;
  /** The best finished leaf; null where none is scored. */
  best: number | null;
}

/**
 * GET api/searches/{id}/nodes?index=3,7,9   Details of some nodes (at most 500), in the order asked for.
 * In a self-contained file the key is "api/searches/ID/nodes" (all nodes, in order): pick from it.
 *
 * Two branches side by side are made of this in both modes: the fork is the lowest common ancestor by `parent`; the left branch is the nodes
 * below it on the way to the left node, the right branch likewise; the first pair holds the first differing action, and pair k is (left[k], right[k]).
 * Without a `logged_tip`, the logged branch is `TraceDetail.trajectories[0].steps` from `root_steps` on, and the fork is the root.
 */
export interface NodeDetails {
  nodes: NodeDetail[];
}

export interface NodeDetail {
  index: number;
  /** Key of the state: 32 hex digits. Dataset rows name it. */
  key: string;
  /** Null at the root. */
  step: StepView | null;
  /** Only at the root: the state that the search started from. */
  root: { tools: ToolView[]; prompt: MessageView[]; steps: StepView[] } | null;
  logprob: number | null;
  /** How often the policy proposed this action here. */
  draws: number;
}

// ---------------------------------------------------------------- failures

/** GET api/failures?agent=NAME   Where runs go wrong. */
export interface Failures {
  /** Traces looked at, and those that failed. */
  traces: number;
  failed: number;
  /** Of the failed ones, those whose pivotal step is known. */
  located: number;
  /** How pivotal steps were found, with counts: "search" (a counterfactual from this step was better than the log), "step score" (the first
   * logged score below 0.5), "tool error", "error". The first that applies counts. */
  found_by: Record<string, number>;
  by_tool: FailureGroup[];
  by_agent: FailureGroup[];
  /** Last words of failed runs: "step limit", "no answer", ... */
  by_class: FailureGroup[];
}

export interface FailureGroup {
  /** Tool (or "(answer)" where the pivotal step calls none), agent or class. */
  name: string;
  /** Failed traces whose pivotal step is here (tool), or of this agent or class. */
  count: number;
  /** Of how many: failed traces with a known pivotal step (tool), traces of this agent (agent), failed traces (class). */
  of: number;
  /** count / of with its Wilson 95 % interval. */
  share: number;
  low: number;
  high: number;
  /** At most 20 traces, to be opened at the step. */
  examples: { trace: string; task: string | null; step: number | null; search: string | null; why: string }[];
}

// ---------------------------------------------------------------- datasets

/** GET api/datasets */
export interface DatasetList {
  datasets: DatasetSummary[];
  /** Whether `--tokenizer` was given: rows then come with the very text and tokens of training. */
  tokenizer: string | null;
}

export type RowKind = "sft" | "dpo" | "kto" | "reward" | "grpo" | "prm";

export interface DatasetSummary {
  /** Its place in URLs. */
  id: string;
  /** Folder name. */
  name: string;
  kind: RowKind;
  /** "Preference pairs" and the like. */
  title: string;
  rows: Record<string, number>;
  tasks: Record<string, number>;
  /** Left out, by reason. */
  dropped: Record<string, number>;
}

/** GET api/datasets/{id} */
export interface DatasetDetail extends DatasetSummary {
  grades: Record<string, number>;
  algorithms: Record<string, number>;
  verifiers: string[];
  /** min, median, p95, max, total; null where not measured. */
  tokens: Record<string, number> | null;
  max_length: number | null;
  label_noise: number | null;
  /** "true" and "false"; null for kinds without labels. */
  labels: Record<string, number> | null;
  logged: number;
  /** Left out by gates that were asked for, by gate. */
  gates: Record<string, number>;
  /** What chose the rows. */
  settings: Json;
  sources: Record<string, Record<string, number>>;
  licence: string;
  /** The card, as Markdown: show as text. */
  card: string;
}

/** GET api/datasets/{id}/drops?offset=0&limit=100&reason=TEXT */
export interface DropList {
  total: number;
  offset: number;
  rows: { reason: string; name: string; detail: string }[];
}

/**
 * GET api/datasets/{id}/rows?split=train&offset=0&limit=50&task=&grade=&algorithm=&text=&trace=&search=
 * All filters optional; `text` occurs in a message, whatever its case.
 */
export interface DatasetRows {
  total: number;
  offset: number;
  rows: RowSummary[];
  /** Values to filter by, with counts, in this split. */
  facets: { task: Facet[]; grade: Facet[]; algorithm: Facet[] };
}

export interface RowSummary {
  /** Place in its split: its place in URLs. */
  index: number;
  name: string;
  task: string | null;
  grade: string;
  algorithm: string;
  logged: boolean;
  messages: number;
  /** Beginning of what is taught, at most 160 characters. */
  preview: string;
  /** Kind-specific figures: probability, margin, score, label, weight, visits ... */
  figures: Record<string, number | boolean | string | null>;
}

/** GET api/datasets/{id}/rows/{split}/{index} */
export interface RowDetail {
  row: RowSummary;
  kind: RowKind;
  tools: ToolView[];
  /** What the trainer reads: one text for sft, kto (and prm, grpo), two for dpo and reward ("chosen", "rejected"). */
  sides: RowSide[];
  lineage: Lineage;
}

export interface RowSide {
  /** "messages", "completion", "prompt", "chosen", "rejected". */
  name: string;
  /** Messages with what is trained on. */
  messages: RowMessage[];
  /** Only with a tokenizer: the rendered text in pieces, in order. null: no tokenizer, or the template refuses (`note` says why). */
  rendered: RenderedText[] | null;
  note: string;
}

export interface RowMessage extends MessageView {
  /** Belongs in the loss. */
  trained: boolean;
  /** Part of the prompt both sides share. */
  shared: boolean;
  calls: { id: string; name: string; arguments: string }[];
  /** prm: label of the step that begins here, with its interval; else null. */
  label: { value: number; low: number | null; high: number | null; lines: number | null } | null;
  weight: number | null;
}

/** One sequence; several where the template rewrites what came before. */
export interface RenderedText {
  pieces: { text: string; trained: boolean }[];
  tokens: number;
  trained_tokens: number;
}

export interface Lineage {
  task: string | null;
  /** Trace ids; `held` says which of them this store has: only those can be opened. */
  traces: { id: string; held: boolean }[];
  sessions: string[];
  /** Search id, "" where the row is logged; `search_held`: this store has it. */
  search: string;
  search_held: boolean;
  algorithm: string;
  fork_step: number | null;
  /** State keys, with the index of the node in the search's tree; null where it is not found there. */
  nodes: { key: string; index: number | null }[];
  verifiers: string[];
  grade: string;
  agent: string | null;
}

// ---------------------------------------------------------------- verifiers

/** GET api/verifiers   Reports of `counterplay verifiers evaluate --report FOLDER`. */
export interface VerifierReports {
  reports: { id: string; name: string; evaluations: VerifierEvaluation[] }[];
}

export interface VerifierEvaluation {
  name: string;
  version: string;
  trajectories: number;
  tasks: number;
  labelled_steps: number;
  answers: {
    questions: number;
    abstained: Estimate | null;
    failed: Estimate | null;
    errors: Record<string, number>;
    seconds: number;
    tokens: number | null;
    cost_usd: number | null;
  };
  /** Whole trajectories against how they ended. */
  outcomes: Discrimination | null;
  /** Prefixes against step labels. */
  steps: Discrimination | null;
  first_errors: Json;
  task_siblings: Siblings | null;
  step_siblings: Siblings | null;
  /** Rise of the score per doubling of steps and of text, at equal truth. */
  length_steps: Estimate | null;
  length_text: Estimate | null;
  consistency: { same: Estimate; moved: number; pairs: Estimate | null; batched: boolean } | null;
  probes: Probe[];
  /** Over-optimisation curve over trajectories as they are, and with attacked versions among them. */
  natural: OptimisationCurve | null;
  attacked: OptimisationCurve | null;
  notes: string[];
}

export interface Discrimination {
  n: number;
  base: number;
  auroc: Estimate | null;
  brier: Estimate;
  ece: Estimate;
  ece_width: Estimate;
  /** ECE that a perfectly calibrated verifier with these scores shows. */
  ece_floor: number;
  /** The calibration curve: of items scored `low` to `high`, `said` on the mean, the share `seen` was right. */
  reliability: { low: number; high: number; said: number; seen: Estimate }[];
}

export interface Siblings {
  pairs: Estimate;
  one_against_many: Estimate;
  reciprocal_rank: Estimate;
  chance: number;
}

/** What a hacking probe did to the scores; `failed`: it pays. */
export interface Probe {
  name: string;
  n: number;
  rises: Estimate | null;
  change: Estimate | null;
  failed: boolean;
}

export interface OptimisationCurve {
  /** Best of `n` by the verifier: its expected gold with interval, its expected score, and the gold of the best by gold. */
  points: { n: number; gold: number; low: number | null; high: number | null; proxy: number; ceiling: number }[];
  candidates: number;
  pools: number;
  pooled: boolean;
  /** [value, low, high] */
  gain: [number, number | null, number | null];
  fall: [number, number | null, number | null];
}

// ---------------------------------------------------------------- training

/** GET api/training */
export interface Training {
  trainings: TrainingRun[];
  improvements: Improvement[];
  evaluations: PolicyEvaluation[];
  scalings: Scaling[];
}

/** A folder of `counterplay train`. */
export interface TrainingRun {
  id: string;
  name: string;
  recipe: Json;
  /** Null until it is finished. */
  report: Json;
  /** Lines of metrics.jsonl in columns: names to values, null where a step has none. "step" is always there, "loss" as a rule. At most 1,000
   * steps, evenly thinned. */
  metrics: Record<string, (number | null)[]>;
}

/** A folder of `counterplay improve`. Intervals are 95 %. */
export interface Improvement {
  id: string;
  name: string;
  chosen: number;
  stopped: string;
  rounds: {
    number: number;
    /** Success on held-out tasks. */
    success: number;
    interval: [number, number];
    tasks: number;
    /** [difference, low, high], paired by task. */
    gain: [number, number, number] | null;
    over_base: [number, number, number] | null;
    verdict: string;
    search: string;
    traces: number;
    failed: number;
    solved: number;
    rows: number;
    pairs: number;
    model_calls: number;
    tokens: number;
    seconds: number;
  }[];
}

/** A folder of `counterplay evaluate --out`. */
export interface PolicyEvaluation {
  id: string;
  name: string;
  policies: {
    name: string;
    tasks: number;
    rate: number;
    interval: [number, number];
    /** k to pass@k. */
    pass_at: Record<string, number>;
    attempts: number;
    mean_steps: number | null;
    cost_per_success_usd: number | null;
    failures: { failure: string; share: number; interval: [number, number] }[];
  }[];
  comparisons: {
    a: string;
    b: string;
    tasks: number;
    difference: number;
    interval: [number, number];
    p_value: number;
    verdict: string;
    gains: string[];
    regressions: string[];
  }[];
}

/** scaling.json of `counterplay evaluate --scaling --out`. */
export interface Scaling {
  id: string;
  name: string;
  tasks: number;
  method: string;
  verifier: string;
  curves: { name: string; points: { budget: number; rate: number; interval: [number, number]; spent: number }[] }[];
  gaps: { a: string; b: string; budget: number; difference: number; interval: [number, number] }[];
}

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

/** One trace as a readable conversation, sub-agents nested at the step that started them. */

import { useEffect, useMemo } from "preact/hooks";
import { embedded, url, useAsk } from "../api";
import { number, plural, seconds, usd, value, when } from "../format";
import { Fold, Message, Score, Step, StepDot, stepBrief } from "../parts/conversation";
import { Crumbs, Facts, Failure, GradePill, Loading, OutcomePill, Text } from "../parts/signs";
import { ToolList } from "../parts/tools";
import { href, route } from "../router";
import type { CallView, Json, SearchSummary, TraceDetail, TrajectoryView } from "../types";

export function TracePage({ id }: { id: string }) {
  const { data, error } = useAsk<TraceDetail>(url(["traces", id]));
  const step = route.value.query.get("step");
  useEffect(() => {
    if (data && step !== null) reveal(step);
  }, [data, step]);
  if (error) return <Failure error={error} />;
  if (!data) return <Loading />;
  return (
    <>
      <Head trace={data} />
      <div class="split">
        <div class="card pad">
          <Conversation trace={data} trajectory={data.trajectories[0]!} pivot={data.summary.failing_step} />
        </div>
        <aside class="aside" aria-label="About this trace">
          <Trees searches={data.searches} />
          <Outline trajectory={data.trajectories[0]!} trace={data} />
          <About trace={data} />
        </aside>
      </div>
    </>
  );
}

function reveal(step: string): void {
  const element = document.getElementById(`step-0-${step}`);
  element?.scrollIntoView({ block: "start" });
  element?.focus({ preventScroll: true });
}

function Head({ trace: { summary, outcome } }: { trace: TraceDetail }) {
  return (
    <>
      <Crumbs items={[[href("traces"), "Traces"]]} />
      <div class="head">
        <h1>
          <Text>{summary.task ?? summary.id}</Text>
        </h1>
        <OutcomePill outcome={summary.outcome} />
        {summary.grade !== "exact" && <GradePill grade={summary.grade} />}
        {summary.tags.map((tag) => (
          <a key={tag} class="pill" href={embedded ? undefined : href("traces", null, { tag })}>
            <Text>{tag}</Text>
          </a>
        ))}
        <div class="lead">
          <Facts
            items={[
              ["agent", summary.agent && <Text>{summary.agent}</Text>],
              [
                "reward",
                outcome.reward === null ? null : `${value(outcome.reward)}${outcome.source === "unknown" ? "" : ` (${outcome.source})`}`,
              ],
              ["steps", number(summary.steps)],
              ["tokens", number(summary.tokens)],
              ["cost", usd(summary.cost_usd)],
              ["time", seconds(summary.duration_s)],
              ["started", when(summary.started_at_us)],
            ]}
          />
        </div>
      </div>
    </>
  );
}

function Trees({ searches }: { searches: SearchSummary[] }) {
  if (searches.length === 0) return null;
  return (
    <section class="card">
      <h2>What else it could have done</h2>
      <ul class="pad stack" style={{ gap: "10px" }}>
        {searches.map((search) => (
          <li key={search.id}>
            <a class="button primary" href={href("searches", search.id)}>
              Tree by <Text>{search.algorithm}</Text>
            </a>
            <div class="small soft num" style={{ marginTop: "4px" }}>
              {search.fork_step > 0 ? `from step ${search.fork_step}` : "from the start"} · {plural(search.nodes - 1, "step")} tried
              {search.best !== null && ` · best ${value(search.best)}`}
            </div>
          </li>
        ))}
      </ul>
    </section>
  );
}

const anchor = (trace: string, step: number): string => href("traces", trace, { step });

function Outline({ trajectory, trace }: { trajectory: TrajectoryView; trace: TraceDetail }) {
  const pivot = trace.summary.failing_step;
  return (
    <nav class="card wideonly" aria-label="Steps">
      <h2>Steps</h2>
      <ol style={{ maxHeight: "42vh", overflowY: "auto", padding: "8px 0" }}>
        {trajectory.steps.map((step) => (
          <li key={step.index}>
            <a
              class="row"
              href={anchor(trace.summary.id, step.index)}
              onClick={() => reveal(String(step.index))}
              style={{
                display: "flex",
                gap: "8px",
                alignItems: "center",
                padding: "2px 16px",
                border: 0,
                ...(step.index === pivot ? { color: "var(--worse)", fontWeight: 600 } : {}),
              }}
            >
              <span class="num faint" style={{ minWidth: "22px", textAlign: "right" }}>
                {step.index}
              </span>
              {(step.value !== null || step.failing) && <StepDot step={step} />}
              <span class="mono" style={{ overflow: "hidden", textOverflow: "ellipsis", whiteSpace: "nowrap" }}>
                <Text>{stepBrief(step)}</Text>
              </span>
            </a>
          </li>
        ))}
      </ol>
    </nav>
  );
}

function About({ trace }: { trace: TraceDetail }) {
  const { provenance, completeness, scores } = trace;
  return (
    <section class="card">
      <h2>Where it comes from</h2>
      <div class="pad stack" style={{ gap: "10px" }}>
        {scores.map((score, i) => (
          <Score key={i} score={score} />
        ))}
        <Facts
          items={[
            [
              "trace",
              <span class="mono">
                <Text>{trace.summary.id}</Text>
              </span>,
            ],
            ["format", <Text>{`${provenance.format}${provenance.dialect ? `/${provenance.dialect}` : ""}`}</Text>],
            ["file", provenance.uri && <Text>{`${provenance.uri}${provenance.line ? `:${provenance.line}` : ""}`}</Text>],
            ["models", provenance.models.length ? <Text>{provenance.models.join(", ")}</Text> : null],
            ["session", provenance.session && <Text>{provenance.session}</Text>],
            ["prompts", completeness.inputs],
            ["answers", completeness.outputs],
            ["redacted", completeness.redacted ? "yes" : null],
            ["open spans", completeness.open_spans ? number(completeness.open_spans) : null],
          ]}
        />
        {completeness.notes.map((note) => (
          <p key={note} class="small soft">
            <Text>{note}</Text>
          </p>
        ))}
        <More name="Metadata" json={provenance.metadata} />
        <More name="Outcome as logged" json={trace.outcome.details} />
      </div>
    </section>
  );
}

function More({ name, json }: { name: string; json: Json }) {
  if (json === null || (typeof json === "object" && Object.keys(json).length === 0)) return null;
  return (
    <Fold summary={<span class="small">{name}</span>}>
      {() => (
        <pre class="small">
          <Text>{JSON.stringify(json, null, 2)}</Text>
        </pre>
      )}
    </Fold>
  );
}

function Conversation({ trace, trajectory, pivot }: { trace: TraceDetail; trajectory: TrajectoryView; pivot: number | null }) {
  const earlier = useMemo(() => lastOfTool(trajectory), [trajectory]);
  const nested = trace.trajectories.filter((other) => other !== trajectory && other.index > 0);
  const at = (step: number | null) => (trajectory.index === 0 ? nested.filter((other) => other.parent_step === step) : []);
  const last = trajectory.steps.at(-1)?.index ?? -1;
  return (
    <>
      <Prompt trajectory={trajectory} />
      <ol
        aria-label={trajectory.index === 0 ? "Steps of the trace" : `Steps of ${trajectory.agent || "a sub-agent"}`}
        style={{ marginTop: "8px" }}
      >
        {trajectory.steps.map((step) => (
          <Step
            key={step.index}
            id={`step-${trajectory.index}-${step.index}`}
            step={step}
            pivot={pivot === step.index}
            opened={pivot === step.index || (trajectory.index === 0 && route.value.query.get("step") === String(step.index))}
            earlier={(call) => earlier.get(call)}
          >
            {at(step.index).map((other) => (
              <Nested key={other.index} trace={trace} trajectory={other} />
            ))}
          </Step>
        ))}
      </ol>
      {trajectory.index === 0 &&
        nested
          .filter((other) => other.parent_step === null || other.parent_step > last)
          .map((other) => <Nested key={other.index} trace={trace} trajectory={other} />)}
    </>
  );
}

function Nested({ trace, trajectory }: { trace: TraceDetail; trajectory: TrajectoryView }) {
  const words = trajectory.continues === null ? "Sub-agent" : "Goes on after a compaction";
  return (
    <div class="nest">
      <Fold
        summary={
          <>
            {words}{" "}
            {trajectory.agent && (
              <strong>
                <Text>{trajectory.agent}</Text>
              </strong>
            )}{" "}
            <span class="faint small">{plural(trajectory.steps.length, "step")}</span>
          </>
        }
      >
        {() => <Conversation trace={trace} trajectory={trajectory} pivot={null} />}
      </Fold>
    </div>
  );
}

function Prompt({ trajectory }: { trajectory: TrajectoryView }) {
  const [long, short] = [
    trajectory.prompt.filter((m) => m.role === "system" || m.role === "developer"),
    trajectory.prompt.filter((m) => m.role !== "system" && m.role !== "developer"),
  ];
  return (
    <>
      {(long.length > 0 || trajectory.tools.length > 0) && (
        <Fold
          summary={
            <span class="small">
              {[long.length ? "System prompt" : "", trajectory.tools.length ? plural(trajectory.tools.length, "tool") : ""]
                .filter(Boolean)
                .join(" and ")}
            </span>
          }
        >
          {() => (
            <div class="stack" style={{ padding: "4px 0 12px" }}>
              {long.map((message, i) => (
                <Message key={i} message={message} />
              ))}
              <ToolList tools={trajectory.tools} />
            </div>
          )}
        </Fold>
      )}
      {short.map((message, i) => (
        <Message key={i} message={message} />
      ))}
    </>
  );
}

/** For each call the last one of the same tool before it. */
function lastOfTool(trajectory: TrajectoryView): Map<CallView, CallView> {
  const last = new Map<string, CallView>();
  const found = new Map<CallView, CallView>();
  for (const call of trajectory.steps.flatMap((step) => step.calls)) {
    const before = last.get(call.name);
    if (before) found.set(call, before);
    last.set(call.name, call);
  }
  return found;
}

/** Where failed traces went wrong: by tool, by agent, by how they ended; each bar leads to examples. */

import { useEffect, useRef } from "preact/hooks";
import { url, useAsk } from "../api";
import { Bars } from "../charts/bars";
import { number, percent, plural } from "../format";
import { Empty, Failure, Loading, Text } from "../parts/signs";
import { href, route, setQuery } from "../router";
import type { FailureGroup, Failures } from "../types";

const KINDS = [
  ["by_tool", "Tool of the pivotal step", "of failed traces whose pivotal step is known"],
  ["by_agent", "Agent", "of the traces of this agent"],
  ["by_class", "How it ended", "of failed traces"],
] as const;
type Kind = (typeof KINDS)[number][0];

export function FailuresPage() {
  const { query } = route.value;
  const agent = query.get("agent");
  const { data, error } = useAsk<Failures>(url(["failures"], { agent }), { keep: true });
  if (error) return <Failure error={error} />;
  if (!data) return <Loading />;
  const chosen = chosenGroup(data, query);
  return (
    <>
      <div class="head">
        <h1>Failures</h1>
        <p class="lead">
          {number(data.failed)} of {plural(data.traces, "trace")} failed. The pivotal step, the one at which it went wrong, is known for{" "}
          {number(data.located)} of them
          {Object.keys(data.found_by).length > 0 && (
            <>
              {" "}
              (
              {Object.entries(data.found_by)
                .map(([way, count]) => `${number(count)} by ${way}`)
                .join(", ")}
              )
            </>
          )}
          . Lines in the bars are 95 % intervals.
        </p>
        {agent !== null && (
          <button type="button" class="chip" aria-pressed="true" onClick={() => setQuery({ agent: null, kind: null, group: null })}>
            <span>
              agent: <Text>{agent || "none"}</Text>
            </span>{" "}
            ✕
          </button>
        )}
      </div>
      {data.failed === 0 ? (
        <Empty title="No failed trace">
          <p>Nothing here is known to have failed. Outcomes come with the logs, or from a verifier.</p>
        </Empty>
      ) : (
        <div class="grid" style={{ alignItems: "start" }}>
          <div class="stack">
            {KINDS.map(([kind, title, of]) => (
              <Groups
                key={kind}
                kind={kind}
                title={title}
                of={of}
                groups={data[kind]}
                chosen={chosen?.kind === kind ? chosen.group.name : null}
              />
            ))}
          </div>
          <Examples chosen={chosen} />
        </div>
      )}
    </>
  );
}

type Chosen = { kind: Kind; title: string; group: FailureGroup };

function chosenGroup(data: Failures, query: URLSearchParams): Chosen | null {
  const asked = KINDS.find(([kind]) => kind === query.get("kind"));
  const [kind, title] = asked ?? KINDS.find(([name]) => data[name].length > 0) ?? KINDS[0];
  const group = data[kind].find((one) => asked && one.name === query.get("group")) ?? data[kind][0];
  return group ? { kind, title, group } : null;
}

function Groups({
  kind,
  title,
  of,
  groups,
  chosen,
}: {
  kind: Kind;
  title: string;
  of: string;
  groups: FailureGroup[];
  chosen: string | null;
}) {
  if (groups.length === 0) return null;
  const bars = groups.map((group) => ({ ...group, note: `${number(group.count)} of ${number(group.of)}` }));
  return (
    <section class="card">
      <header>
        <h2>{title}</h2>
        <span class="faint small">{of}</span>
      </header>
      <div style={{ padding: "8px 0" }}>
        <Bars label={title} bars={bars} chosen={chosen} onChoose={(group) => setQuery({ kind, group }, { replace: true })} />
      </div>
    </section>
  );
}

function Examples({ chosen }: { chosen: Chosen | null }) {
  const box = useRef<HTMLElement>(null);
  const name = `${chosen?.kind}/${chosen?.group.name}`;
  const first = useRef(name);
  useEffect(() => {
    if (first.current !== name) box.current?.scrollIntoView({ block: "nearest" });
    first.current = name;
  }, [name]);
  if (!chosen) return null;
  const { group, title } = chosen;
  return (
    <section class="card" ref={box} aria-live="polite">
      <header>
        <h2>
          <Text>{group.name}</Text>
        </h2>
        <span class="faint small">
          {title}: {percent(group.share)} ({percent(group.low)} to {percent(group.high)})
        </span>
      </header>
      <ul>
        {group.examples.map((example, i) => (
          <li key={i} class="row example">
            <a href={href("traces", example.trace, { step: example.step })}>
              <Text>{example.task ?? example.trace}</Text>
              {example.step !== null && ` at step ${example.step}`}
            </a>
            <span class="soft small">
              <Text>{example.why}</Text>
            </span>
            {example.search && (
              <a class="small" href={href("searches", example.search)}>
                tree
              </a>
            )}
          </li>
        ))}
      </ul>
      {chosen.kind === "by_agent" && (
        <p class="pad small">
          <a href={href("failures", null, { agent: group.name })}>Only the failures of this agent</a> ·{" "}
          <a href={href("traces", null, { agent: group.name, outcome: "failed" })}>its failed traces</a>
        </p>
      )}
    </section>
  );
}

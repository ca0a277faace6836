/** All traces: filters in the address, text search, and a list of any length. */

import { useEffect, useState } from "preact/hooks";
import { askAgain, url, useAsk } from "../api";
import { type Facet, type Facets, type TraceList, type TraceSummary } from "../types";
import { compact, number, percent, plural, seconds, usd, when } from "../format";
import { Empty, Failure, Loading, OutcomePill, Text } from "../parts/signs";
import { plain } from "../invisible";
import { Rows, useNarrow, usePages } from "../parts/rows";
import { href, route, setQuery } from "../router";

const FILTERS = ["outcome", "failing", "agent", "task", "source", "tag", "min_cost", "max_cost", "id"] as const;
const SHOWN_CHIPS = 6;

type Filters = Record<string, string>;

function filters(): Filters {
  const { query } = route.value;
  return Object.fromEntries(FILTERS.filter((name) => query.has(name)).map((name) => [name, query.get(name)!]));
}

export function TracesPage() {
  const { query } = route.value;
  const chosen = filters();
  const text = query.get("text") ?? "";
  const order = { sort: query.get("sort"), order: query.get("order") };
  const asked = { ...chosen, ...(text ? { text } : {}), ...order };
  const counted = useCounted(url(["traces"], { ...asked, offset: 0, limit: 1 }));
  const facets = useAsk<Facets>(url(["facets"], chosen), { keep: true }).data;
  return (
    <>
      <div class="head">
        <h1>Traces</h1>
        <Found counted={counted} of={facets} filtered={Object.keys(chosen).length > 0 || text !== ""} />
      </div>
      <Search text={text} />
      {facets && <FacetBar facets={facets} chosen={chosen} />}
      {counted.error && <Failure error={counted.error} />}
      {counted.list?.text_search?.done === false && counted.list.total === 0 ? (
        <Loading>Searching all messages…</Loading>
      ) : counted.list?.total === 0 ? (
        <Nothing filtered={Object.keys(chosen).length > 0 || text !== ""} />
      ) : (
        <TraceRows
          total={counted.list?.total ?? 0}
          query={asked}
          key={JSON.stringify(asked)}
          grows={counted.list?.text_search ? counted.list.total : 0}
          costs={facets?.cost != null}
        />
      )}
    </>
  );
}

type Counted = { list: TraceList | null; error: Parameters<typeof Failure>[0]["error"] | null };

/** The first answer of a list, asked again while a search of text goes on. */
function useCounted(first: string): Counted {
  const asked = useAsk<TraceList>(first, { keep: true });
  const [grown, setGrown] = useState<{ url: string; list: TraceList } | null>(null);
  const list = grown?.url === first ? grown.list : asked.data;
  const goesOn = asked.url === first && list?.text_search?.done === false;
  useEffect(() => {
    if (!goesOn) return;
    const timer = setTimeout(() => void askAgain<TraceList>(first).then((next) => setGrown({ url: first, list: next })), 300);
    return () => clearTimeout(timer);
  }, [goesOn, list]);
  return { list, error: asked.error };
}

function Found({ counted: { list }, of, filtered }: { counted: Counted; of: Facets | null; filtered: boolean }) {
  if (!list) return null;
  const searching =
    list.text_search && !list.text_search.done
      ? ` · searched ${percent(list.text_search.searched / Math.max(1, list.text_search.of))}`
      : "";
  const succeeded = filtered ? undefined : of?.outcome.find((facet) => facet.value === "success");
  return (
    <span class="soft num" role="status">
      {plural(list.total, "trace")}
      {succeeded && `, ${number(succeeded.count)} successful`}
      {searching}
    </span>
  );
}

function Search({ text }: { text: string }) {
  const [typed, setTyped] = useState(text);
  useEffect(() => setTyped(text), [text]);
  useEffect(() => {
    if (typed === text) return;
    const timer = setTimeout(() => setQuery({ text: typed || null }, { replace: true }), 250);
    return () => clearTimeout(timer);
  }, [typed]);
  return (
    <div class="bar" role="search">
      <input
        class="field search"
        type="search"
        aria-label="Text in the messages"
        placeholder="Search in what was said and returned"
        value={typed}
        onInput={(event) => setTyped(event.currentTarget.value)}
      />
      <Pick name="id" label="Trace, task or session" />
      <Cost />
    </div>
  );
}

function Pick({ name, label }: { name: string; label: string }) {
  const current = route.value.query.get(name) ?? "";
  return (
    <input
      class="field wideonly"
      type="text"
      aria-label={`${label} begins with`}
      placeholder={`${label} …`}
      value={current}
      onChange={(event) => setQuery({ [name]: event.currentTarget.value.trim() || null })}
      size={20}
    />
  );
}

function Cost() {
  const { query } = route.value;
  const known = useAsk<Facets>("api/facets", { keep: true }).data?.cost;
  if (!known) return null;
  const amount = (name: "min_cost" | "max_cost", words: string) => (
    <input
      class="field"
      type="number"
      min="0"
      step="any"
      style={{ width: "92px" }}
      aria-label={`${words} cost in US dollars`}
      placeholder={name === "min_cost" ? "$ least" : "$ most"}
      title={`known costs: ${usd(known.min)} to ${usd(known.max)}`}
      value={query.get(name) ?? ""}
      onChange={(event) => setQuery({ [name]: event.currentTarget.value || null })}
    />
  );
  return (
    <>
      {amount("min_cost", "Least")}
      {amount("max_cost", "Largest")}
    </>
  );
}

const GROUPS: readonly [keyof Facets & string, string, Record<string, string>][] = [
  ["outcome", "Outcome", { success: "success", failed: "failed", unknown: "not known" }],
  ["failing", "Failing step", { yes: "known", no: "not known" }],
  ["agent", "Agent", { "": "no agent" }],
  ["source", "Source", {}],
  ["tag", "Tag", { "": "no tag" }],
];

function FacetBar({ facets, chosen }: { facets: Facets; chosen: Filters }) {
  return (
    <div class="bar" role="group" aria-label="Filters" style={{ gap: "8px 18px", marginBottom: "16px" }}>
      {GROUPS.map(([name, label, words]) => {
        const values = facets[name] as Facet[];
        if (values.length < 2 && chosen[name] === undefined) return null;
        return <Group key={name} name={name} label={label} words={words} values={values} chosen={chosen[name]} />;
      })}
      <TaskPick tasks={facets.task} chosen={chosen["task"]} />
      {Object.keys(chosen).length > 0 && (
        <button type="button" class="button plain" onClick={() => setQuery(Object.fromEntries(FILTERS.map((name) => [name, null])))}>
          Clear filters
        </button>
      )}
    </div>
  );
}

type GroupProps = { name: string; label: string; words: Record<string, string>; values: Facet[]; chosen: string | undefined };

function Group({ name, label, words, values, chosen }: GroupProps) {
  const more = values.length > SHOWN_CHIPS;
  return (
    <div class="chips" role="group" aria-label={label}>
      <span class="faint small">{label}</span>
      {more ? (
        <Select name={name} label={label} words={words} values={values} chosen={chosen} />
      ) : (
        values.map((facet) => (
          <button
            key={facet.value}
            type="button"
            class="chip"
            aria-pressed={chosen === facet.value}
            onClick={() => setQuery({ [name]: chosen === facet.value ? null : facet.value })}
          >
            <span>
              <Text>{words[facet.value] ?? facet.value}</Text>
            </span>
            <span class="n">{compact(facet.count)}</span>
          </button>
        ))
      )}
    </div>
  );
}

function Select({ name, label, words, values, chosen }: GroupProps) {
  return (
    <select
      class="field"
      aria-label={label}
      value={chosen ?? ""}
      onChange={(event) => setQuery({ [name]: event.currentTarget.value || null })}
      style={{ maxWidth: "220px" }}
    >
      <option value="">all</option>
      {values.map((facet) => (
        <option key={facet.value} value={facet.value}>
          {plain(words[facet.value] ?? facet.value)} ({number(facet.count)})
        </option>
      ))}
    </select>
  );
}

function TaskPick({ tasks, chosen }: { tasks: Facet[]; chosen: string | undefined }) {
  if (tasks.length < 2 && chosen === undefined) return null;
  return (
    <div class="chips">
      <span class="faint small">Task</span>
      <Select name="task" label="Task" words={{}} values={tasks.filter((facet) => facet.value !== "")} chosen={chosen} />
    </div>
  );
}

const Nothing = ({ filtered }: { filtered: boolean }) =>
  filtered ? (
    <Empty title="No trace matches">
      <p>Take a filter off, or search for other words.</p>
    </Empty>
  ) : (
    <Empty title="This store has no traces yet">
      <p>
        Take some in: <code>counterplay ingest LOGS</code>
      </p>
    </Empty>
  );

const columns = (costs: boolean): string => `minmax(0, 2.4fr) minmax(0, 1.1fr) 96px 62px 74px ${costs ? "74px " : ""}74px 118px`;

function TraceRows({ total, query, grows, costs }: { total: number; query: Record<string, string | null>; grows: number; costs: boolean }) {
  const narrow = useNarrow();
  const pages = usePages<TraceSummary>((offset, limit) => url(["traces"], { ...query, offset, limit }), JSON.stringify(query), grows);
  const rowHeight = narrow ? 68 : 46;
  return (
    <div class="list" style={{ "--cols": narrow ? "minmax(0, 1fr) auto" : columns(costs) }}>
      {!narrow && <Headings sort={query["sort"] ?? null} order={query["order"] ?? null} costs={costs} />}
      <Rows
        label="Traces"
        total={total}
        rowHeight={rowHeight}
        height={`min(${Math.max(1, total) * rowHeight}px, max(320px, calc(100vh - ${narrow ? 300 : 290}px)))`}
        want={pages.want}
        row={pages.row}
        stamp={`${JSON.stringify(query)}/${costs}`}
        render={(trace) => <TraceRow trace={trace} narrow={narrow} costs={costs} />}
      />
    </div>
  );
}

const HEADINGS: readonly [string, string, boolean][] = [
  ["task", "Task", false],
  ["agent", "Agent", false],
  ["outcome", "Outcome", false],
  ["steps", "Steps", true],
  ["tokens", "Tokens", true],
  ["cost", "Cost", true],
  ["duration", "Time", true],
  ["started", "Started", true],
];

function Headings({ sort, order, costs }: { sort: string | null; order: string | null; costs: boolean }) {
  const click = (name: string): void => {
    if (sort !== name) return setQuery({ sort: name, order: null });
    return order === "desc" ? setQuery({ sort: null, order: null }) : setQuery({ order: "desc" });
  };
  return (
    <div class="cols headings" role="group" aria-label="Sort by">
      {HEADINGS.filter(([name]) => costs || name !== "cost").map(([name, words, end]) => (
        <span key={name} class={end ? "end" : ""}>
          <button
            type="button"
            onClick={() => click(name)}
            aria-pressed={sort === name}
            style={sort === name ? { color: "var(--ink)", fontWeight: 600 } : {}}
          >
            {words}
            {sort === name ? (order === "desc" ? " ↓" : " ↑") : ""}
          </button>
        </span>
      ))}
    </div>
  );
}

function TraceRow({ trace, narrow, costs }: { trace: TraceSummary | undefined; narrow: boolean; costs: boolean }) {
  if (!trace) {
    return (
      <div class="row cols">
        <div class="skeleton" />
      </div>
    );
  }
  return (
    <a class="row cols" href={href("traces", trace.id)}>
      {narrow ? <NarrowCells trace={trace} /> : <Cells trace={trace} costs={costs} />}
    </a>
  );
}

function Title({ trace }: { trace: TraceSummary }) {
  return (
    <div class="title" style={{ overflow: "hidden", textOverflow: "ellipsis" }}>
      <Text>{trace.task ?? trace.id}</Text>
    </div>
  );
}

function Sub({ trace }: { trace: TraceSummary }) {
  return (
    <div class="sub" style={{ overflow: "hidden", textOverflow: "ellipsis" }}>
      {trace.failing_step !== null && <span style={{ color: "var(--worse)" }}>fails at step {trace.failing_step} · </span>}
      {trace.searches > 0 && <span style={{ color: "var(--accent)" }}>{plural(trace.searches, "tree")} · </span>}
      {trace.trajectories > 1 && `${plural(trace.trajectories - 1, "sub-agent")} · `}
      <Text>{trace.task === null ? trace.source : trace.id}</Text>
      {trace.tags.map((tag) => (
        <span key={tag}>
          {" "}
          · <Text>{tag}</Text>
        </span>
      ))}
    </div>
  );
}

function Cells({ trace, costs }: { trace: TraceSummary; costs: boolean }) {
  return (
    <>
      <div>
        <Title trace={trace} />
        <Sub trace={trace} />
      </div>
      <div class="soft">
        <Text>{trace.agent ?? "–"}</Text>
      </div>
      <div>
        <OutcomePill outcome={trace.outcome} />
      </div>
      <div class="end">{number(trace.steps)}</div>
      <div class="end">{compact(trace.tokens)}</div>
      {costs && <div class="end">{usd(trace.cost_usd)}</div>}
      <div class="end">{seconds(trace.duration_s)}</div>
      <div class="end faint small">{when(trace.started_at_us)}</div>
    </>
  );
}

function NarrowCells({ trace }: { trace: TraceSummary }) {
  return (
    <>
      <div>
        <Title trace={trace} />
        <Sub trace={trace} />
        <div class="sub num" style={{ overflow: "hidden", textOverflow: "ellipsis" }}>
          {plural(trace.steps, "step")} · {compact(trace.tokens)} tokens{trace.cost_usd !== null && ` · ${usd(trace.cost_usd)}`}
        </div>
      </div>
      <OutcomePill outcome={trace.outcome} />
    </>
  );
}

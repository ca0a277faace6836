/** One dataset: rows as the trainer reads them, where each comes from, and what was left out and why. */

import { useEffect, useRef, useState } from "preact/hooks";
import { url, useAsk } from "../api";
import { DASH, number, plural, pretty, value as shown } from "../format";
import { plain } from "../invisible";
import { Fold, Long, Reasoning, Signature } from "../parts/conversation";
import { Compared, type Side as DiffSide } from "../parts/differing";
import { Rows, usePages } from "../parts/rows";
import { Crumbs, Facts, Failure, Loading, Segments, Text } from "../parts/signs";
import { ToolList } from "../parts/tools";
import { href, route, setQuery } from "../router";
import type {
  DatasetDetail,
  DatasetRows,
  DropList,
  Facet,
  Lineage,
  RenderedText,
  RowDetail,
  RowMessage,
  RowSide,
  RowSummary,
} from "../types";
import { sum } from "./datasets";

const FILTERS = ["task", "grade", "algorithm", "text", "trace", "search"] as const;
const ROW_HEIGHT = 62;

export function DatasetPage({ id }: { id: string }) {
  const { data, error } = useAsk<DatasetDetail>(url(["datasets", id]));
  if (error) return <Failure error={error} />;
  if (!data) return <Loading />;
  return (
    <>
      <Crumbs items={[[href("datasets"), "Datasets"]]} />
      <div class="head">
        <h1>
          <Text>{data.name}</Text>
        </h1>
        <span class="pill">{data.kind}</span>
        <span class="soft">{data.title}</span>
      </div>
      <Summary dataset={data} />
      <Browser dataset={data} />
    </>
  );
}

function Summary({ dataset }: { dataset: DatasetDetail }) {
  const dropped = Object.entries(dataset.dropped).sort((a, b) => b[1] - a[1]);
  const [open, setOpen] = useState<string | null>(null);
  const counts = (record: Record<string, number> | null): string | null =>
    record && Object.keys(record).length
      ? Object.entries(record)
          .map(([name, n]) => `${name} ${number(n)}`)
          .join(", ")
      : null;
  return (
    <div class="grid" style={{ marginBottom: "20px" }}>
      <section class="card pad" aria-label="What is in it">
        <Facts
          items={[
            ["rows", counts(dataset.rows)],
            ["tasks", counts(dataset.tasks)],
            ["grades", counts(dataset.grades)],
            ["from", counts(dataset.algorithms)],
            ["labels", counts(dataset.labels)],
            [
              "tokens a row",
              dataset.tokens
                ? `median ${number(dataset.tokens["median"])}, p95 ${number(dataset.tokens["p95"])}, most ${number(dataset.tokens["max"])}`
                : null,
            ],
            ["longest allowed", dataset.max_length === null ? null : number(dataset.max_length)],
            ["label noise", dataset.label_noise === null ? null : `${(dataset.label_noise * 100).toFixed(1)} % expected`],
            ["verifiers", dataset.verifiers.length ? <Text>{dataset.verifiers.join(", ")}</Text> : null],
            ["licence", dataset.licence && <Text>{dataset.licence}</Text>],
          ]}
        />
        <div style={{ marginTop: "8px" }}>
          <Fold summary={<span class="small">Settings</span>}>
            {() => (
              <pre class="small">
                <Text>{JSON.stringify(dataset.settings, null, 2)}</Text>
              </pre>
            )}
          </Fold>
          {dataset.card && (
            <Fold summary={<span class="small">Card</span>}>
              {() => (
                <pre class="small">
                  <Text>{dataset.card}</Text>
                </pre>
              )}
            </Fold>
          )}
        </div>
      </section>
      <section class="card">
        <header>
          <h2>Left out</h2>
          <span class="faint small num">{dropped.length ? plural(sum(dataset.dropped), "candidate") : "nothing"}</span>
        </header>
        <ul style={{ padding: "6px 0" }}>
          {dropped.map(([reason, count]) => (
            <li key={reason}>
              <button
                type="button"
                class="barline"
                aria-expanded={open === reason}
                onClick={() => setOpen(open === reason ? null : reason)}
              >
                <span class="barname">
                  <Text>{reason}</Text>
                </span>
                <span class="num">{number(count)}</span>
              </button>
              {open === reason && <Drops dataset={dataset.id} reason={reason} />}
            </li>
          ))}
        </ul>
      </section>
    </div>
  );
}

function Drops({ dataset, reason }: { dataset: string; reason: string }) {
  const [limit, setLimit] = useState(20);
  const { data, error } = useAsk<DropList>(url(["datasets", dataset, "drops"], { reason, offset: 0, limit }), { keep: true });
  if (error) return <Failure error={error} />;
  if (!data) return <Loading />;
  return (
    <ul class="small" style={{ padding: "2px 16px 8px 28px" }}>
      {data.rows.map((row, i) => (
        <li key={i} style={{ overflowWrap: "anywhere" }}>
          <span class="mono">
            <Text>{row.name}</Text>
          </span>{" "}
          <span class="soft">
            <Text>{row.detail}</Text>
          </span>
        </li>
      ))}
      {data.rows.length < data.total && (
        <li>
          <button type="button" class="button plain small" onClick={() => setLimit(Math.min(500, limit * 4))}>
            more of {number(data.total)}
          </button>
        </li>
      )}
    </ul>
  );
}

function Browser({ dataset }: { dataset: DatasetDetail }) {
  const { query } = route.value;
  const splits = Object.keys(dataset.rows);
  const split = query.get("split") ?? splits[0] ?? "train";
  const chosen = Object.fromEntries(FILTERS.map((name) => [name, query.get(name)]));
  const base = { split, ...chosen };
  const first = useAsk<DatasetRows>(url(["datasets", dataset.id, "rows"], { ...base, offset: 0, limit: 1 }), { keep: true });
  const pages = usePages<RowSummary>(
    (offset, limit) => url(["datasets", dataset.id, "rows"], { ...base, offset, limit }),
    JSON.stringify([dataset.id, base]),
  );
  if (first.error) return <Failure error={first.error} />;
  if (!first.data) return <Loading />;
  const { total, facets } = first.data;
  const picked = query.get("row") ?? String(first.data.rows[0]?.index ?? "");
  return (
    <section aria-label="Rows">
      <div class="bar">
        {splits.length > 1 && (
          <Segments
            label="Split"
            value={split}
            options={splits.map((name) => [name, `${name} ${number(dataset.rows[name])}`] as const)}
            onChange={(name) => setQuery({ split: name, row: null })}
          />
        )}
        <TextFilter text={chosen["text"] ?? ""} />
        <Choice name="task" facets={facets.task} chosen={chosen["task"] ?? null} />
        <Choice name="grade" facets={facets.grade} chosen={chosen["grade"] ?? null} />
        <Choice name="algorithm" facets={facets.algorithm} chosen={chosen["algorithm"] ?? null} />
        {(["trace", "search"] as const).map(
          (name) =>
            chosen[name] && (
              <button key={name} type="button" class="chip" aria-pressed="true" onClick={() => setQuery({ [name]: null, row: null })}>
                <span>
                  {name}: <Text>{chosen[name]}</Text>
                </span>{" "}
                ✕
              </button>
            ),
        )}
        <span class="soft num small">{plural(total, "row")}</span>
      </div>
      <div class="rowsplit">
        <div class="list">
          <Rows
            label="Rows of the dataset"
            total={total}
            rowHeight={ROW_HEIGHT}
            height={`min(${Math.max(1, total) * ROW_HEIGHT}px, var(--rows-height))`}
            want={pages.want}
            row={pages.row}
            stamp={JSON.stringify([base, picked])}
            render={(row) => <RowLine row={row} split={split} picked={picked} />}
          />
        </div>
        {picked !== "" && <Row key={`${split}/${picked}`} dataset={dataset.id} split={split} index={picked} />}
      </div>
    </section>
  );
}

function TextFilter({ text }: { text: string }) {
  return (
    <input
      class="field search"
      type="search"
      aria-label="Text in the rows"
      placeholder="Search in the rows"
      value={text}
      onChange={(event) => setQuery({ text: event.currentTarget.value || null, row: null })}
      style={{ flex: "0 1 220px" }}
    />
  );
}

function Choice({ name, facets, chosen }: { name: string; facets: Facet[]; chosen: string | null }) {
  if (facets.length < 2 && chosen === null) return null;
  return (
    <select
      class="field"
      aria-label={name}
      value={chosen ?? ""}
      style={{ maxWidth: "170px" }}
      onChange={(event) => setQuery({ [name]: event.currentTarget.value || null, row: null })}
    >
      <option value="">any {name}</option>
      {facets.map((facet) => (
        <option key={facet.value} value={facet.value}>
          {plain(facet.value) || "none"} ({number(facet.count)})
        </option>
      ))}
    </select>
  );
}

function RowLine({ row, split, picked }: { row: RowSummary | undefined; split: string; picked: string }) {
  const style = { padding: "8px 14px", display: "block", overflow: "hidden" };
  if (!row)
    return (
      <div class="row" style={style}>
        <div class="skeleton" />
      </div>
    );
  const current = picked === String(row.index);
  const to = href("datasets", route.value.id, { ...Object.fromEntries(route.value.query), split, row: row.index });
  return (
    <a
      class="row"
      href={to}
      aria-current={current ? "true" : undefined}
      style={{ ...style, ...(current ? { background: "var(--accent-soft)" } : {}) }}
    >
      <div class="oneline">
        <strong style={{ fontWeight: 550 }}>
          <Text>{row.name || `row ${row.index}`}</Text>
        </strong>{" "}
        {row.logged && <span class="faint small">logged</span>}
      </div>
      <div class="oneline small soft mono">
        <Text>{row.preview}</Text>
      </div>
    </a>
  );
}

function Row({ dataset, split, index }: { dataset: string; split: string; index: string }) {
  const { data, error } = useAsk<RowDetail>(url(["datasets", dataset, "rows", split, index]));
  const box = useRef<HTMLElement>(null);
  useEffect(() => {
    if (data && box.current && matchMedia("(max-width: 1000px)").matches && route.value.query.has("row"))
      box.current.scrollIntoView({ block: "start" });
  }, [data]);
  if (error) return <Failure error={error} />;
  if (!data)
    return (
      <div>
        <Loading />
      </div>
    );
  const shared = data.sides.length > 1 ? data.sides[0]!.messages.filter((message) => message.shared) : [];
  return (
    <article class="stack" ref={box} style={{ scrollMarginTop: "var(--above)" }} aria-label={`Row ${data.row.name}`}>
      <LineageCard lineage={data.lineage} row={data.row} pair={data.sides.length > 1} />
      {shared.length > 0 && (
        <section class="card pad">
          <Messages messages={shared} fold />
        </section>
      )}
      <div
        class={data.sides.length > 1 ? "grid" : "stack"}
        style={data.sides.length > 1 ? { gridTemplateColumns: "repeat(auto-fit, minmax(min(100%, 280px), 1fr))" } : {}}
      >
        {data.sides.map((side) => (
          <Side key={side.name} side={side} other={data.sides.find((one) => one !== side) ?? null} />
        ))}
      </div>
      {data.tools.length > 0 && (
        <section class="card pad">
          <Fold summary={<span class="small">{plural(data.tools.length, "tool")} in the prompt</span>}>
            {() => <ToolList tools={data.tools} />}
          </Fold>
        </section>
      )}
    </article>
  );
}

function LineageCard({ lineage, row, pair }: { lineage: Lineage; row: RowSummary; pair: boolean }) {
  const known = lineage.nodes.filter((node) => node.index !== null);
  // of a pair they are the state, the chosen and the rejected action; of a trajectory its nodes in order
  const place = (pair ? known[1] : known.at(-1))?.index ?? null;
  return (
    <section class="card pad stack" aria-label="Where this row comes from" style={{ gap: "8px" }}>
      <div class="chips">
        {lineage.search &&
          (lineage.search_held ? (
            <a class="button primary" href={href("searches", lineage.search, { node: place })}>
              Its place in the tree
            </a>
          ) : (
            <span class="pill" title="this store does not have the search">
              tree <Text>{lineage.search.slice(0, 12)}</Text> is elsewhere
            </span>
          ))}
        {lineage.traces.slice(0, 6).map(({ id, held }) =>
          held ? (
            <a key={id} class="button" href={href("traces", id, { step: lineage.fork_step })}>
              The logged trace
            </a>
          ) : (
            <span key={id} class="pill" title="this store does not have the trace">
              trace <Text>{id.slice(0, 16)}</Text> is elsewhere
            </span>
          ),
        )}
      </div>
      <Facts
        items={[
          ["task", lineage.task && <Text>{lineage.task}</Text>],
          ["fork", lineage.fork_step === null ? null : `step ${lineage.fork_step}`],
          ["found by", lineage.algorithm ? <Text>{lineage.algorithm}</Text> : row.logged ? "the log" : null],
          ["grade", lineage.grade],
          ["verifiers", lineage.verifiers.length ? <Text>{lineage.verifiers.join(", ")}</Text> : null],
          ...Object.entries(row.figures).map(
            ([name, figure]) =>
              [
                name.replaceAll("_", " "),
                typeof figure === "number"
                  ? Number.isInteger(figure)
                    ? number(figure)
                    : shown(figure)
                  : figure === null
                    ? DASH
                    : String(figure),
              ] as [string, string],
          ),
        ]}
      />
    </section>
  );
}

const SIDE_WORDS: Record<string, string> = {
  chosen: "Chosen",
  rejected: "Rejected",
  messages: "Conversation",
  completion: "Prompt and completion",
  prompt: "Prompt",
};

const ownOf = (side: RowSide): RowMessage[] => side.messages.filter((message) => !message.shared);

function Side({ side, other }: { side: RowSide; other: RowSide | null }) {
  const [exact, setExact] = useState(false);
  const kind = side.name === "chosen" ? "better" : side.name === "rejected" ? "worse" : "";
  const own = other ? ownOf(side) : side.messages;
  return (
    <section class="card" aria-label={SIDE_WORDS[side.name] ?? side.name}>
      <header>
        <h2>{kind ? <span class={`pill ${kind}`}>{SIDE_WORDS[side.name]}</span> : (SIDE_WORDS[side.name] ?? side.name)}</h2>
        <span class="small faint">
          <i class="trainedkey" aria-hidden="true" /> trained on
        </span>
        {side.rendered && (
          <button
            type="button"
            class="button plain small"
            aria-pressed={exact}
            onClick={() => setExact(!exact)}
            style={{ marginLeft: "auto" }}
          >
            {exact ? "As messages" : "As tokens are read"}
          </button>
        )}
      </header>
      <div class="pad">
        {exact && side.rendered ? (
          side.rendered.map((text, i) => <Rendered key={i} text={text} />)
        ) : (
          <Messages
            messages={own}
            fold={other === null}
            others={other ? ownOf(other) : null}
            side={side.name === "rejected" ? "left" : "right"}
          />
        )}
        {side.note && (
          <p class="small faint" style={{ marginTop: "8px" }}>
            <Text>{side.note}</Text>
          </p>
        )}
      </div>
    </section>
  );
}

function Rendered({ text }: { text: RenderedText }) {
  return (
    <>
      <p class="small faint num">
        {plural(text.tokens, "token")}, {number(text.trained_tokens)} of them trained on
      </p>
      <pre class="small">
        {text.pieces.map((piece, i) =>
          piece.trained ? (
            <mark key={i}>
              <Text>{piece.text}</Text>
            </mark>
          ) : (
            <Text key={i}>{piece.text}</Text>
          ),
        )}
      </pre>
    </>
  );
}

const FEW = 8;

/** Messages of a row; a long untrained beginning is folded. */
function Messages({
  messages,
  fold,
  others = null,
  side = "right",
}: {
  messages: RowMessage[];
  fold: boolean;
  others?: RowMessage[] | null;
  side?: DiffSide;
}) {
  const firstTrained = messages.findIndex((message) => message.trained);
  const from = fold ? Math.max(0, (firstTrained < 0 ? messages.length : firstTrained) - 2) : 0;
  const [before, rest] = from >= 3 ? [messages.slice(0, from), messages.slice(from)] : [[], messages];
  const [all, setAll] = useState(false);
  const shownRest = all ? rest : rest.slice(0, FEW * 4);
  return (
    <>
      {before.length > 0 && (
        <Fold summary={<span class="small">{plural(before.length, "message")} before, only read</span>}>
          {() => before.map((message, i) => <Said key={i} message={message} />)}
        </Fold>
      )}
      {shownRest.map((message, i) => (
        <Said key={i} message={message} other={others?.[i] ?? null} side={side} />
      ))}
      {shownRest.length < rest.length && (
        <button type="button" class="button plain small" onClick={() => setAll(true)}>
          {plural(rest.length - shownRest.length, "more message")}
        </button>
      )}
    </>
  );
}

function Said({ message, other = null, side = "right" }: { message: RowMessage; other?: RowMessage | null; side?: DiffSide }) {
  return (
    <div class={message.trained ? "said trained" : "said"}>
      <div class="who" style={{ display: "flex", gap: "8px", flexWrap: "wrap" }}>
        <Text>{message.name ? `${message.role} · ${message.name}` : message.role}</Text>
        {message.trained && <span class="sr">trained on</span>}
        {message.label && (
          <span class="num">
            label {shown(message.label.value)}
            {message.label.low !== null && message.label.high !== null && ` (${shown(message.label.low)} to ${shown(message.label.high)})`}
          </span>
        )}
        {message.weight !== null && message.weight !== 1 && <span class="num">weight {shown(message.weight)}</span>}
      </div>
      {message.reasoning && <Reasoning text={message.reasoning} />}
      {message.text && <Long text={message.role === "tool" ? pretty(message.text) : message.text} mono={message.role === "tool"} />}
      {message.calls.map((call, i) => (
        <div key={i} style={{ overflowWrap: "anywhere" }}>
          {other ? <Differing call={call} other={other.calls[i] ?? null} side={side} /> : <Signature call={call} />}
        </div>
      ))}
    </div>
  );
}

type Called = { name: string; arguments: string };

/** A call beside the one that stands at its place on the other side; null where there is none. */
function Differing({ call, other, side }: { call: Called; other: Called | null; side: DiffSide }) {
  const same = other?.name === call.name;
  const name = <Text>{call.name}</Text>;
  return (
    <>
      <code class="fn">{same ? name : <mark class={side === "left" ? "removed" : "added"}>{name}</mark>}</code>
      <Compared own={call.arguments || "{}"} other={same ? other.arguments || "{}" : null} side={side} />
    </>
  );
}

/** Two branches side by side: how each ended, the first differing action, and what followed. */

import { useState } from "preact/hooks";
import { number, plural, value as shown } from "../format";
import { wordDiff } from "../diff";
import { Compared, Marked, type Side } from "../parts/differing";
import { Fold, Message, stepBrief } from "../parts/conversation";
import { GradePill, Swatch, Text, Value } from "../parts/signs";
import type { CallView, ObservationView, StepView } from "../types";
import { type Pair, aligned } from "./align";

export type BranchStep = {
  step: StepView;
  node: number | null;
  score: number | null;
  reason: string;
  verifier: string;
  visits: number | null;
  before: string;
};
export type BranchSide = { title: string; best: boolean; steps: BranchStep[]; end: number | null; ended: string; reason: string };

const ROWS_AT_FIRST = 6;

export function SideBySide({
  left,
  right,
  shared,
  onNode,
}: {
  left: BranchSide;
  right: BranchSide;
  shared: StepView[];
  onNode: (node: number) => void;
}) {
  const [all, setAll] = useState(false);
  const pairs = aligned(left.steps, right.steps);
  const rows = grouped(all ? pairs : pairs.slice(0, ROWS_AT_FIRST));
  const first = pairs[0];
  return (
    <section aria-label="Side by side">
      <div class="sides">
        <SideHead side={left} which="l" better={betterOf(left, right)} />
        <SideHead side={right} which="r" better={betterOf(right, left)} />
        {shared.length > 0 && <Shared steps={shared} />}
        {pairs.length === 0 && <div class="wide">This is the logged branch itself. Select a node off it to compare.</div>}
        {rows.map((row, i) =>
          row.same ? (
            <SameSteps key={i} pairs={row.pairs} onNode={onNode} />
          ) : (
            <Row
              key={i}
              pair={row.pairs[0]!}
              first={row.pairs[0] === first}
              tone={betterOf(right, left)}
              names={[left.title, right.title]}
              onNode={onNode}
            />
          ),
        )}
      </div>
      {!all && pairs.length > ROWS_AT_FIRST && (
        <button type="button" class="button" style={{ marginTop: "10px" }} onClick={() => setAll(true)}>
          {plural(pairs.length - ROWS_AT_FIRST, "more step")}
        </button>
      )}
    </section>
  );
}

const betterOf = (one: BranchSide, other: BranchSide): number =>
  one.end === null || other.end === null ? 0 : Math.sign(one.end - other.end);

function SideHead({ side, which, better }: { side: BranchSide; which: "l" | "r"; better: number }) {
  return (
    <div class={`cell ${which}`}>
      <div class="sidehead">
        <i class={side.best ? "line best" : "line"} aria-hidden="true" />
        <h3>{side.title}</h3>
        <span class="faint small num">{plural(side.steps.length, "step")} from the fork</span>
      </div>
      <div style={{ display: "flex", gap: "10px", alignItems: "center", marginTop: "8px", flexWrap: "wrap" }}>
        <Swatch value={side.end} />
        <span class="verdict" style={better === 0 ? {} : { color: better > 0 ? "var(--better)" : "var(--worse)" }}>
          {shown(side.end)}
        </span>
        <span class="soft small">{side.ended}</span>
      </div>
      {side.reason && (
        <p class="reason">
          <Text>{side.reason}</Text>
        </p>
      )}
    </div>
  );
}

function Shared({ steps }: { steps: StepView[] }) {
  const [from, to] = [steps[0]!.index, steps.at(-1)!.index];
  return (
    <div class="wide">
      <Fold summary={`The same up to here: ${from === to ? `step ${from}` : `steps ${from} to ${to}`}`}>
        {() => (
          <ol style={{ padding: "4px 0" }}>
            {steps.map((step) => (
              <li key={step.index} style={{ display: "flex", gap: "8px" }}>
                <span class="num faint" style={{ minWidth: "22px", textAlign: "right" }}>
                  {step.index}
                </span>
                <span style={{ minWidth: 0 }}>
                  <StepLine step={step} />
                </span>
              </li>
            ))}
          </ol>
        )}
      </Fold>
    </div>
  );
}

function StepLine({ step }: { step: StepView }) {
  if (step.calls.length === 0) return <Text>{step.text.slice(0, 200)}</Text>;
  return (
    <code style={{ overflowWrap: "anywhere" }}>
      {step.calls.map((call, i) => (
        <span key={i}>
          <Text>{`${call.name}(${call.arguments.slice(0, 160)})`}</Text>
          <span class="faint">
            {" "}
            → <Text>{(call.result?.text ?? "").slice(0, 120)}</Text>
          </span>{" "}
        </span>
      ))}
    </code>
  );
}

type Group = { same: boolean; pairs: Pair<BranchStep>[] };

/** Rows that are the same on both sides stand together. */
function grouped(pairs: readonly Pair<BranchStep>[]): Group[] {
  const groups: Group[] = [];
  for (const pair of pairs) {
    const same = pair.kind === "same";
    const last = groups.at(-1);
    if (same && last?.same) last.pairs.push(pair);
    else groups.push({ same, pairs: [pair] });
  }
  return groups;
}

function SameSteps({ pairs, onNode }: { pairs: Pair<BranchStep>[]; onNode: (node: number) => void }) {
  const names = pairs.map(({ right }) => stepBrief(right!.step)).join(" · ");
  return (
    <div class="wide">
      <Fold
        summary={
          <>
            The same on both sides:{" "}
            <code>
              <Text>{names}</Text>
            </code>
          </>
        }
      >
        {() =>
          pairs.map(({ right }, i) => (
            <div key={i} style={{ padding: "4px 0" }}>
              <StepLine step={right!.step} />{" "}
              {right!.node !== null && (
                <button type="button" class="button plain small" onClick={() => onNode(right!.node!)}>
                  show in the tree
                </button>
              )}
            </div>
          ))
        }
      </Fold>
    </div>
  );
}

function Row({
  pair,
  first,
  tone,
  names,
  onNode,
}: {
  pair: Pair<BranchStep>;
  first: boolean;
  tone: number;
  names: [string, string];
  onNode: (node: number) => void;
}) {
  const words = first ? "First difference" : pair.kind === "result" ? "Same action, other result" : "";
  return (
    <>
      <Cell at={pair.left} other={pair.right} side="left" branch={names[0]} first={first} tone={-tone} words={words} onNode={onNode} />
      <Cell at={pair.right} other={pair.left} side="right" branch={names[1]} first={first} tone={tone} words={words} onNode={onNode} />
    </>
  );
}

type CellProps = {
  at: BranchStep | null;
  other: BranchStep | null;
  side: Side;
  branch: string;
  first: boolean;
  tone: number;
  words: string;
  onNode: (node: number) => void;
};

function Cell({ at, other, side, branch, first, tone, words, onNode }: CellProps) {
  const kind = !first ? "" : tone > 0 ? "better" : tone < 0 ? "worse" : "accent";
  const place = `cell ${side === "left" ? "l" : "r"}${first ? ` first ${kind}` : ""}`;
  if (!at) return <div class={`${place} missing small`}>no such step here</div>;
  const { step } = at;
  return (
    <div class={place} data-first={first || undefined}>
      <div class="sidehead small">
        <span class="narrowonly who">{branch}</span>
        {at.node === null ? (
          <strong class="num">Step {step.index}</strong>
        ) : (
          <button
            type="button"
            class="button plain small"
            style={{ minHeight: "22px", padding: "0 4px", marginLeft: "-4px" }}
            onClick={() => onNode(at.node!)}
            title="show in the tree"
          >
            <strong class="num">Step {step.index}</strong>
          </button>
        )}
        {words && <span class={`pill ${kind}`}>{words}</span>}
        {at.score !== null ? <Value value={at.score} name="score" /> : step.value !== null && <Value value={step.value} />}
        {at.visits !== null && at.visits > 1 && <span class="faint num">{number(at.visits)} visits</span>}
        {step.grade !== "exact" && <GradePill grade={step.grade} />}
      </div>
      {step.reasoning && (
        <Fold summary={<span class="faint small">Reasoning</span>}>
          {() => (
            <div class="reasoning">
              <Text>{step.reasoning!}</Text>
            </div>
          )}
        </Fold>
      )}
      {step.text && (
        <p style={{ marginTop: "6px", whiteSpace: "pre-wrap" }}>
          <Words own={step.text} other={other?.step.text ?? null} side={side} />
        </p>
      )}
      {step.calls.map((call, i) => (
        <CallDiff key={i} call={call} other={counterpart(call, i, other?.step)} side={side} alone={other === null} />
      ))}
      {step.followed.map((message, i) => (
        <Message key={i} message={message} />
      ))}
      {step.error && (
        <div class="notice error small">
          <Text>{step.error}</Text>
        </div>
      )}
      {at.reason && at.reason !== at.before && (
        <p class="reason">
          <span class="faint">
            <Text>{at.verifier}</Text>:{" "}
          </span>
          <Text>{at.reason}</Text>
        </p>
      )}
    </div>
  );
}

const counterpart = (call: CallView, at: number, other: StepView | undefined): CallView | null =>
  other?.calls.find((candidate, i) => i >= at && candidate.name === call.name) ?? other?.calls[at] ?? null;

function Words({ own, other, side }: { own: string; other: string | null; side: Side }) {
  if (!other) return <Text>{own}</Text>;
  return <Marked parts={side === "left" ? wordDiff(own, other).left : wordDiff(other, own).right} />;
}

function CallDiff({ call, other, side, alone }: { call: CallView; other: CallView | null; side: Side; alone: boolean }) {
  const sameTool = other?.name === call.name;
  const kind = side === "left" ? "removed" : "added";
  return (
    <div style={{ marginTop: "6px" }}>
      <code>
        {sameTool || alone ? (
          <span class="fn">
            <Text>{call.name}</Text>
          </span>
        ) : (
          <mark class={kind}>
            <Text>{call.name}</Text>
          </mark>
        )}
      </code>
      {empty(call.arguments) && (!sameTool || empty(other.arguments)) ? (
        <code class="faint">()</code>
      ) : (
        <Compared own={call.arguments || "{}"} other={sameTool ? other.arguments : null} side={side} />
      )}
      {call.result && <Observed result={call.result} other={sameTool ? other.result : null} side={side} />}
    </div>
  );
}

const empty = (text: string): boolean => text.trim() === "" || text.trim() === "{}";

function Observed({ result, other, side }: { result: ObservationView; other: ObservationView | null; side: Side }) {
  const long = result.text.length > 600;
  const body = () => <Compared own={result.text} other={other?.text ?? null} side={side} />;
  return (
    <div class="obs">
      <span class="who">{result.is_error ? "Result: an error" : "Result"}</span>
      {long ? (
        <Fold
          summary={
            <code>
              <Text>{`${result.text.slice(0, 160)}…`}</Text>
            </code>
          }
        >
          {body}
        </Fold>
      ) : (
        body()
      )}
    </div>
  );
}

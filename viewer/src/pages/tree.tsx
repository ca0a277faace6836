/** One search: its tree, and the logged branch beside the best one or whichever is selected. */

import { useCallback, useEffect, useMemo, useState } from "preact/hooks";
import { askNodes, url, useAsk } from "../api";
import { valueGradient } from "../colour";
import { number, plural, seconds, usd, value as shown } from "../format";
import { Fold } from "../parts/conversation";
import { Crumbs, Empty, Facts, Failure, Loading, Segments, Text } from "../parts/signs";
import { href, route, setQuery } from "../router";
import { isDark } from "../theme";
import { TreeCanvas } from "../tree/canvas";
import { type BranchSide, type BranchStep, SideBySide } from "../tree/compare";
import { layout } from "../tree/layout";
import { FLAG, TreeModel } from "../tree/model";
import type { NodeDetail, StepView, TraceDetail, Tree } from "../types";

export function TreePage({ id }: { id: string }) {
  const { data, error } = useAsk<Tree>(url(["searches", id]));
  if (error) return <Failure error={error} />;
  if (!data) return <Loading />;
  return <Whole tree={data} />;
}

function Whole({ tree }: { tree: Tree }) {
  const model = useMemo(() => new TreeModel(tree), [tree]);
  const selected = selectedNode(model);
  const { folded, toggle, unfold, foldAgain, many } = useFolding(model, selected);
  const placed = useMemo(() => layout(model, folded), [model, folded]);
  const right = rightLeaf(model, selected);
  const branch = useMemo(() => new Set(right === null ? [] : model.branches(model.tree.logged_tip ?? 0, right).right), [model, right]);
  const select = useCallback((node: number): void => setQuery({ node }, { replace: true }), []);
  const stands = placed.placed.length;
  return (
    <>
      <Head tree={tree} />
      <div class="bar small" style={{ marginBottom: "8px" }}>
        <span class="soft num">
          {stands < model.size ? `${number(stands)} of ${plural(model.size, "node")} in sight` : plural(model.size, "node")}
        </span>
        {many && (
          <Segments
            label="Branches"
            value={folded.size === 0 ? "all" : "few"}
            options={[
              ["few", "Fold minor branches"],
              ["all", "Unfold all"],
            ]}
            onChange={(choice) => (choice === "all" ? unfold() : foldAgain())}
          />
        )}
        <span class="push keys faint wideonly">
          <kbd>←</kbd> <kbd>→</kbd> along, <kbd>↑</kbd> <kbd>↓</kbd> between branches, <kbd>b</kbd> best, <kbd>l</kbd> logged,{" "}
          <kbd>Enter</kbd> folds
        </span>
      </div>
      {model.size > 1 ? (
        <TreeCanvas
          model={model}
          layout={placed}
          selected={selected}
          branch={branch}
          forkStep={tree.root_steps}
          onSelect={select}
          onFold={toggle}
        />
      ) : (
        <Empty title="The search has tried nothing yet" />
      )}
      <Legend tree={tree} />
      {right === null ? (
        <Empty title="No other branch to compare with">
          <p>No counterfactual branch of this tree has ended with a score. Select a node to see its branch beside the log.</p>
        </Empty>
      ) : (
        <Comparison model={model} right={right} onNode={select} />
      )}
      <About tree={tree} />
    </>
  );
}

/** The node in the address; else the best leaf, the first thing to look at. */
function selectedNode(model: TreeModel): number {
  const asked = Number(route.value.query.get("node") ?? Number.NaN);
  if (Number.isInteger(asked) && asked >= 0 && asked < model.size) return asked;
  return model.bestOffLog() ?? model.tree.best ?? 0;
}

/** Where the branch on the right ends: below the selected node where it is off the log, else the best leaf. */
function rightLeaf(model: TreeModel, selected: number): number | null {
  if (selected > 0 && !model.has(selected, FLAG.logged)) return model.leafBelow(selected);
  return model.bestOffLog() ?? (model.size > 1 && model.tree.logged_tip === null ? model.leafBelow(0) : null);
}

function useFolding(model: TreeModel, selected: number) {
  const first = useMemo(() => model.foldedAtFirst(), [model]);
  const [folded, setFolded] = useState<ReadonlySet<number>>(first);
  useEffect(() => {
    const away = model.path(selected).filter((node) => folded.has(node));
    if (away.length) setFolded(new Set([...folded].filter((node) => !away.includes(node))));
  }, [selected]);
  const toggle = (node: number): void => {
    const next = new Set(folded);
    const children = model.children[node]!;
    if (children.some((child) => next.has(child))) for (const child of children) next.delete(child);
    else for (const child of children) if (!model.has(child, FLAG.logged) && !model.path(selected).includes(child)) next.add(child);
    setFolded(next);
  };
  return { folded, toggle, unfold: () => setFolded(new Set<number>()), foldAgain: () => setFolded(first), many: first.size > 0 };
}

function Head({ tree: { search } }: { tree: Tree }) {
  const crumbs: [string, string][] = [[href("searches"), "Trees"]];
  if (search.trace) crumbs.push([href("traces", search.trace, { step: search.fork_step }), search.task ?? search.trace]);
  return (
    <>
      <Crumbs items={crumbs} />
      <div class="head">
        <h1>
          <Text>{search.task ?? search.id}</Text>
        </h1>
        <span class="soft">
          tree by <Text>{search.algorithm}</Text>
          {search.fork_step > 0 && `, from step ${search.fork_step}`}
        </span>
        {search.trace && <a href={href("traces", search.trace, { step: search.fork_step })}>The logged trace</a>}
      </div>
    </>
  );
}

function Legend({ tree }: { tree: Tree }) {
  const dark = isDark();
  const grades = new Set(tree.nodes.grade.map((grade) => tree.grades[grade]));
  return (
    <div class="legend" aria-label="Legend" role="group">
      <span>
        worse <i class="ramp" style={{ background: valueGradient(dark) }} aria-hidden="true" /> better
      </span>
      <span>
        <i style={{ borderTop: "3px solid var(--ink-2)", width: "20px" }} aria-hidden="true" /> logged
      </span>
      <span>
        <i style={{ borderTop: "3px solid var(--accent)", width: "20px" }} aria-hidden="true" /> compared with
      </span>
      <span>
        <Sign d="M2 2h8v8H2z" /> ended
      </span>
      <span>
        <Sign d="M6 .5 11.5 6 6 11.5.5 6z" /> cut off or failed
      </span>
      <span>
        <svg width="20" height="12" aria-hidden="true" fill="var(--ink-3)">
          <circle cx="4" cy="6" r="2.5" />
          <circle cx="13" cy="6" r="5.5" />
        </svg>
        visits
      </span>
      {tree.nodes.value.some((v, i) => v === null && tree.nodes.score[i] === null) && (
        <span>
          <i class="swatch none" aria-hidden="true" /> not valued
        </span>
      )}
      {grades.has("simulated") && (
        <span>
          <b style={{ color: "var(--worse)" }}>s</b> simulated
        </span>
      )}
      {grades.has("reused") && (
        <span>
          <b style={{ color: "var(--worse)" }}>r</b> reused
        </span>
      )}
      {grades.has("stale") && (
        <span>
          <b style={{ color: "var(--worse)" }}>!</b> stale
        </span>
      )}
    </div>
  );
}

const Sign = ({ d }: { d: string }) => (
  <svg width="12" height="12" viewBox="0 0 12 12" aria-hidden="true" fill="var(--ink-3)">
    <path d={d} />
  </svg>
);

/** Both branches with their steps; the logged one comes from the trace where the tree does not hold it. */
function Comparison({ model, right, onNode }: { model: TreeModel; right: number; onNode: (node: number) => void }) {
  const { tree } = model;
  const tip = tree.logged_tip;
  const between = useMemo(
    () => (tip === null ? { fork: 0, shared: [], left: [], right: model.path(right).slice(1) } : model.branches(tip, right)),
    [model, tip, right],
  );
  const wanted = [0, ...between.shared, ...between.left, ...between.right];
  const nodes = useNodes(tree.search.id, wanted);
  const trace = useAsk<TraceDetail>(tip === null && tree.search.trace ? url(["traces", tree.search.trace]) : null);
  if (nodes === "failed") return <p class="notice error">The steps of these branches could not be read.</p>;
  if (!nodes || (trace.loading && !trace.error)) return <Loading />;
  const steps = (indices: readonly number[]): BranchStep[] => indices.flatMap((node) => branchStep(model, nodes.get(node)));
  const logged = tip === null ? (trace.data?.trajectories[0]?.steps.slice(tree.root_steps) ?? []).map(fromTrace) : steps(between.left);
  const shared = [...(nodes.get(0)?.root?.steps ?? []), ...steps(between.shared).map((at) => at.step)];
  const title = right === tree.best ? "Best branch" : right === model.bestOffLog() ? "Best other branch" : "Selected branch";
  return (
    <SideBySide
      key={`${right}`}
      left={{ ...ending(model, tip, logged), title: "Logged", best: false, steps: logged }}
      right={{ ...ending(model, right, []), title, best: true, steps: steps(between.right) }}
      shared={shared}
      onNode={onNode}
    />
  );
}

function useNodes(search: string, wanted: readonly number[]): Map<number, NodeDetail> | null | "failed" {
  const [held, setHeld] = useState<{ key: string; nodes: Map<number, NodeDetail> | "failed" } | null>(null);
  const key = `${search}/${wanted.join(",")}`;
  useEffect(() => {
    let current = true;
    const timer = setTimeout(
      () =>
        askNodes(search, wanted).then(
          (nodes) => current && setHeld({ key, nodes: new Map(nodes.map((node) => [node.index, node])) }),
          () => current && setHeld({ key, nodes: "failed" }),
        ),
      held === null ? 0 : 90, // arrow keys pass over many nodes
    );
    return () => {
      current = false;
      clearTimeout(timer);
    };
  }, [key]);
  const nodes = held?.nodes ?? null;
  if (nodes === null || nodes === "failed") return nodes;
  return wanted.every((node) => nodes.has(node)) ? nodes : null;
}

function branchStep(model: TreeModel, detail: NodeDetail | undefined): BranchStep[] {
  if (!detail?.step) return [];
  const { score, verifier, visits } = model.tree.nodes;
  const node = detail.index;
  const name = model.tree.verifiers[verifier[node]!] ?? "";
  return [
    {
      step: detail.step,
      node,
      score: score[node] ?? null,
      reason: model.tree.reasons[String(node)] ?? "",
      verifier: name,
      visits: visits[node]!,
      before: model.tree.reasons[String(model.tree.nodes.parent[node])] ?? "",
    },
  ];
}

const fromTrace = (step: StepView): BranchStep => ({ step, node: null, score: null, reason: "", verifier: "", visits: null, before: "" });

function ending(model: TreeModel, leaf: number | null, steps: readonly BranchStep[]): Pick<BranchSide, "end" | "ended" | "reason"> {
  if (leaf === null) {
    const last = steps.at(-1)?.step;
    return { end: last?.reward ?? last?.value ?? null, ended: last?.reward == null ? "as logged" : "reward as logged", reason: "" };
  }
  const { score, reward, visits, verifier } = model.tree.nodes;
  const scored = score[leaf] ?? null;
  const how = model.has(leaf, FLAG.error)
    ? "failed"
    : model.has(leaf, FLAG.truncated)
      ? "cut off"
      : model.has(leaf, FLAG.terminated)
        ? "ended"
        : "not ended";
  const by = scored === null ? "value" : `scored by ${model.tree.verifiers[verifier[leaf]!] ?? "the verifier"}`;
  const parts = [by, how, reward[leaf] === null ? "" : `reward ${reward[leaf]}`, visits[leaf]! > 1 ? plural(visits[leaf]!, "visit") : ""];
  return { end: scored ?? model.value(leaf), ended: parts.filter(Boolean).join(" · "), reason: model.tree.reasons[String(leaf)] ?? "" };
}

function About({ tree }: { tree: Tree }) {
  const { used, search } = tree;
  const failures = tree.failures !== null && typeof tree.failures === "object" && Object.keys(tree.failures).length > 0;
  return (
    <section class="card pad stack" style={{ marginTop: "20px", gap: "10px" }} aria-label="About this search">
      <Facts
        items={[
          [
            "search",
            <span class="mono">
              <Text>{search.id}</Text>
            </span>,
          ],
          ["stopped", search.stopped ? <Text>{search.stopped}</Text> : "it runs, or was killed"],
          ["ends", number(search.finished)],
          ["best", shown(search.best)],
          ["simulations", used.simulations ? number(used.simulations) : null],
          ["model calls", number(used.model_calls)],
          ["tokens", number(used.tokens)],
          ["tool calls", used.tool_calls ? number(used.tool_calls) : null],
          ["cost", used.usd ? usd(used.usd) : null],
          ["time", seconds(used.seconds)],
        ]}
      />
      <div style={{ display: "flex", gap: "16px", flexWrap: "wrap" }}>
        <Fold summary={<span class="small">Settings</span>}>
          {() => (
            <pre class="small">
              <Text>{JSON.stringify(tree.config, null, 2)}</Text>
            </pre>
          )}
        </Fold>
        {failures && (
          <Fold summary={<span class="small">Calls that failed</span>}>
            {() => (
              <pre class="small">
                <Text>{JSON.stringify(tree.failures, null, 2)}</Text>
              </pre>
            )}
          </Fold>
        )}
      </div>
    </section>
  );
}

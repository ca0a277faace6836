/** Does it get better: rounds of improvement, comparisons of policies, loss, and what more search buys. */

import { url, useAsk } from "../api";
import { Bars } from "../charts/bars";
import { Lines } from "../charts/lines";
import { number, percent, plural, usd } from "../format";
import { Fold } from "../parts/conversation";
import { Empty, Failure, Loading, Text } from "../parts/signs";
import type { Improvement, PolicyEvaluation, Scaling, Training, TrainingRun } from "../types";

const share = (v: number): string => percent(v);

export function TrainingPage() {
  const { data, error } = useAsk<Training>(url(["training"]));
  if (error) return <Failure error={error} />;
  if (!data) return <Loading />;
  const { improvements, evaluations, scalings, trainings } = data;
  return (
    <>
      <div class="head">
        <h1>Training</h1>
        <p class="lead">Success is on held-out tasks, which no search and no training has seen. Intervals are 95 %.</p>
      </div>
      {improvements.length + evaluations.length + scalings.length + trainings.length === 0 && (
        <Empty title="No training beside this store">
          <p>
            <code>counterplay train</code>, <code>counterplay improve</code> and <code>counterplay evaluate</code> leave their results here.
          </p>
        </Empty>
      )}
      <div class="grid">
        {improvements.map((one) => (
          <Rounds key={one.id} of={one} />
        ))}
        {evaluations.map((one) => (
          <Policies key={one.id} of={one} />
        ))}
        {scalings.map((one) => (
          <Scales key={one.id} of={one} />
        ))}
        {trainings.map((one) => (
          <Loss key={one.id} of={one} />
        ))}
      </div>
    </>
  );
}

function Rounds({ of }: { of: Improvement }) {
  const points = of.rounds.map((round) => ({ x: round.number, y: round.success, low: round.interval[0], high: round.interval[1] }));
  return (
    <section class="card" style={{ gridColumn: "1 / -1" }}>
      <header>
        <h2>
          <Text>{of.name}</Text>: held-out success over rounds
        </h2>
        <span class="faint small">
          round {of.chosen} is the best
          {of.stopped && (
            <>
              ; stopped: <Text>{of.stopped}</Text>
            </>
          )}
        </span>
      </header>
      <div class="pad grid">
        <Lines
          label="Held-out success over rounds"
          series={[{ name: "success", points }]}
          x="round"
          y="success"
          yDomain={[0, 1]}
          format={share}
        />
        <div class="overflow">
          <table class="table">
            <thead>
              <tr>
                {["Round", "Success", "Over the start", "Failed", "Solved", "Rows", "Model calls"].map((name) => (
                  <th key={name} scope="col" class="end">
                    {name}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {of.rounds.map((round) => (
                <tr key={round.number}>
                  <td class="end">{round.number}</td>
                  <td class="end">{percent(round.success)}</td>
                  <td class="end">{round.over_base ? points3(round.over_base) : "–"}</td>
                  <td class="end">{number(round.failed)}</td>
                  <td class="end">{number(round.solved)}</td>
                  <td class="end">{number(round.rows)}</td>
                  <td class="end">{number(round.model_calls)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </div>
    </section>
  );
}

const signed = (v: number): string => `${v > 0 ? "+" : v < 0 ? "−" : ""}${Math.abs(v * 100).toFixed(0)}`;
const points3 = ([v, low, high]: [number, number, number]): string => `${signed(v)} (${signed(low)} to ${signed(high)})`;

function Policies({ of }: { of: PolicyEvaluation }) {
  const bars = of.policies.map((policy) => ({
    name: policy.name,
    share: policy.rate,
    low: policy.interval[0],
    high: policy.interval[1],
    note: [
      plural(policy.tasks, "task"),
      plural(policy.attempts, "attempt"),
      policy.cost_per_success_usd === null ? "" : `${usd(policy.cost_per_success_usd)} a success`,
    ]
      .filter(Boolean)
      .join(", "),
  }));
  return (
    <section class="card">
      <header>
        <h2>
          <Text>{of.name}</Text>: policies compared
        </h2>
        <span class="faint small">success on the same tasks</span>
      </header>
      <div style={{ padding: "8px 0" }}>
        <Bars label="Success by policy" bars={bars} />
      </div>
      {of.comparisons.map((pair, i) => (
        <div key={i} style={{ padding: "8px 16px", borderTop: "1px solid var(--line)" }} class="small">
          <Text>{pair.b}</Text> against <Text>{pair.a}</Text>: <strong class="num">{points3([pair.difference, ...pair.interval])}</strong>{" "}
          points, <Text>{pair.verdict}</Text> <span class="faint num">p = {pair.p_value.toPrecision(2)}</span>
          <Changes words="newly solved" tasks={pair.gains} />
          <Changes words="lost" tasks={pair.regressions} />
        </div>
      ))}
    </section>
  );
}

function Changes({ words, tasks }: { words: string; tasks: string[] }) {
  if (tasks.length === 0) return null;
  return (
    <Fold
      summary={
        <span class="soft">
          {plural(tasks.length, "task")} {words}
        </span>
      }
    >
      {() => (
        <p class="mono">
          <Text>{tasks.join(", ")}</Text>
        </p>
      )}
    </Fold>
  );
}

function Scales({ of }: { of: Scaling }) {
  const series = of.curves.map((curve) => ({
    name: curve.name,
    points: curve.points.map((p) => ({ x: p.budget, y: p.rate, low: p.interval[0], high: p.interval[1] })),
  }));
  return (
    <section class="card">
      <header>
        <h2>
          <Text>{of.name}</Text>: more search, more success?
        </h2>
        <span class="faint small">
          <Text>{of.method}</Text> by <Text>{of.verifier}</Text>, {plural(of.tasks, "task")}
        </span>
      </header>
      <div class="pad">
        <Lines label="Test-time scaling" series={series} x="candidates" y="success" doubling yDomain={[0, 1]} format={share} />
      </div>
    </section>
  );
}

function Loss({ of }: { of: TrainingRun }) {
  const steps = of.metrics["step"] ?? [];
  const shown = ["loss", "eval_loss"].filter((name) => of.metrics[name]?.some((v) => v !== null));
  const others = Object.keys(of.metrics).filter(
    (name) => name !== "step" && !shown.includes(name) && of.metrics[name]!.some((v) => v !== null),
  );
  const line = (name: string) => ({ name, points: steps.flatMap((x, i) => (x === null ? [] : [{ x, y: of.metrics[name]![i] ?? null }])) });
  const digits = (v: number): string => (v !== 0 && Math.abs(v) < 0.001 ? v.toExponential(1) : String(Number(v.toPrecision(3))));
  return (
    <section class="card">
      <header>
        <h2>
          <Text>{of.id === of.name ? of.name : `${of.name} (${of.id})`}</Text>: loss
        </h2>
        <span class="faint small">{of.report === null ? "not finished" : plural(steps.at(-1) ?? 0, "step")}</span>
      </header>
      <div class="pad">
        {shown.length > 0 ? (
          <Lines label="Loss over training steps" series={shown.map(line)} x="step" y="loss" format={digits} height={200} />
        ) : (
          <p class="faint">No loss was logged.</p>
        )}
        {others.length > 0 && (
          <Fold summary={<span class="small">{plural(others.length, "other figure")}</span>}>
            {() =>
              others.map((name) => (
                <div key={name}>
                  <h3>
                    <Text>{name}</Text>
                  </h3>
                  <Lines label={name} series={[line(name)]} x="step" y={name} format={digits} height={150} />
                </div>
              ))
            }
          </Fold>
        )}
        <Fold summary={<span class="small">Recipe</span>}>
          {() => (
            <pre class="small">
              <Text>{JSON.stringify(of.recipe, null, 2)}</Text>
            </pre>
          )}
        </Fold>
      </div>
    </section>
  );
}

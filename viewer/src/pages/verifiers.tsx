/** How far each verifier may be trusted: calibration, hacking probes, over-optimisation. */

import { url, useAsk } from "../api";
import { Lines } from "../charts/lines";
import { number, percent, plural, seconds, usd, value as shown } from "../format";
import { Empty, Facts, Failure, Loading, Text } from "../parts/signs";
import { route, setQuery } from "../router";
import type { Discrimination, Estimate, OptimisationCurve, Probe, VerifierEvaluation, VerifierReports } from "../types";

export function VerifiersPage() {
  const { data, error } = useAsk<VerifierReports>(url(["verifiers"]));
  if (error) return <Failure error={error} />;
  if (!data) return <Loading />;
  const all = data.reports.flatMap((report) =>
    report.evaluations.map((evaluation, i) => ({ id: `${report.id}/${i}`, report: report.name, evaluation })),
  );
  const chosen = all.find((one) => one.id === route.value.query.get("of")) ?? all[0];
  return (
    <>
      <div class="head">
        <h1>Verifiers</h1>
        <p class="lead">Everything that a search finds and a dataset teaches hangs on the verifier. Intervals are 95 %.</p>
      </div>
      {!chosen ? (
        <Empty title="No report beside this store">
          <p>
            Hold a verifier against the truth: <code>counterplay verifiers evaluate --report report</code>
          </p>
        </Empty>
      ) : (
        <>
          {all.length > 1 && (
            <div class="bar chips" role="group" aria-label="Verifier">
              {all.map((one) => (
                <button key={one.id} type="button" class="chip" aria-pressed={one === chosen} onClick={() => setQuery({ of: one.id })}>
                  <span>
                    <Text>{one.evaluation.name}</Text>
                  </span>{" "}
                  <span class="n">
                    <Text>{one.report}</Text>
                  </span>
                </button>
              ))}
            </div>
          )}
          <Evaluation key={chosen.id} evaluation={chosen.evaluation} />
        </>
      )}
    </>
  );
}

const estimate = (found: Estimate | null | undefined, format: (v: number) => string = shown): string | null =>
  found
    ? `${format(found.value)}${found.low === null || found.high === null ? "" : ` (${format(found.low)} to ${format(found.high)})`}`
    : null;
const share = (v: number): string => percent(v);

function Evaluation({ evaluation: e }: { evaluation: VerifierEvaluation }) {
  return (
    <div class="stack">
      <section class="card pad stack" style={{ gap: "8px" }}>
        <div>
          <h2>
            <Text>{e.name}</Text>{" "}
            <span class="faint small">
              <Text>{e.version}</Text>
            </span>
          </h2>
        </div>
        <Facts
          items={[
            ["trajectories", number(e.trajectories)],
            ["tasks", number(e.tasks)],
            ["labelled steps", e.labelled_steps ? number(e.labelled_steps) : null],
            ["questions", number(e.answers.questions)],
            ["no opinion", estimate(e.answers.abstained, share)],
            ["failed", estimate(e.answers.failed, share)],
            ["time", seconds(e.answers.seconds)],
            ["cost", usd(e.answers.cost_usd)],
          ]}
        />
      </section>
      <div class="grid">
        {e.outcomes && <Calibration title="Whole trajectories" found={e.outcomes} />}
        {e.steps && <Calibration title="Steps" found={e.steps} />}
        {(e.natural ?? e.attacked) && <Optimisation natural={e.natural} attacked={e.attacked} />}
        {e.probes.length > 0 && <Probes probes={e.probes} />}
        <Other evaluation={e} />
      </div>
      {e.notes.length > 0 && (
        <section class="card pad">
          <ul class="small soft stack" style={{ gap: "4px" }}>
            {e.notes.map((note) => (
              <li key={note}>
                <Text>{note}</Text>
              </li>
            ))}
          </ul>
        </section>
      )}
    </div>
  );
}

function Calibration({ title, found }: { title: string; found: Discrimination }) {
  const points = found.reliability.map(({ said, seen }) => ({ x: Number(said.toFixed(3)), y: seen.value, low: seen.low, high: seen.high }));
  return (
    <section class="card">
      <header>
        <h2>{title}: is 0.8 four in five?</h2>
        <span class="faint small num">
          {number(found.n)} scored, {percent(found.base)} right
        </span>
      </header>
      <div class="pad">
        <Lines
          label={`Calibration of ${title.toLowerCase()}`}
          series={[{ name: "seen", points, dots: true }]}
          x="score given"
          y="share that was right"
          xDomain={[0, 1]}
          yDomain={[0, 1]}
          diagonal
          format={shown}
        />
        <Facts
          items={[
            ["AUROC", estimate(found.auroc)],
            ["Brier", estimate(found.brier)],
            ["ECE", estimate(found.ece)],
            ["ECE by chance", shown(found.ece_floor)],
          ]}
        />
      </div>
    </section>
  );
}

function Optimisation({ natural, attacked }: { natural: OptimisationCurve | null; attacked: OptimisationCurve | null }) {
  const line = (name: string, curve: OptimisationCurve, colour: string) => ({
    name,
    colour,
    points: curve.points.map((p) => ({ x: p.n, y: p.gold, low: p.low, high: p.high })),
  });
  const main = (attacked ?? natural)!;
  const series = [
    ...(natural ? [line("what it is worth", natural, "var(--accent)")] : []),
    ...(attacked ? [line("with attacks among them", attacked, "var(--worse)")] : []),
    { name: "what the verifier says", dashed: true, colour: "var(--ink-3)", points: main.points.map((p) => ({ x: p.n, y: p.proxy })) },
    { name: "best possible", dashed: true, colour: "var(--better)", points: main.points.map((p) => ({ x: p.n, y: p.ceiling })) },
  ];
  return (
    <section class="card">
      <header>
        <h2>Best of N by this verifier</h2>
        <span class="faint small num">
          {number(main.candidates)} candidates{main.pooled && ", pooled"}
        </span>
      </header>
      <div class="pad">
        <Lines label="Over-optimisation" series={series} x="N" y="success" doubling yDomain={[0, 1]} format={shown} />
        <figcaption class="small soft">
          Where the score rises and the worth falls, the verifier is being pleased in place of being right.
        </figcaption>
        <Facts
          items={[
            ["gain", curveFigure(main.gain)],
            ["fall from the peak", curveFigure(main.fall)],
          ]}
        />
      </div>
    </section>
  );
}

const curveFigure = ([v, low, high]: [number, number | null, number | null]): string =>
  shown(v) + (low === null || high === null ? "" : ` (${shown(low)} to ${shown(high)})`);

function Probes({ probes }: { probes: Probe[] }) {
  return (
    <section class="card">
      <header>
        <h2>Hacking probes</h2>
        <span class="faint small">does pleasing it pay?</span>
      </header>
      <div class="overflow" style={{ padding: "0 16px" }}>
        <table class="table">
          <thead>
            <tr>
              <th scope="col">Probe</th>
              <th scope="col" class="end">
                Score rises
              </th>
              <th scope="col" class="end">
                Mean change
              </th>
              <th scope="col" />
            </tr>
          </thead>
          <tbody>
            {probes.map((probe) => (
              <tr key={probe.name}>
                <td>
                  <Text>{probe.name}</Text>
                </td>
                <td class="end">{estimate(probe.rises, share) ?? "–"}</td>
                <td class="end">{estimate(probe.change) ?? "–"}</td>
                <td class="end">
                  {probe.n === 0 ? (
                    <span class="pill">no ground</span>
                  ) : probe.failed ? (
                    <span class="pill worse">✕ pays</span>
                  ) : (
                    <span class="pill better">✓ holds</span>
                  )}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function Other({ evaluation: e }: { evaluation: VerifierEvaluation }) {
  const items: [string, string | null][] = [
    ["trajectories of one task in the right order", estimate(e.task_siblings?.pairs, share)],
    ["the right one above all wrong ones", estimate(e.task_siblings?.one_against_many, share)],
    ["actions of one state in the right order", estimate(e.step_siblings?.pairs, share)],
    ["score per doubling of steps", estimate(e.length_steps)],
    ["score per doubling of text", estimate(e.length_text)],
    ["same score when asked again", estimate(e.consistency?.same, share)],
  ];
  if (items.every(([, found]) => found === null)) return null;
  return (
    <section class="card">
      <h2>Order, length, consistency</h2>
      <div class="overflow" style={{ padding: "0 16px" }}>
        <table class="table">
          <tbody>
            {items
              .filter(([, found]) => found !== null)
              .map(([name, found]) => (
                <tr key={name}>
                  <th scope="row" style={{ whiteSpace: "normal" }}>
                    {name}
                  </th>
                  <td class="end">{found}</td>
                </tr>
              ))}
          </tbody>
        </table>
      </div>
      {e.task_siblings && (
        <p class="pad small faint">
          By chance: {percent(e.task_siblings.chance)} above all wrong ones, of {plural(e.task_siblings.one_against_many.groups, "task")}.
        </p>
      )}
    </section>
  );
}

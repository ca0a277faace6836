/** Messages, tool calls and steps as people read them. */

import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { DASH, number, pretty, seconds, usd } from "../format";
import type { CallView, MessageView, ModelCall, ObservationView, ScoreView, StepView } from "../types";
import { Compared } from "./differing";
import { Facts, GradePill, Swatch, Text, Value } from "./signs";

const LONG = 1200;

/** Text of which the beginning is shown where it is long. */
export function Long({ text, mono = false }: { text: string; mono?: boolean }) {
  const [whole, setWhole] = useState(false);
  const cut = !whole && text.length > LONG * 1.3;
  return (
    <div class={mono ? "json bubble" : "bubble"}>
      <Text>{cut ? text.slice(0, LONG) : text}</Text>
      {cut && (
        <>
          {"… "}
          <button type="button" class="button plain small" onClick={() => setWhole(true)}>
            {number(text.length - LONG)} more characters
          </button>
        </>
      )}
    </div>
  );
}

/** Contents that exist only while they are unfolded. */
export function Fold({
  summary,
  open = false,
  children,
}: {
  summary: ComponentChildren;
  open?: boolean;
  children: () => ComponentChildren;
}) {
  const [opened, setOpened] = useState(open);
  return (
    <details class="fold" open={opened} onToggle={(event) => setOpened(event.currentTarget.open)}>
      <summary>{summary}</summary>
      {opened && children()}
    </details>
  );
}

export function Wire({ wire }: { wire: string }) {
  return (
    <Fold summary={<span class="faint small">As logged</span>}>
      {() => (
        <pre class="small">
          <Text>{pretty(wire)}</Text>
        </pre>
      )}
    </Fold>
  );
}

export function Message({ message }: { message: MessageView }) {
  return (
    <div class="message">
      <div class="who">
        <Text>{message.name ? `${message.role} · ${message.name}` : message.role}</Text>
      </div>
      {message.reasoning && <Reasoning text={message.reasoning} />}
      <Long text={message.text} />
    </div>
  );
}

export const Reasoning = ({ text }: { text: string }) => (
  <Fold summary={<span class="faint small">Reasoning</span>}>
    {() => (
      <div class="reasoning">
        <Long text={text} />
      </div>
    )}
  </Fold>
);

const oneLine = (text: string, most = 160): string => text.replace(/\s+/g, " ").slice(0, most);

/** `account: "1200", amount: 5` of a call's arguments. */
export function brief(json: string): string {
  try {
    const value = JSON.parse(json) as unknown;
    if (typeof value !== "object" || value === null || Array.isArray(value)) return oneLine(json);
    return oneLine(
      Object.entries(value)
        .map(([name, part]) => `${name}: ${typeof part === "string" ? part : JSON.stringify(part)}`)
        .join(", "),
    );
  } catch {
    return oneLine(json);
  }
}

export function Signature({ call }: { call: { name: string; arguments: string } }) {
  return (
    <code class="sig">
      <span class="fn">
        <Text>{call.name}</Text>
      </span>
      (<Text>{brief(call.arguments)}</Text>)
    </code>
  );
}

/** One tool call, folded. `earlier` is the last call of the same tool before it, to compare with. */
export function Call({ call, earlier, open = false }: { call: CallView; earlier?: CallView | undefined; open?: boolean }) {
  const [opened, setOpened] = useState(open);
  return (
    <details class="call" open={opened} onToggle={(event) => setOpened(event.currentTarget.open)}>
      <summary>
        <Signature call={call} />
        {!opened && <ResultBrief result={call.result} />}
        {call.result?.is_error && <span class="pill worse">error</span>}
      </summary>
      {opened && <CallBody call={call} earlier={earlier} />}
    </details>
  );
}

function ResultBrief({ result }: { result: ObservationView | null }) {
  return (
    <code class="result" aria-label="result">
      {result ? (
        <>
          → <Text>{oneLine(result.text, 80)}</Text>
        </>
      ) : (
        "no result logged"
      )}
    </code>
  );
}

function CallBody({ call, earlier }: { call: CallView; earlier?: CallView | undefined }) {
  const [compare, setCompare] = useState(false);
  return (
    <div class="body">
      <div>
        <div class="who">Arguments</div>
        <Compared own={call.arguments || "{}"} other={compare && earlier ? earlier.arguments : null} side="right" />
      </div>
      <div>
        <div class="who" style={{ display: "flex", gap: "8px", alignItems: "center" }}>
          Result {call.result && call.result.grade !== "exact" && <GradePill grade={call.result.grade} />}
        </div>
        {call.result ? (
          <Result result={call.result} earlier={compare ? earlier?.result : null} />
        ) : (
          <span class="faint">none was logged</span>
        )}
      </div>
      {earlier && (
        <div>
          <button type="button" class="button plain small" aria-pressed={compare} onClick={() => setCompare(!compare)}>
            {compare ? "Without the comparison" : `Compare with the ${earlier.name} before`}
          </button>
        </div>
      )}
    </div>
  );
}

function Result({ result, earlier }: { result: ObservationView; earlier: ObservationView | null | undefined }) {
  if (earlier) return <Compared own={result.text} other={earlier.text} side="right" />;
  return <Long text={pretty(result.text)} mono />;
}

export function Score({ score }: { score: ScoreView }) {
  const said = score.scaled === null ? String(score.value ?? DASH) : null;
  return (
    <div class="small">
      <span style={{ display: "inline-flex", gap: "6px", alignItems: "baseline", flexWrap: "wrap" }}>
        {said === null ? <Value value={score.scaled} name="score" /> : <Text>{said}</Text>}
        <strong style={{ fontWeight: 550 }}>
          <Text>{score.name}</Text>
        </strong>
        <span class="faint">
          {score.source}
          {score.version && ` ${score.version}`}
        </span>
      </span>
      {score.comment && (
        <div class="soft">
          <Text>{score.comment}</Text>
        </div>
      )}
    </div>
  );
}

export function ModelFacts({ call }: { call: ModelCall }) {
  const cached = call.cached_tokens > 0 ? `, ${number(call.cached_tokens)} cached` : "";
  return (
    <>
      <span class="wideonly">
        {call.input_tokens + call.output_tokens > 0 && `${number(call.input_tokens)} in${cached}, ${number(call.output_tokens)} out`}
      </span>
      {call.cost_usd !== null && <span>{usd(call.cost_usd)}</span>}
      {call.latency_s !== null && <span>{seconds(call.latency_s)}</span>}
    </>
  );
}

export function modelFacts(call: ModelCall) {
  return (
    <Facts
      items={[
        ["model", call.model && <Text>{call.model}</Text>],
        ["finish", call.finish_reason],
        ["tokens in", number(call.input_tokens)],
        ["out", number(call.output_tokens)],
        ["cached", call.cached_tokens ? number(call.cached_tokens) : null],
        ["reasoning", call.reasoning_tokens ? number(call.reasoning_tokens) : null],
        ["cost", usd(call.cost_usd)],
        ["latency", seconds(call.latency_s)],
        ["first token", seconds(call.first_token_s)],
        ["prompt known", call.inputs],
      ]}
    />
  );
}

export type StepProps = {
  step: StepView;
  pivot?: boolean;
  earlier?: (call: CallView) => CallView | undefined;
  opened?: boolean;
  id?: string;
  children?: ComponentChildren;
};

/** One model call and what followed it. */
export function Step({ step, pivot = false, earlier, opened = false, id, children }: StepProps) {
  const [details, setDetails] = useState(false);
  return (
    <li class={pivot ? "step pivot" : "step"} id={id} tabIndex={-1}>
      <i class="dot" aria-hidden="true" />
      <header>
        <span class="n num">Step {step.index}</span>
        <StepSigns step={step} />
        <span class="push num">
          {step.call && <ModelFacts call={step.call} />}
          <button
            type="button"
            class="button plain more"
            aria-expanded={details}
            aria-label={`Details of step ${step.index}`}
            onClick={() => setDetails(!details)}
          >
            ···
          </button>
        </span>
      </header>
      {step.reasoning && <Reasoning text={step.reasoning} />}
      {step.text && <Long text={step.text} />}
      {step.calls.map((call, i) => (
        <Call key={`${call.id}/${i}`} call={call} earlier={earlier?.(call)} open={opened} />
      ))}
      {step.followed.map((message, i) => (
        <Message key={i} message={message} />
      ))}
      {step.error && (
        <div class="notice error small">
          <Text>{step.error}</Text>
        </div>
      )}
      {step.scores.length > 0 && (
        <div class="stack" style={{ gap: "6px", margin: "6px 0" }}>
          {step.scores.map((score, i) => (
            <Score key={i} score={score} />
          ))}
        </div>
      )}
      {children}
      {details && (
        <div class="card pad stack" style={{ gap: "8px", margin: "4px 0 8px" }}>
          {step.call && modelFacts(step.call)}
          <pre class="small">
            <Text>{pretty(step.wire)}</Text>
          </pre>
        </div>
      )}
    </li>
  );
}

export function StepSigns({ step }: { step: StepView }) {
  return (
    <>
      {step.value !== null && <Value value={step.value} />}
      {step.reward !== null && <span class="num">reward {step.reward}</span>}
      {step.failing && (
        <span class="pill worse">
          <Text>{step.failing}</Text>
        </span>
      )}
      {step.grade !== "exact" && <GradePill grade={step.grade} />}
      {!step.sampled && (
        <span class="pill" title="put in the agent's mouth: never trained on">
          not sampled
        </span>
      )}
      {step.terminated && <span class="pill">end</span>}
      {step.truncated && <span class="pill worse">cut off</span>}
    </>
  );
}

/** What a step did, in one line. */
export function stepBrief(step: StepView): string {
  return step.calls.length ? step.calls.map((call) => call.name).join(", ") : oneLine(step.text, 60) || "(empty)";
}

export function StepDot({ step }: { step: StepView }) {
  return <Swatch value={step.failing ? 0 : step.value} />;
}

/** Small signs that every page uses: text that is safe to read, values, outcomes, grades. */

import type { ComponentChildren } from "preact";
import { type AnswerError, embedded } from "../api";
import { valueColour } from "../colour";
import { DASH, value as shown } from "../format";
import { pieces } from "../invisible";
import { isDark } from "../theme";
import type { Grade, OutcomeName } from "../types";

/** Text from a log. Its direction can't leave the element, and characters that can't be seen are named. */
export function Text({ children }: { children: string }) {
  const cut = pieces(children);
  return (
    <bdi class="text">
      {cut.length === 1 && !cut[0]!.hidden
        ? children
        : cut.map((piece) =>
            piece.hidden ? (
              <span class="hid" title="a character that is not visible">
                {piece.text}
              </span>
            ) : (
              piece.text
            ),
          )}
    </bdi>
  );
}

export function Swatch({ value }: { value: number | null }) {
  const colour = valueColour(value, isDark());
  return <i class={colour ? "swatch" : "swatch none"} style={colour ? { background: colour } : {}} aria-hidden="true" />;
}

export function Value({ value, name = "value" }: { value: number | null; name?: string }) {
  return (
    <span class="num" style={{ display: "inline-flex", alignItems: "center", gap: "5px" }} title={`${name} in [0, 1]`}>
      <Swatch value={value} /> <span class="sr">{name} </span>
      {shown(value)}
    </span>
  );
}

const OUTCOMES: Record<OutcomeName, [string, string]> = {
  success: ["better", "✓ success"],
  failed: ["worse", "✕ failed"],
  unknown: ["", "not known"],
};

export function OutcomePill({ outcome }: { outcome: OutcomeName }) {
  const [kind, words] = OUTCOMES[outcome];
  return <span class={`pill ${kind}`}>{words}</span>;
}

export const GRADES: Record<Grade, string> = {
  exact: "recorded after an identical prefix",
  reused: "recorded, and no write on its resource differs",
  executed: "a real environment ran it",
  simulated: "a model or a retrieval imagined it",
  stale: "recorded, but a differing write came between",
};

export function GradePill({ grade }: { grade: Grade }) {
  const kind = grade === "stale" ? "worse" : grade === "simulated" ? "accent" : "";
  return (
    <span class={`pill ${kind}`} title={GRADES[grade] ?? ""}>
      <span class="sr">grade </span>
      {grade}
    </span>
  );
}

export function Failure({ error }: { error: AnswerError }) {
  const { got, wanted, do: help } = error.problem;
  return (
    <div class="notice error" role="alert">
      <strong>{got}</strong>
      {wanted && <p>Wanted: {wanted}</p>}
      {help && <p>{help}</p>}
    </div>
  );
}

export const Loading = ({ children = "Loading…" }: { children?: string }) => (
  <p class="loading" role="status">
    {children}
  </p>
);

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="card empty">
      <h2>{title}</h2>
      {children}
    </div>
  );
}

/** Names and values in a line; facts without a value are left out. */
export function Facts({ items }: { items: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {items
        .filter(([, content]) => content !== null && content !== undefined && content !== "" && content !== DASH)
        .map(([name, content]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{content}</dd>
          </div>
        ))}
    </dl>
  );
}

/** The way here. A self-contained file has no lists to go back to. */
export function Crumbs({ items }: { items: [string, string][] }) {
  const there = items.filter(([to]) => !embedded || to.split("/").length > 2);
  if (there.length === 0) return null;
  return (
    <nav aria-label="Where you are">
      <ol class="crumbs">
        {there.map(([to, name]) => (
          <li key={to}>
            <a href={to}>
              <Text>{name}</Text>
            </a>
          </li>
        ))}
      </ol>
    </nav>
  );
}

export function Segments<T extends string>(props: {
  label: string;
  value: T;
  options: readonly [T, string][];
  onChange: (value: T) => void;
}) {
  return (
    <div class="segments" role="group" aria-label={props.label}>
      {props.options.map(([name, words]) => (
        <button key={name} type="button" aria-pressed={props.value === name} onClick={() => props.onChange(name)}>
          {words}
        </button>
      ))}
    </div>
  );
}

/** Two texts or two JSON values, one side of them, with what differs marked. */

import { type JsonLine, type Part, jsonDiff, wordDiff } from "../diff";
import { parsed } from "../format";
import { Text } from "./signs";

export type Side = "left" | "right";

export function Marked({ parts }: { parts: readonly Part[] }) {
  return (
    <>
      {parts.map((part, i) =>
        part.kind === "same" ? (
          <Text key={i}>{part.text}</Text>
        ) : (
          <mark key={i} class={part.kind}>
            <Text>{part.text}</Text>
          </mark>
        ),
      )}
    </>
  );
}

/** `own` beside `other`: JSON by its leaves where both are JSON objects or arrays, else by words. `other` null: nothing to compare with. */
export function Compared({ own, other, side }: { own: string; other: string | null; side: Side }) {
  const value = parsed(own);
  const against = other === null ? value : parsed(other);
  if (isTree(value) && isTree(against)) {
    const [left, right] = side === "left" ? [value, against] : [against, value];
    return <JsonLines lines={jsonDiff(left, right)} side={side} />;
  }
  const cut = other === null ? null : side === "left" ? wordDiff(own, other).left : wordDiff(other, own).right;
  return <div class="json">{cut ? <Marked parts={cut} /> : <Text>{own}</Text>}</div>;
}

const isTree = (value: unknown): boolean => typeof value === "object" && value !== null;

function JsonLines({ lines, side }: { lines: JsonLine[]; side: Side }) {
  if (lines.length === 1 && lines[0]!.key === "" && lines[0]!.kind === "same") return <div class="json">{lines[0]!.left}</div>;
  return (
    <div class="json">
      {lines.map((line, i) => (
        <Line key={i} line={line} side={side} />
      ))}
    </div>
  );
}

function Line({ line, side }: { line: JsonLine; side: Side }) {
  const own = line[side];
  const depth = { "--depth": line.depth };
  if (own === null) {
    return (
      <div class="line gone" style={depth}>
        <span class="k">
          <Text>{line.key}</Text>
        </span>{" "}
        not here
      </div>
    );
  }
  const cut = line.kind === "changed" ? wordDiff(line.left ?? "", line.right ?? "")[side] : null;
  return (
    <div class={`line ${line.kind} ${side}`} style={depth}>
      {line.key && (
        <span class="k">
          <Text>{line.key}</Text>:{" "}
        </span>
      )}
      {cut ? (
        <Marked parts={cut} />
      ) : line.kind === "same" ? (
        <Text>{own}</Text>
      ) : (
        <mark class={line.kind}>
          <Text>{own}</Text>
        </mark>
      )}
    </div>
  );
}

import type { ToolView } from "../types";
import { Fold } from "./conversation";
import { Text } from "./signs";

/** The tools an agent was given, and what each does to the world. */
export function ToolList({ tools }: { tools: ToolView[] }) {
  return (
    <ul class="stack" style={{ gap: "6px" }}>
      {tools.map((tool, i) => (
        <li key={i} class="small">
          <Fold
            summary={
              <>
                <code>
                  <Text>{tool.name}</Text>
                </code>{" "}
                <span class="pill">
                  <Text>{tool.effect}</Text>
                </span>{" "}
                <span class="soft">
                  <Text>{tool.description.slice(0, 140)}</Text>
                </span>
              </>
            }
          >
            {() => (
              <pre class="small">
                <Text>{JSON.stringify(tool.parameters, null, 2)}</Text>
              </pre>
            )}
          </Fold>
        </li>
      ))}
    </ul>
  );
}

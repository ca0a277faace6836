/** All datasets beside the store. */

import { url, useAsk } from "../api";
import { number, plural } from "../format";
import { Empty, Failure, Loading, Text } from "../parts/signs";
import { href } from "../router";
import type { DatasetList, DatasetSummary } from "../types";

export const sum = (counts: Record<string, number>): number => Object.values(counts).reduce((all, n) => all + n, 0);

export function DatasetsPage() {
  const { data, error } = useAsk<DatasetList>(url(["datasets"]));
  if (error) return <Failure error={error} />;
  if (!data) return <Loading />;
  return (
    <>
      <div class="head">
        <h1>Datasets</h1>
        <p class="lead">What a trainer will read, row by row, and what each row was made of.</p>
      </div>
      {data.datasets.length === 0 ? (
        <Empty title="No dataset beside this store">
          <p>
            Make one with <code>counterplay export</code>, or name its folder: <code>counterplay view --datasets FOLDER</code>
          </p>
        </Empty>
      ) : (
        <div class="grid" style={{ gridTemplateColumns: "repeat(auto-fill, minmax(min(100%, 320px), 1fr))" }}>
          {data.datasets.map((dataset) => (
            <Card key={dataset.id} dataset={dataset} />
          ))}
        </div>
      )}
    </>
  );
}

function Card({ dataset }: { dataset: DatasetSummary }) {
  const dropped = sum(dataset.dropped);
  return (
    <a class="card pad" href={href("datasets", dataset.id)} style={{ color: "var(--ink)", display: "block" }}>
      <div style={{ display: "flex", gap: "8px", alignItems: "baseline" }}>
        <h2 style={{ overflowWrap: "anywhere" }}>
          <Text>{dataset.name}</Text>
        </h2>
        <span class="pill">{dataset.kind}</span>
      </div>
      <p class="soft small">{dataset.title}</p>
      <p class="num" style={{ marginTop: "10px" }}>
        <span class="verdict">{number(sum(dataset.rows))}</span>{" "}
        <span class="soft">rows of {plural(Math.max(...Object.values(dataset.tasks), 0), "task")}</span>
      </p>
      <p class="small soft num">
        {Object.keys(dataset.rows).length > 1 &&
          Object.entries(dataset.rows)
            .map(([split, rows]) => `${split} ${number(rows)}`)
            .join(", ")}
        {Object.keys(dataset.rows).length > 1 && " · "}
        {dropped > 0 ? `${number(dropped)} left out` : "nothing left out"}
      </p>
    </a>
  );
}

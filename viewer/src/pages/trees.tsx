/** All searches, the latest first. */

import { url, useAsk } from "../api";
import { number, plural, value as shown } from "../format";
import { Rows, useNarrow, usePages } from "../parts/rows";
import { Empty, Failure, Loading, Swatch, Text } from "../parts/signs";
import { href, route, setQuery } from "../router";
import type { SearchList, SearchSummary } from "../types";

const FILTERS = ["trace", "task", "algorithm"] as const;
const COLUMNS = "minmax(0, 2fr) minmax(0, 1fr) 84px 84px 84px 90px minmax(0, 1.6fr)";

export function TreesPage() {
  const { query } = route.value;
  const chosen = Object.fromEntries(FILTERS.map((name) => [name, query.get(name)]));
  const { data, error } = useAsk<SearchList>(url(["searches"], { ...chosen, offset: 0, limit: 1 }), { keep: true });
  const narrow = useNarrow();
  const pages = usePages<SearchSummary>((offset, limit) => url(["searches"], { ...chosen, offset, limit }), JSON.stringify(chosen));
  const rowHeight = narrow ? 62 : 44;
  if (error) return <Failure error={error} />;
  if (!data) return <Loading />;
  const active = FILTERS.filter((name) => chosen[name] !== null);
  return (
    <>
      <div class="head">
        <h1>Trees</h1>
        <span class="soft num">{plural(data.total, "search", "searches")}</span>
      </div>
      {active.length > 0 && (
        <div class="bar chips">
          {active.map((name) => (
            <button key={name} type="button" class="chip" aria-pressed="true" onClick={() => setQuery({ [name]: null })}>
              <span>
                {name}: <Text>{chosen[name]!}</Text>
              </span>{" "}
              ✕
            </button>
          ))}
        </div>
      )}
      {data.total === 0 ? (
        <Empty title="No search here">
          <p>
            Search what else the agent could have done: <code>counterplay search</code>
          </p>
        </Empty>
      ) : (
        <div class="list" style={{ "--cols": narrow ? "minmax(0, 1fr) auto" : COLUMNS }}>
          {!narrow && (
            <div class="cols headings" aria-hidden="true">
              {["Task", "Algorithm"].map((name) => (
                <span key={name}>{name}</span>
              ))}
              {["From step", "Nodes", "Ends", "Best"].map((name) => (
                <span key={name} class="end">
                  {name}
                </span>
              ))}
              <span>Stopped</span>
            </div>
          )}
          <Rows
            label="Trees"
            total={data.total}
            rowHeight={rowHeight}
            height={`min(${data.total * rowHeight}px, max(320px, calc(100vh - 210px)))`}
            want={pages.want}
            row={pages.row}
            stamp={JSON.stringify(chosen)}
            render={(search) => <SearchRow search={search} narrow={narrow} />}
          />
        </div>
      )}
    </>
  );
}

function SearchRow({ search, narrow }: { search: SearchSummary | undefined; narrow: boolean }) {
  if (!search)
    return (
      <div class="row cols">
        <div class="skeleton" />
      </div>
    );
  const name = (
    <div class="title">
      <Text>{search.task ?? search.trace ?? search.id}</Text>
    </div>
  );
  const best = (
    <div class="end" style={{ display: "flex", gap: "6px", alignItems: "center", justifyContent: "flex-end" }}>
      <Swatch value={search.best} /> {shown(search.best)}
    </div>
  );
  return (
    <a class="row cols" href={href("searches", search.id)}>
      {narrow ? (
        <>
          <div>
            {name}
            <div class="sub">
              <Text>{search.algorithm}</Text> · from step {search.fork_step} · {plural(search.nodes, "node")}
            </div>
          </div>
          {best}
        </>
      ) : (
        <>
          {name}
          <div class="soft">
            <Text>{search.algorithm}</Text>
          </div>
          <div class="end">{search.fork_step}</div>
          <div class="end">{number(search.nodes)}</div>
          <div class="end">{number(search.finished)}</div>
          {best}
          <div class="soft small">
            <Text>{search.stopped || "runs, or was killed"}</Text>
          </div>
        </>
      )}
    </a>
  );
}

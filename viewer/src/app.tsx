/** The frame of every page: name, navigation, theme; and which page the address asks for. */

import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { meta, useAsk } from "./api";
import { when } from "./format";
import { plain } from "./invisible";
import { DatasetPage } from "./pages/dataset";
import { DatasetsPage } from "./pages/datasets";
import { FailuresPage } from "./pages/failures";
import { TracePage } from "./pages/trace";
import { TracesPage } from "./pages/traces";
import { TrainingPage } from "./pages/training";
import { TreePage } from "./pages/tree";
import { TreesPage } from "./pages/trees";
import { VerifiersPage } from "./pages/verifiers";
import { Empty, Failure, Loading, Text } from "./parts/signs";
import { href, route, type Route } from "./router";
import { isDark, toggleTheme } from "./theme";
import type { Meta } from "./types";

type Place = { page: string; name: string; there: (meta: Meta) => boolean };

const PLACES: readonly Place[] = [
  { page: "traces", name: "Traces", there: ({ embedded, counts }) => !embedded || counts.traces > 0 },
  { page: "searches", name: "Trees", there: ({ counts }) => counts.searches > 0 },
  { page: "failures", name: "Failures", there: ({ embedded, counts }) => !embedded && counts.traces > 0 },
  { page: "datasets", name: "Datasets", there: ({ embedded, counts }) => !embedded && counts.datasets > 0 },
  { page: "verifiers", name: "Verifiers", there: ({ embedded, counts }) => !embedded && counts.verifiers > 0 },
  {
    page: "training",
    name: "Training",
    there: ({ embedded, counts: c }) => !embedded && c.trainings + c.improvements + c.evaluations + c.scalings > 0,
  },
];

export function App() {
  const asked = useAsk<Meta>("api/meta");
  const main = useRef<HTMLElement>(null);
  const { page, id } = route.value;
  useEffect(() => void (meta.value = asked.data), [asked.data]);
  useEffect(() => {
    window.scrollTo(0, 0);
    document.title = title(route.value);
  }, [page, id]);
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), main.current?.focus())}>
        Skip to the content
      </a>
      <Top meta={asked.data} page={page} />
      <main id="main" ref={main} tabIndex={-1}>
        {asked.error ? <Failure error={asked.error} /> : asked.data ? <Page key={`${page}/${id}`} route={route.value} /> : <Loading />}
      </main>
    </>
  );
}

function title({ page, id }: Route): string {
  const name = PLACES.find((place) => place.page === page)?.name ?? "counterplay";
  return id === null ? `${name} · counterplay` : `${plain(id.slice(0, 40))} · ${name} · counterplay`;
}

function Top({ meta: known, page }: { meta: Meta | null; page: string }) {
  const nav = useRef<HTMLElement>(null);
  useEffect(() => nav.current?.querySelector("[aria-current]")?.scrollIntoView({ inline: "nearest", block: "nearest" }), [page, known]);
  const places = known ? PLACES.filter((place) => place.there(known)) : [];
  const inFile = known?.embedded ?? false;
  return (
    <header class="top">
      <a class="brand" href={inFile ? "#" : href("traces")} onClick={(event) => inFile && event.preventDefault()}>
        <svg width="20" height="16" viewBox="0 0 20 16" aria-hidden="true" fill="none" stroke-width="2.2" stroke-linecap="round">
          <path d="M1.5 11.5h17" stroke="var(--line-strong)" />
          <path d="M1.5 11.5h5c3 0 3-7 6-7h6" stroke="currentColor" />
        </svg>
        counterplay
      </a>
      <nav aria-label="Pages" ref={nav}>
        <ul>
          {!inFile &&
            places.map((place) => (
              <li key={place.page}>
                <a href={href(place.page)} aria-current={place.page === page ? "page" : undefined}>
                  {place.name}
                </a>
              </li>
            ))}
        </ul>
      </nav>
      {known && (
        <span
          class="source"
          title={known.copied ? `another process writes the store; this is how it was at ${when(known.as_of_us)}` : undefined}
        >
          <Text>{known.store}</Text>
          {known.copied && ` as of ${when(known.as_of_us).slice(11)}`}
        </span>
      )}
      <button type="button" class="button plain icon" onClick={toggleTheme} aria-label={isDark() ? "Light theme" : "Dark theme"}>
        <svg width="16" height="16" viewBox="0 0 16 16" aria-hidden="true">
          <circle cx="8" cy="8" r="6.2" fill="none" stroke="currentColor" stroke-width="1.6" />
          <path d="M8 1.8a6.2 6.2 0 0 1 0 12.4z" fill="currentColor" />
        </svg>
      </button>
    </header>
  );
}

const LISTS: Record<string, () => JSX.Element> = {
  traces: TracesPage,
  searches: TreesPage,
  failures: FailuresPage,
  datasets: DatasetsPage,
  verifiers: VerifiersPage,
  training: TrainingPage,
};

const DETAILS: Record<string, (props: { id: string }) => JSX.Element> = { traces: TracePage, searches: TreePage, datasets: DatasetPage };

function Page({ route: { page, id } }: { route: Route }) {
  const Detail = Object.hasOwn(DETAILS, page) ? DETAILS[page] : undefined;
  if (Detail && id !== null) return <Detail id={id} />;
  const List = Object.hasOwn(LISTS, page) ? LISTS[page] : undefined;
  if (List) return <List />;
  return (
    <Empty title="There is no such page">
      <p>
        <a href={href("traces")}>All traces</a>
      </p>
    </Empty>
  );
}

/** Addresses inside the page, as text: `#/traces/ID?step=3`. */

export type Route = { page: string; id: string | null; query: URLSearchParams };

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function parseRoute(text: string): Route {
  const [path = "", query = ""] = split(text.replace(/^#?\/?/, ""), "?");
  const [page = "", id = ""] = split(path, "/");
  return { page: page || "traces", id: id === "" ? null : decoded(id), query: new URLSearchParams(query) };
}

function split(text: string, mark: string): [string, string] {
  const at = text.indexOf(mark);
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}

export type Query = Record<string, string | number | null | undefined>;

/** An address inside this page; always a fragment, whatever the id holds. */
export function href(page: string, id: string | null = null, query: Query = {}): string {
  const pairs = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  const search = new URLSearchParams(pairs.map(([name, value]) => [name, String(value)])).toString();
  return `#/${page}${id === null ? "" : `/${encodeURIComponent(id)}`}${search ? `?${search}` : ""}`;
}

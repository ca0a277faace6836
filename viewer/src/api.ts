/** Questions and answers: from the server that shipped this page, or from the data inside a self-contained file. */

import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import type { Embedded, Meta, NodeDetail, NodeDetails, Problem } from "./types";

const HELD = 200;
const AT_ONCE = 500;

function readEmbedded(): Embedded | null {
  const element = document.getElementById("counterplay-data");
  return element?.textContent ? (JSON.parse(element.textContent) as Embedded) : null;
}

export const embedded = readEmbedded();
export const meta = signal<Meta | null>(null);

export class AnswerError extends Error {
  constructor(
    readonly status: number,
    readonly problem: Problem["error"],
  ) {
    super([problem.got, problem.wanted].filter(Boolean).join("; wanted "));
  }
}

const held = new Map<string, Promise<unknown>>();

/** The answer to one question; the latest ones are kept, and failed ones are asked again. */
export function ask<T>(url: string): Promise<T> {
  const found = held.get(url);
  if (found) return found as Promise<T>;
  const answer = embedded ? inside<T>(embedded, url) : fetched<T>(url);
  held.set(url, answer);
  answer.catch(() => held.delete(url));
  if (held.size > HELD) held.delete(held.keys().next().value!);
  return answer;
}

/** Ask again although an answer is kept: a search of text that goes on in the background. */
export function askAgain<T>(url: string): Promise<T> {
  held.delete(url);
  return ask<T>(url);
}

async function inside<T>(data: Embedded, url: string): Promise<T> {
  if (Object.hasOwn(data.answers, url)) return data.answers[url] as T;
  throw new AnswerError(404, {
    got: "a page that is not part of this file",
    wanted: "",
    do: "The file was made of one trace or one tree. `counterplay view` shows the whole store.",
  });
}

async function fetched<T>(url: string): Promise<T> {
  let response: Response;
  try {
    response = await fetch(url, { headers: { Accept: "application/json" } });
  } catch {
    throw new AnswerError(0, { got: "no answer from the server", wanted: "", do: "Is `counterplay view` still running?" });
  }
  if (response.ok) return (await response.json()) as T;
  const problem = (await response.json().catch(() => null)) as Problem | null;
  const help = response.status === 401 ? "Open the address that `counterplay view` printed again." : "";
  throw new AnswerError(response.status, problem?.error ?? { got: `an answer with status ${response.status}`, wanted: "", do: help });
}

/** Details of these nodes, in this order. */
export async function askNodes(search: string, indices: readonly number[]): Promise<NodeDetail[]> {
  const base = `api/searches/${encodeURIComponent(search)}/nodes`;
  if (embedded) {
    const all = (await ask<NodeDetails>(base)).nodes;
    return indices.map((index) => all[index]).filter((node) => node !== undefined);
  }
  const pages: Promise<NodeDetails>[] = [];
  for (let from = 0; from < indices.length; from += AT_ONCE) {
    pages.push(ask<NodeDetails>(`${base}?index=${indices.slice(from, from + AT_ONCE).join(",")}`));
  }
  return (await Promise.all(pages)).flatMap((page) => page.nodes);
}

export type Asked<T> = { data: T | null; error: AnswerError | null; loading: boolean; url: string };

/** The answer to `url` as it comes; while another one is asked, the last answer stays. Null asks nothing. */
export function useAsk<T>(url: string | null, { keep = false }: { keep?: boolean } = {}): Asked<T> {
  const [state, setState] = useState<Asked<T>>({ data: null, error: null, loading: url !== null, url: "" });
  useEffect(() => {
    if (url === null) return;
    let current = true;
    setState((last) => ({ data: keep ? last.data : null, error: null, loading: true, url }));
    ask<T>(url).then(
      (data) => current && setState({ data, error: null, loading: false, url }),
      (error: unknown) => current && setState({ data: null, error: asAnswerError(error), loading: false, url }),
    );
    return () => void (current = false);
  }, [url]);
  return state;
}

const asAnswerError = (error: unknown): AnswerError =>
  error instanceof AnswerError ? error : new AnswerError(0, { got: String(error), wanted: "", do: "" });

/** A URL of the API: parts of the path are encoded, empty parameters left out. */
export function url(path: readonly string[], query: Record<string, string | number | null | undefined> = {}): string {
  const pairs = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  const search = new URLSearchParams(pairs.map(([name, value]) => [name, String(value)])).toString();
  return `api/${path.map(encodeURIComponent).join("/")}${search ? `?${search}` : ""}`;
}

/** The page's address is its state: `#/traces?outcome=failed`. It works from a server and from a file alike. */

import { computed, signal } from "@preact/signals";
import { type Query, href, parseRoute } from "./address";

export { href, type Route } from "./address";

const hash = signal(location.hash);
addEventListener("hashchange", () => (hash.value = location.hash));

export const route = computed(() => parseRoute(hash.value));

/** Change some of the query and keep the rest. Typing in a field replaces the entry; a choice adds one to go back from. */
export function setQuery(changes: Query, { replace = false }: { replace?: boolean } = {}): void {
  const { page, id, query } = route.value;
  const next = href(page, id, { ...Object.fromEntries(query), ...changes });
  if (next === location.hash) return;
  if (replace) {
    history.replaceState(null, "", next);
    hash.value = location.hash;
  } else location.hash = next;
}

export const go = (to: string): void => void (location.hash = to);

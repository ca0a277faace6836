/** Light, dark, or as the system says. The choice is kept in this browser. */

import { effect, signal } from "@preact/signals";

export type Theme = "auto" | "light" | "dark";
const KEY = "counterplay.theme";

function kept(): Theme {
  try {
    const found = localStorage.getItem(KEY);
    return found === "light" || found === "dark" ? found : "auto";
  } catch {
    return "auto"; // storage is forbidden to some file:// pages
  }
}

const system = matchMedia("(prefers-color-scheme: dark)");
const systemDark = signal(system.matches);
system.addEventListener("change", () => (systemDark.value = system.matches));

export const theme = signal<Theme>(kept());
export const isDark = (): boolean => (theme.value === "auto" ? systemDark.value : theme.value === "dark");

effect(() => {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  try {
    if (theme.value === "auto") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, theme.value);
  } catch {
    /* the choice then lasts as long as the page */
  }
});

export const toggleTheme = (): void => void (theme.value = isDark() ? "light" : "dark");

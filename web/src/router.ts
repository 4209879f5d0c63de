// Addresses of the page, and how one gets from one to the other without loading anything anew.

import { signal } from "@preact/signals";
import { type Route, routeOf } from "./route";

export const route = signal<Route>(routeOf(location.pathname));

export function navigate(path: string, options: { replace?: boolean } = {}): void {
  if (path !== location.pathname) {
    if (options.replace) history.replaceState(null, "", path);
    else history.pushState(null, "", path);
  }
  route.value = routeOf(path);
}

window.addEventListener("popstate", () => {
  route.value = routeOf(location.pathname);
});

// One listener for every link of ours; modified clicks stay the browser's.
document.addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button !== 0) return;
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const link = (event.target as Element | null)?.closest?.("a");
  if (!link || link.origin !== location.origin || link.target || link.hasAttribute("download"))
    return;
  if (/^\/(api|v1|docs|metrics|health|assets)(\/|$)/.test(link.pathname)) return;
  event.preventDefault();
  navigate(link.pathname);
});

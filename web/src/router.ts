// Addresses of the page, and how one gets from one to the other without loading anything anew.

import { batch, signal } from "@preact/signals";
import { type Route, routeOf } from "./route";

export const route = signal<Route>(routeOf(location.pathname));
/** The part of the page that is wanted: "m-ID" is a message. */
export const anchor = signal(location.hash.slice(1));

export function navigate(path: string, options: { replace?: boolean } = {}): void {
  if (path !== location.pathname + location.hash) {
    if (options.replace) history.replaceState(null, "", path);
    else history.pushState(null, "", path);
  }
  read();
}

function read(): void {
  batch(() => {
    route.value = routeOf(location.pathname);
    anchor.value = location.hash.slice(1);
  });
}

window.addEventListener("popstate", read);

// One listener for every link of ours; modified clicks stay the browser's.
document.addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button !== 0) return;
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const link = (event.target as Element | null)?.closest?.("a");
  if (!link || link.origin !== location.origin || link.target || link.hasAttribute("download"))
    return;
  if (/^\/(api|v1|docs|metrics|health|assets)(\/|$)/.test(link.pathname)) return;
  event.preventDefault();
  navigate(link.pathname + link.hash);
});

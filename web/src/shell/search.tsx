// Search in titles and texts; what was found is shown in its sentence.

import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { api } from "../api/client";
import type { SearchHit } from "../api/types";
import { t } from "../i18n";
import { useShortcut } from "../keys";
import { IconButton } from "../ui/icon-button";
import { Icon } from "../ui/icons";
import { say } from "../ui/toasts";
import { sidebarOpen } from "./state";

export const query = signal("");
const hits = signal<SearchHit[] | null>(null);
const PAUSE_MS = 160;
const MOST = 50;

export function SearchField() {
  const field = useRef<HTMLInputElement>(null);
  useShortcut("search", () => {
    sidebarOpen.value = true;
    requestAnimationFrame(() => field.current?.focus());
  });
  useEffect(() => {
    const words = query.value.trim();
    if (words === "") {
      hits.value = null;
      return;
    }
    const abort = new AbortController();
    const timer = setTimeout(() => {
      api.search(words, MOST, abort.signal).then((found) => {
        hits.value = found.items;
      }, say);
    }, PAUSE_MS);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [query.value]);
  return (
    <div class="search" role="search">
      <Icon name="search" />
      <input
        ref={field}
        class="input"
        type="search"
        dir="auto"
        placeholder={t("search.placeholder")}
        aria-label={t("shortcuts.search")}
        value={query.value}
        onInput={(event) => {
          query.value = event.currentTarget.value;
        }}
        onKeyDown={(event) => {
          if (event.key === "Escape" && query.value) {
            event.stopPropagation();
            event.preventDefault();
            query.value = "";
          } else if (event.key === "ArrowDown") {
            event.preventDefault();
            document.querySelector<HTMLElement>(".hit, .conversation")?.focus();
          }
        }}
      />
      {query.value && (
        <IconButton
          icon="close"
          label={t("search.clear")}
          onClick={() => {
            query.value = "";
            field.current?.focus();
          }}
        />
      )}
    </div>
  );
}

export function SearchResults() {
  const found = hits.value;
  if (found === null) return <div class="sidebar-list" aria-busy="true" />;
  return (
    <div class="sidebar-list">
      <p class="list-empty" role="status">
        {found.length === 0
          ? t("search.nothing", { q: query.value.trim() })
          : t("search.found", { n: found.length })}
      </p>
      <ul class="hits">
        {found.map((hit) => (
          <li key={`${hit.conversation} ${hit.message}`}>
            <a class="hit" href={`/c/${hit.conversation}${hit.message ? `#m-${hit.message}` : ""}`}>
              <bdi class="hit-title">{hit.title || t("list.untitled")}</bdi>
              {hit.message !== null && (
                <span class="hit-text" dir="auto">
                  <Marked text={hit.snippet} ranges={hit.ranges} />
                </span>
              )}
            </a>
          </li>
        ))}
      </ul>
    </div>
  );
}

function Marked({ text, ranges }: { text: string; ranges: [number, number][] }) {
  const parts: preact.ComponentChild[] = [];
  let at = 0;
  for (const [from, to] of ranges) {
    if (from < at || to > text.length) continue;
    parts.push(text.slice(at, from), <mark key={from}>{text.slice(from, to)}</mark>);
    at = to;
  }
  parts.push(text.slice(at));
  return <>{parts}</>;
}

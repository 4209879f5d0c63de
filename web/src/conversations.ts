// The list of conversations: pages of it as far as one has scrolled, a filter, and changes that show at once.

import { batch, computed, signal } from "@preact/signals";
import { api, type ConversationPatch } from "./api/client";
import type { ConversationItem } from "./api/types";
import { t } from "./i18n";
import { navigate, route } from "./router";
import { say, toast } from "./ui/toasts";

const PAGE = 60;
const UNDO_MS = 6000;

export interface Filter {
  folder: string | null;
  tag: string | null;
}

export const filter = signal<Filter>({ folder: null, tag: null });
/** Whether the first page has come. */
export const loaded = signal(false);
export const failed = signal(false);
const items = signal<ConversationItem[]>([]);
const next = signal<string | null>(null);
const LEFT = "mull.deleted"; // in sessionStorage: what was being deleted when a page was left
const LEFT_MS = 5000;
/** Deleted, but it can still be undone, or the server has not come to it yet. */
const hidden = signal<ReadonlySet<string>>(leftDeleted());

export const shown = computed(() => items.value.filter((item) => !hidden.value.has(item.id)));
export const hasMore = computed(() => next.value !== null);

/** All folders and tags in use, for the filter and for suggestions. */
export const folders = computed(() => unique(items.value.map((item) => item.folder ?? "")));
export const tags = computed(() => unique(items.value.flatMap((item) => item.tags)));

function unique(values: string[]): string[] {
  return [...new Set(values.filter(Boolean))].sort((a, b) => a.localeCompare(b));
}

let loading: Promise<void> | null = null;
let generation = 0;

/** Reads as many as are shown, anew. */
export async function refresh(): Promise<void> {
  generation += 1;
  const mine = generation;
  const wanted = Math.min(200, Math.max(PAGE, items.peek().length));
  try {
    const page = await api.conversations({ ...filter.peek(), limit: wanted });
    if (mine !== generation) return;
    batch(() => {
      const kept = page.next ? items.peek().slice(page.items.length) : [];
      const fresh = new Set(page.items.map((item) => item.id));
      items.value = [...page.items, ...kept.filter((item) => !fresh.has(item.id))];
      if (kept.length === 0 || !loaded.peek()) next.value = page.next;
      loaded.value = true;
      failed.value = false;
    });
  } catch {
    if (mine === generation) failed.value = true; // the banner says what to do
  }
}

export function loadMore(): void {
  const cursor = next.peek();
  if (cursor === null || loading) return;
  const mine = generation;
  loading = api
    .conversations({ ...filter.peek(), cursor, limit: PAGE })
    .then((page) => {
      if (mine !== generation) return;
      const known = new Set(items.peek().map((item) => item.id));
      batch(() => {
        items.value = [...items.peek(), ...page.items.filter((item) => !known.has(item.id))];
        next.value = page.next;
      });
    }, say)
    .finally(() => {
      loading = null;
    });
}

export function setFilter(change: Partial<Filter>): void {
  batch(() => {
    filter.value = { ...filter.peek(), ...change };
    items.value = [];
    next.value = null;
    loaded.value = false;
  });
  refresh();
}

let pending: ReturnType<typeof setTimeout> | undefined;

/** Something about a conversation has changed: the list follows a moment later, once for many changes. */
export function changed(): void {
  clearTimeout(pending);
  pending = setTimeout(refresh, 250);
}

export async function changeItem(id: string, change: ConversationPatch): Promise<void> {
  const { title, pinned, folder, tags: newTags } = change;
  const shownChange = Object.fromEntries(
    Object.entries({ title, pinned, folder, tags: newTags }).filter(
      ([, value]) => value !== undefined,
    ),
  );
  items.value = items.peek().map((item) => (item.id === id ? { ...item, ...shownChange } : item));
  try {
    await api.changeConversation(id, change);
  } catch (error) {
    say(error);
  }
  changed();
}

const leaving = new Map<string, () => void>();

/** Gone from the list at once, from the server after a few seconds: until then it can be undone. */
export function remove(item: ConversationItem): void {
  hidden.value = new Set(hidden.peek()).add(item.id);
  const here = route.peek();
  const wasOpen = here.name === "chat" && here.id === item.id;
  if (wasOpen) navigate("/");
  const restore = () => {
    const without = new Set(hidden.peek());
    without.delete(item.id);
    hidden.value = without;
  };
  const timer = setTimeout(() => finish(), UNDO_MS);
  const finish = (keepalive = false) => {
    clearTimeout(timer);
    leaving.delete(item.id);
    api.removeConversation(item.id, keepalive).then(refresh, (error) => {
      restore();
      say(error);
    });
  };
  leaving.set(item.id, () => finish(true));
  toast(t("list.deleted", { title: item.title || t("list.untitled") }), {
    ms: UNDO_MS,
    action: {
      label: t("action.undo"),
      run: () => {
        clearTimeout(timer);
        leaving.delete(item.id);
        restore();
        if (wasOpen) navigate(`/c/${item.id}`);
      },
    },
  });
}

// Who closes the page has not undone.
window.addEventListener("pagehide", () => {
  if (leaving.size === 0) return;
  try {
    sessionStorage.setItem(LEFT, JSON.stringify([...leaving.keys()]));
  } catch {
    // The next page may then list them for a moment more.
  }
  for (const finish of [...leaving.values()]) finish();
});

/** From the page before this one; what is still there after a while is shown again. */
function leftDeleted(): ReadonlySet<string> {
  let ids: unknown = null;
  try {
    ids = JSON.parse(sessionStorage.getItem(LEFT) ?? "null");
    sessionStorage.removeItem(LEFT);
  } catch {
    // None, or none that can be read.
  }
  if (!Array.isArray(ids) || ids.length === 0) return new Set();
  const left = new Set(ids.map(String));
  setTimeout(() => {
    hidden.value = new Set([...hidden.peek()].filter((id) => !left.has(id)));
    refresh();
  }, LEFT_MS);
  return left;
}

// A list that was read an hour ago in another window is brought up to date on return.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && loaded.peek()) refresh();
});

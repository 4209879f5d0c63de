// The list at the side: only the rows in view are on the page, further pages come as one scrolls.

import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import type { ConversationItem } from "../api/types";
import {
  filter,
  folders,
  hasMore,
  loaded,
  loadMore,
  refresh,
  setFilter,
  shown,
  tags,
} from "../conversations";
import { t } from "../i18n";
import { useShortcut } from "../keys";
import { navigate, route } from "../router";
import { session } from "../session";
import { Icon } from "../ui/icons";
import { Menu, type MenuItem } from "../ui/menu";
import { itemsFor } from "./conversation-menu";
import { type Age, offsetsOf, type Row, rowsOf, visible } from "./rows";

const HEADING = 30;
const ITEM = matchMedia("(pointer: coarse)").matches ? 44 : 36;
const SPARE = 300;
const WATCH_MS = 3000;

const AGES = {
  pinned: "age.pinned",
  today: "age.today",
  yesterday: "age.yesterday",
  week: "age.week",
  month: "age.month",
  older: "age.older",
} as const satisfies Record<Age, string>;

export function ConversationList() {
  const box = useRef<HTMLDivElement>(null);
  const view = useSignal({ top: 0, height: 800 });
  const all = shown.value;
  const rows = useMemo(() => rowsOf(all, new Date()), [all]);
  const offsets = useMemo(
    () => offsetsOf(rows.map((row) => (row.kind === "heading" ? HEADING : ITEM))),
    [rows],
  );
  const [from, to] = visible(offsets, view.value.top, view.value.height, SPARE);
  const here = route.value;
  const current = here.name === "chat" ? here.id : null;

  useEffect(() => {
    if (session.value) refresh();
  }, [session.value]);
  useLayoutEffect(() => {
    const element = box.current;
    if (!element) return;
    const measure = () => {
      view.value = { top: element.scrollTop, height: element.clientHeight };
    };
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    if (hasMore.value && offsets.at(-1)! - view.value.top - view.value.height < 600) loadMore();
  }, [offsets, view.value, hasMore.value]);

  // Answers that are made for no open page end without telling this one: look now and then.
  const someRun = all.some((item) => item.running);
  useEffect(() => {
    if (!someRun) return;
    const timer = setInterval(refresh, WATCH_MS);
    return () => clearInterval(timer);
  }, [someRun]);

  const step = (by: number) => {
    const ids = shown.peek();
    const at = ids.findIndex((item) => item.id === current);
    const next = ids[at < 0 ? 0 : at + by];
    if (next) navigate(`/c/${next.id}`);
  };
  useShortcut("next", () => step(1));
  useShortcut("previous", () => step(-1));

  return (
    <>
      <FilterBar />
      <div
        ref={box}
        class="sidebar-list"
        onScroll={(event) => {
          view.value = {
            top: event.currentTarget.scrollTop,
            height: event.currentTarget.clientHeight,
          };
        }}
      >
        {loaded.value && all.length === 0 && <p class="list-empty">{t("list.empty")}</p>}
        <ul
          class="conversations"
          aria-label={t("nav.conversations")}
          style={{ height: `${offsets.at(-1)}px` }}
        >
          {rows.slice(from, to).map((row, index) => (
            <li key={row.key} style={{ top: `${offsets[from + index]}px` }} class={row.kind}>
              <OneRow row={row} current={current} />
            </li>
          ))}
        </ul>
      </div>
    </>
  );
}

function OneRow({ row, current }: { row: Row; current: string | null }) {
  if (row.kind === "heading") return <h2>{t(AGES[row.age])}</h2>;
  return <Item item={row.item} isCurrent={row.item.id === current} />;
}

function Item({ item, isCurrent }: { item: ConversationItem; isCurrent: boolean }) {
  const title = item.title || t("list.untitled");
  return (
    <>
      <a
        class="conversation"
        href={`/c/${item.id}`}
        aria-current={isCurrent ? "page" : undefined}
        title={title}
      >
        <bdi>{title}</bdi>
        {item.running && (
          <span class="pulse">
            <span class="visually-hidden">{t("list.running")}</span>
          </span>
        )}
      </a>
      <Menu
        label={t("list.actions", { title })}
        iconOnly
        class="icon-button row-menu"
        items={() => itemsFor(item)}
      >
        <Icon name="more" />
      </Menu>
    </>
  );
}

/** Shown where folders or tags are in use. */
function FilterBar() {
  const { folder, tag } = filter.value;
  if (folders.value.length === 0 && tags.value.length === 0 && !folder && !tag) return null;
  const items = (): MenuItem[] => [
    {
      label: t("list.all"),
      checked: !folder && !tag,
      run: () => setFilter({ folder: null, tag: null }),
    },
    ...folders.value.map((name, index) => ({
      label: name,
      icon: "folder" as const,
      apart: index === 0,
      checked: name === folder,
      run: () => setFilter({ folder: name, tag: null }),
    })),
    ...tags.value.map((name, index) => ({
      label: `#${name}`,
      apart: index === 0,
      checked: name === tag,
      run: () => setFilter({ folder: null, tag: name }),
    })),
  ];
  const words = folder ?? (tag ? `#${tag}` : t("list.all"));
  return (
    <Menu label={`${t("list.filter")}: ${words}`} class="chip filter" items={items}>
      <Icon name={folder ? "folder" : "tag"} />
      <bdi class="chip-text">{words}</bdi>
      <Icon name="down" />
    </Menu>
  );
}

// The list of conversations as rows of known heights, so that only those in view are on the page.

import type { ConversationItem } from "../api/types";

export type Row =
  | { kind: "heading"; key: string; age: Age }
  | { kind: "item"; key: string; item: ConversationItem };

export type Age = "pinned" | "today" | "yesterday" | "week" | "month" | "older";

const DAY = 86_400_000;

export function ageOf(item: ConversationItem, now: Date): Age {
  if (item.pinned) return "pinned";
  const midnight = new Date(now.getFullYear(), now.getMonth(), now.getDate()).getTime();
  const time = new Date(item.updated).getTime();
  if (time >= midnight) return "today";
  if (time >= midnight - DAY) return "yesterday";
  if (time >= midnight - 7 * DAY) return "week";
  if (time >= midnight - 30 * DAY) return "month";
  return "older";
}

export function rowsOf(items: readonly ConversationItem[], now: Date): Row[] {
  const rows: Row[] = [];
  let age: Age | null = null;
  for (const item of items) {
    const own = ageOf(item, now);
    if (own !== age) rows.push({ kind: "heading", key: `age ${own}`, age: own });
    age = own;
    rows.push({ kind: "item", key: item.id, item });
  }
  return rows;
}

/** Where each row begins; the last number is the height of them all. */
export function offsetsOf(heights: readonly number[]): number[] {
  const offsets = [0];
  for (const height of heights) offsets.push(offsets.at(-1)! + height);
  return offsets;
}

/** The rows [from, to) that touch the view, with `spare` pixels on both sides. */
export function visible(
  offsets: readonly number[],
  top: number,
  height: number,
  spare: number,
): [number, number] {
  const count = offsets.length - 1;
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (offsets[middle + 1]! <= top - spare) low = middle + 1;
    else high = middle;
  }
  let to = low;
  while (to < count && offsets[to]! < top + height + spare) to += 1;
  return [low, to];
}

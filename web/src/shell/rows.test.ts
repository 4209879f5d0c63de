import { expect, test } from "vitest";
import type { ConversationItem } from "../api/types";
import { offsetsOf, rowsOf, visible } from "./rows";

const NOW = new Date(2026, 5, 15, 9, 30);

function item(id: string, daysAgo: number, pinned = false): ConversationItem {
  const updated = new Date(NOW.getTime() - daysAgo * 86_400_000).toISOString();
  const rest = { title: id, folder: null, tags: [], model: null, message_count: 2, running: false };
  return { id, pinned, created: updated, updated, ...rest };
}

test("conversations stand under their age, pinned ones first", () => {
  const rows = rowsOf(
    [item("p", 90, true), item("a", 0), item("b", 0.1), item("c", 1), item("d", 60)],
    NOW,
  );
  expect(rows.map((row) => (row.kind === "heading" ? `[${row.age}]` : row.item.id))).toEqual([
    ..."[pinned] p [today] a b [yesterday] c [older] d".split(" "),
  ]);
});

test("only rows in view are shown, whatever their heights", () => {
  const offsets = offsetsOf([30, 36, 36, 30, 36]);
  expect(offsets.at(-1)).toBe(168);
  expect(visible(offsets, 0, 30, 0)).toEqual([0, 1]);
  expect(visible(offsets, 66, 36, 0)).toEqual([2, 3]);
  expect(visible(offsets, 66, 36, 40)).toEqual([0, 5]);
  expect(visible(offsets, 1000, 100, 0)).toEqual([5, 5]);
  expect(visible([0], 0, 100, 0)).toEqual([0, 0]);
});

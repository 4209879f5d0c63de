import { expect, test } from "vitest";
import { nearest, thinned } from "./points";

test("short curves keep every point", () => {
  const points = { x: [1, 2, 3], y: [5, 6, 7] };
  expect(thinned(points)).toEqual(points);
});

test("long curves become means, ending where they end", () => {
  const x = Array.from({ length: 1000 }, (_, i) => i + 1);
  const thin = thinned({ x, y: x.map(() => 2) });
  expect(thin.x.length).toBeLessThanOrEqual(240);
  expect(thin.x.at(-1)).toBe(1000);
  expect(new Set(thin.y)).toEqual(new Set([2]));
});

test("the nearest point is found at both ends and between two", () => {
  const x = [1, 4, 9];
  expect([0, 2, 3, 8, 20].map((wanted) => nearest(x, wanted))).toEqual([0, 0, 1, 2, 2]);
});

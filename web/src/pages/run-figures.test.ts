import { expect, test } from "vitest";
import { gather, noFigures } from "./run-figures";

const step = (stage: string, step: number, values: object) => ({
  kind: "step",
  stage,
  step,
  values,
  time: { seconds: 0.5, at: 1 },
});

test("steps are counted through all stages, and curves hold only what was measured", () => {
  const figures = noFigures();
  gather(figures, [step("base", 1, { loss: 3 }), step("base", 2, { loss: null })]);
  gather(figures, [step("rl", 1, { loss: 1, reward: 0.25 })]);
  expect(figures.curves.get("loss")).toEqual({ x: [1, 3], y: [3, 1] });
  expect(figures.curves.get("reward")).toEqual({ x: [3], y: [0.25] });
  expect(figures.curves.has("at")).toBe(false);
  expect(figures.sections).toEqual([
    { at: 1, name: "base" },
    { at: 3, name: "rl" },
  ]);
});

test("rows of another form are passed over", () => {
  const figures = noFigures();
  gather(figures, [{}, { kind: "eval" }, { kind: "step", values: 7 }, { kind: 3 }]);
  expect(figures.evaluations).toEqual([]);
  expect(figures.steps).toBe(1);
});

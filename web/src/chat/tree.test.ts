import { expect, test } from "vitest";
import { Tree } from "./tree";

const tree = new Tree([
  { id: "q1", parent: null, role: "user" },
  { id: "a1", parent: "q1", role: "assistant" },
  { id: "a2", parent: "q1", role: "assistant" },
  { id: "q2", parent: "a1", role: "user" },
  { id: "q2b", parent: "a1", role: "user" },
  { id: "a3", parent: "q2b", role: "assistant" },
]);

test("the path leads from the root to the head", () => {
  expect(tree.path("a3")).toEqual(["q1", "a1", "q2b", "a3"]);
  expect(tree.path(null)).toEqual([]);
  expect(tree.path("nobody")).toEqual([]);
});

test("branches are the siblings, oldest first", () => {
  expect(tree.siblings("a1")).toEqual(["a1", "a2"]);
  expect(tree.siblings("q2b")).toEqual(["q2", "q2b"]);
});

test("going to a branch lands at its newest end", () => {
  expect(tree.leaf("q1")).toBe("a2");
  expect(tree.leaf("a1")).toBe("a3");
});

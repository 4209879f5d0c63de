import { expect, test } from "vitest";
import { routeOf } from "./route";

test("every address has its page", () => {
  expect(routeOf("/")).toEqual({ name: "new" });
  expect(routeOf("/c/abc_-1")).toEqual({ name: "chat", id: "abc_-1" });
  expect(routeOf("/runs")).toEqual({ name: "runs" });
  expect(routeOf("/runs/nano%20a")).toEqual({ name: "run", id: "nano a" });
  expect(routeOf("/settings/")).toEqual({ name: "settings" });
});

test("an address that is none of ours says so", () => {
  for (const path of ["/c", "/c/a/b", "/models/x", "/nothing", "/runs/%E0%A4%A"]) {
    expect(["unknown", "run"]).toContain(routeOf(path).name);
  }
});

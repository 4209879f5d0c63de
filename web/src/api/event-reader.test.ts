import { expect, test } from "vitest";
import { EventReader } from "./event-reader";

test("events are the same however the stream is cut", () => {
  const stream =
    ': hello\n\nid: 1\nevent: thinking\ndata: {"text":"한"}\n\nid: 2\r\nevent: answer\r\ndata: a\r\ndata: b\r\n\r\n';
  const whole = new EventReader().push(stream);
  expect(whole).toEqual([
    { id: 1, name: "thinking", data: '{"text":"한"}' },
    { id: 2, name: "answer", data: "a\nb" },
  ]);
  const reader = new EventReader();
  expect([...stream].flatMap((piece) => reader.push(piece))).toEqual(whole);
});

test("an unfinished event is not told", () => {
  expect(new EventReader().push("id: 1\ndata: x\n")).toEqual([]);
});

// The text of a stream of server-sent events, cut into events.

export interface ServerEvent {
  id: number;
  name: string;
  data: string;
}

/** Cuts a stream of text into events; feed it pieces as they arrive. */
export class EventReader {
  private rest = "";
  private name = "";
  private data: string[] = [];
  private lastId = 0;

  push(piece: string): ServerEvent[] {
    this.rest += piece;
    const events: ServerEvent[] = [];
    let start = 0;
    for (;;) {
      const end = this.rest.indexOf("\n", start);
      if (end < 0) break;
      const line = this.rest.slice(
        start,
        this.rest[end - 1] === "\r" && end > start ? end - 1 : end,
      );
      start = end + 1;
      const event = this.line(line);
      if (event) events.push(event);
    }
    this.rest = this.rest.slice(start);
    return events;
  }

  private line(line: string): ServerEvent | null {
    if (line === "") {
      if (this.data.length === 0) return null;
      const event = { id: this.lastId, name: this.name || "message", data: this.data.join("\n") };
      this.name = "";
      this.data = [];
      return event;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
    if (field === "data") this.data.push(value);
    else if (field === "event") this.name = value;
    else if (field === "id") this.lastId = Number(value) || this.lastId;
    return null;
  }
}

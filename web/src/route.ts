// Which page an address means.

export type Route =
  | { name: "new" }
  | { name: "chat"; id: string }
  | { name: "models" }
  | { name: "runs" }
  | { name: "run"; id: string }
  | { name: "status" }
  | { name: "settings" }
  | { name: "login" }
  | { name: "unknown" };

export function routeOf(path: string): Route {
  const parts = path.split("/").filter(Boolean).map(decoded);
  const [first, second] = parts;
  if (parts.length === 0) return { name: "new" };
  if (first === "c" && second && parts.length === 2) return { name: "chat", id: second };
  if (first === "runs" && second && parts.length === 2) return { name: "run", id: second };
  if (parts.length === 1) {
    if (first === "models" || first === "runs" || first === "status") return { name: first };
    if (first === "settings" || first === "login") return { name: first };
  }
  return { name: "unknown" };
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

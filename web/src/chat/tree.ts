// A conversation is a tree: an edit is a sibling of the question it replaces, a regeneration one of the
// answer. What one reads is the path from the root to the head.

import type { Message } from "../api/types";

export interface Node {
  id: string;
  parent: string | null;
  role: Message["role"];
}

export class Tree {
  private readonly nodes = new Map<string, Node>();
  private readonly below = new Map<string | null, string[]>();

  constructor(nodes: readonly Node[] = []) {
    for (const node of nodes) this.add(node);
  }

  add({ id, parent, role }: Node): void {
    if (this.nodes.has(id)) return;
    this.nodes.set(id, { id, parent, role });
    const siblings = this.below.get(parent);
    if (siblings) siblings.push(id);
    else this.below.set(parent, [id]);
  }

  get(id: string): Node | undefined {
    return this.nodes.get(id);
  }

  /** Oldest first. */
  children(id: string | null): readonly string[] {
    return this.below.get(id) ?? [];
  }

  siblings(id: string): readonly string[] {
    const node = this.nodes.get(id);
    return node ? this.children(node.parent) : [];
  }

  /** From the root down to `head`. */
  path(head: string | null): string[] {
    const path: string[] = [];
    let at = head === null ? undefined : this.nodes.get(head);
    while (at && path.length <= this.nodes.size) {
      path.push(at.id);
      at = at.parent === null ? undefined : this.nodes.get(at.parent);
    }
    return path.reverse();
  }

  /** Where one lands who goes to `id`: down its newest branch. */
  leaf(id: string): string {
    let at = id;
    for (let depth = 0; depth <= this.nodes.size; depth += 1) {
      const next = this.children(at).at(-1);
      if (next === undefined) break;
      at = next;
    }
    return at;
  }
}

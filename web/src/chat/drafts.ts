// What is being written: kept under a name until it is sent, whatever becomes of the field it stands in.

import { Attachments } from "./attachments";

const DRAFT = "mull.draft.";
const LONGEST = 100_000;

export function keptDraft(name: string): string {
  try {
    return localStorage.getItem(DRAFT + name) ?? "";
  } catch {
    return "";
  }
}

export function keepDraft(name: string, text: string): void {
  try {
    if (text.trim() === "") localStorage.removeItem(DRAFT + name);
    else if (text.length < LONGEST) localStorage.setItem(DRAFT + name, text);
  } catch {
    // A draft that cannot be kept is still in the field.
  }
}

const files = new Map<string, Attachments>();

/** The files that go with a draft, as long as this page is open. */
export function filesOf(draft: string): Attachments {
  const found = files.get(draft) ?? new Attachments();
  files.set(draft, found);
  return found;
}

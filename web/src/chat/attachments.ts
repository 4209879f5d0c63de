// Files on their way into a question: sent to the server as they are dropped, read there into text.

import { computed, signal } from "@preact/signals";
import { api } from "../api/client";
import type { AttachedFile } from "../api/types";
import { bytes, t } from "../i18n";
import { toast } from "../ui/toasts";

const LARGEST = 20_000_000;
const MOST = 20;
const KNOWN =
  /\.(txt|md|markdown|rst|csv|tsv|json|jsonl|xml|ya?ml|toml|ini|cfg|log|tex|html?|css|pdf|py|pyi|js|jsx|ts|tsx|mjs|c|h|cc|cpp|hpp|cs|java|kt|go|rs|rb|php|pl|r|jl|lua|swift|scala|hs|ml|clj|sql|sh|bash|zsh|ps1|bat|dockerfile|makefile|diff|patch|ipynb|srt|vtt)$/i;

export interface Attachment {
  key: number;
  name: string;
  bytes: number;
  file: AttachedFile | null;
  error: string | null;
  abort: AbortController;
}

let keys = 0;

export class Attachments {
  readonly all = signal<Attachment[]>([]);
  readonly ready = computed(() => this.all.value.flatMap(({ file }) => (file ? [file] : [])));
  readonly busy = computed(() => this.all.value.some(({ file, error }) => !file && !error));

  add(files: Iterable<File>): void {
    for (const file of files) {
      if (this.all.peek().length >= MOST) {
        toast(t("files.too_many", { n: MOST }), { kind: "error" });
        return;
      }
      this.send(file);
    }
  }

  remove(key: number): void {
    const gone = this.all.peek().find((one) => one.key === key);
    gone?.abort.abort();
    if (gone?.file) api.removeFile(gone.file.id).catch(() => {});
    this.all.value = this.all.peek().filter((one) => one.key !== key);
  }

  /** Forgets those files without deleting them: they belong to a message now. */
  forget(ids: readonly string[]): void {
    this.all.value = this.all.peek().filter(({ file }) => !file || !ids.includes(file.id));
  }

  private send(file: File): void {
    keys += 1;
    const entry: Attachment = {
      key: keys,
      name: file.name,
      bytes: file.size,
      file: null,
      error: refusal(file),
      abort: new AbortController(),
    };
    this.all.value = [...this.all.peek(), entry];
    if (entry.error) return;
    api.addFile(file, entry.abort.signal).then(
      (added) => this.set(entry.key, { file: added }),
      (error) =>
        this.set(entry.key, { error: error instanceof Error ? error.message : String(error) }),
    );
  }

  private set(key: number, change: Partial<Attachment>): void {
    this.all.value = this.all.peek().map((one) => (one.key === key ? { ...one, ...change } : one));
  }
}

function refusal(file: File): string | null {
  if (file.size > LARGEST)
    return t("files.too_large", { size: bytes(file.size), limit: bytes(LARGEST) });
  if (file.size === 0) return t("files.empty");
  const isText =
    file.type.startsWith("text/") || file.type === "application/pdf" || /json|xml/.test(file.type);
  if (file.type.startsWith("image/") || (!isText && file.type !== "" && !KNOWN.test(file.name))) {
    return t("files.unreadable");
  }
  return null;
}

// What can be done with a conversation, in the list and at its head: one menu, and its dialogs.

import { signal } from "@preact/signals";
import { useRef } from "preact/hooks";
import { api } from "../api/client";
import type { ConversationItem } from "../api/types";
import { changeConversation } from "../chat/open";
import { folders, remove, tags } from "../conversations";
import { t } from "../i18n";
import { Dialog } from "../ui/dialog";
import type { MenuItem } from "../ui/menu";

interface Asked {
  kind: "rename" | "file";
  item: ConversationItem;
}

const asked = signal<Asked | null>(null);

export function itemsFor(item: ConversationItem): MenuItem[] {
  const ask = (kind: Asked["kind"]) => () => {
    asked.value = { kind, item };
  };
  return [
    { label: t("list.rename"), icon: "edit", run: ask("rename") },
    {
      label: item.pinned ? t("list.unpin") : t("list.pin"),
      icon: "pin",
      run: () => changeConversation(item.id, { pinned: !item.pinned }),
    },
    { label: t("list.organise"), icon: "folder", run: ask("file") },
    {
      label: t("list.export_markdown"),
      icon: "download",
      apart: true,
      href: api.exportUrl(item.id, "markdown"),
      download: true,
    },
    {
      label: t("list.export_json"),
      icon: "download",
      href: api.exportUrl(item.id, "json"),
      download: true,
    },
    {
      label: t("action.delete"),
      icon: "trash",
      danger: true,
      apart: true,
      run: () => remove(item),
    },
  ];
}

export function ConversationDialogs() {
  const now = asked.value;
  if (!now) return null;
  const close = () => {
    asked.value = null;
  };
  return now.kind === "rename" ? (
    <Rename {...now} close={close} />
  ) : (
    <Organise {...now} close={close} />
  );
}

function Rename({ item, close }: Asked & { close: () => void }) {
  const field = useRef<HTMLInputElement>(null);
  return (
    <Dialog title={t("list.rename")} onClose={close}>
      <form
        class="stack"
        onSubmit={(event) => {
          event.preventDefault();
          const title = field.current?.value.trim();
          if (title) changeConversation(item.id, { title });
          close();
        }}
      >
        <label class="field">
          <span class="label">{t("list.title")}</span>
          <input
            ref={field}
            class="input"
            dir="auto"
            maxLength={200}
            autofocus
            defaultValue={item.title}
            onFocus={(event) => event.currentTarget.select()}
          />
        </label>
        <DialogButtons close={close} />
      </form>
    </Dialog>
  );
}

function Organise({ item, close }: Asked & { close: () => void }) {
  const folder = useRef<HTMLInputElement>(null);
  const labels = useRef<HTMLInputElement>(null);
  return (
    <Dialog title={t("list.organise")} onClose={close}>
      <form
        class="stack"
        onSubmit={(event) => {
          event.preventDefault();
          const names = (labels.current?.value ?? "").split(",").map((tag) => tag.trim());
          changeConversation(item.id, {
            folder: folder.current?.value.trim() || null,
            tags: [...new Set(names.filter(Boolean))],
          });
          close();
        }}
      >
        <label class="field">
          <span class="label">{t("list.folder")}</span>
          <input
            ref={folder}
            class="input"
            dir="auto"
            list="known-folders"
            maxLength={100}
            defaultValue={item.folder ?? ""}
          />
          <span class="hint">{t("list.folder_hint")}</span>
        </label>
        <datalist id="known-folders">
          {folders.value.map((name) => (
            <option key={name} value={name} />
          ))}
        </datalist>
        <label class="field">
          <span class="label">{t("list.tags")}</span>
          <input
            ref={labels}
            class="input"
            dir="auto"
            maxLength={400}
            defaultValue={item.tags.join(", ")}
          />
          <span class="hint">
            {tags.value.length > 0
              ? t("list.tags_known", { tags: tags.value.slice(0, 8).join(", ") })
              : t("list.tags_hint")}
          </span>
        </label>
        <DialogButtons close={close} />
      </form>
    </Dialog>
  );
}

export function DialogButtons({ close }: { close: () => void }) {
  return (
    <div class="row end">
      <button type="button" class="button quiet" onClick={close}>
        {t("action.cancel")}
      </button>
      <button type="submit" class="button primary">
        {t("action.save")}
      </button>
    </div>
  );
}

import type { AttachedFile } from "../api/types";
import { bytes, t } from "../i18n";
import { Icon } from "../ui/icons";

/** A file's name, and how much of it the model reads. */
export function FileName({ file }: { file: AttachedFile }) {
  const size =
    file.characters > 0
      ? t("files.characters", { n: file.characters })
      : file.bytes
        ? bytes(file.bytes)
        : "";
  const pages = file.pages ? t("files.pages", { n: file.pages }) : "";
  return (
    <span class="file">
      <Icon name="file" />
      <bdi class="file-name">{file.name}</bdi>
      <small>{[pages, size].filter(Boolean).join(" · ")}</small>
    </span>
  );
}

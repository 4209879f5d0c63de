import { bytes, t } from "../i18n";
import { IconButton } from "../ui/icon-button";
import { Icon } from "../ui/icons";
import type { Attachments } from "./attachments";
import { FileName } from "./file-chip";

/** The files that go with the question, each with its way out. */
export function ChosenFiles({ attachments }: { attachments: Attachments }) {
  const all = attachments.all.value;
  if (all.length === 0) return null;
  return (
    <ul class="files" aria-label={t("files.attached")}>
      {all.map((one) => (
        <li key={one.key} class={one.error ? "refused" : undefined}>
          {one.file ? (
            <FileName file={one.file} />
          ) : (
            <span class="file">
              <Icon name={one.error ? "warning" : "file"} />
              <bdi class="file-name">{one.name}</bdi>
              <small role={one.error ? "alert" : "status"}>
                {one.error ?? t("files.reading", { size: bytes(one.bytes) })}
              </small>
            </span>
          )}
          <IconButton
            icon="close"
            label={t("files.remove", { name: one.name })}
            onClick={() => attachments.remove(one.key)}
          />
        </li>
      ))}
    </ul>
  );
}

import { t } from "../i18n";
import { keyNames, shortcuts } from "../keys";
import { Dialog } from "../ui/dialog";

export function ShortcutList({ onClose }: { onClose: () => void }) {
  return (
    <Dialog title={t("shortcuts.title")} onClose={onClose}>
      <dl class="shortcut-list">
        {shortcuts.value.map((shortcut) => (
          <div key={`${shortcut.keys} ${shortcut.label}`}>
            <dt>{t(shortcut.label)}</dt>
            <dd>
              {keyNames(shortcut.keys).map((key) => (
                <kbd key={key}>{key}</kbd>
              ))}
            </dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}

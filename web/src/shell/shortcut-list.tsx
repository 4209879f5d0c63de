import { type Key, t } from "../i18n";
import { keyNames, SHORTCUTS, type ShortcutName } from "../keys";
import { preferences } from "../preferences";
import { Dialog } from "../ui/dialog";

/** The field one writes in handles its keys by itself. */
function writing(): { keys: string; label: Key }[] {
  const enterSends = preferences.value.enter_sends !== false;
  return [
    { keys: enterSends ? "Enter" : "mod+Enter", label: "shortcuts.send" },
    { keys: enterSends ? "shift+Enter" : "Enter", label: "shortcuts.newline" },
    { keys: "ArrowUp", label: "shortcuts.edit_last" },
  ];
}

const NAMES = Object.keys(SHORTCUTS) as ShortcutName[];

export function ShortcutList({ onClose }: { onClose: () => void }) {
  const others = NAMES.map((name) => ({
    keys: SHORTCUTS[name],
    label: `shortcuts.${name}` as const,
  }));
  return (
    <Dialog title={t("shortcuts.title")} onClose={onClose}>
      <dl class="shortcut-list">
        {[...writing(), ...others].map((shortcut) => (
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

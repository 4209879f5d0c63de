// The frame around every page: the list of conversations at the side (a drawer on phones), the page
// itself, and the shortcuts that work everywhere.

import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect } from "preact/hooks";
import { t } from "../i18n";
import { useShortcut } from "../keys";
import { navigate, route } from "../router";
import { offline } from "../session";
import { IconButton } from "../ui/icon-button";
import { Icon } from "../ui/icons";
import { ShortcutList } from "./shortcut-list";
import { Sidebar } from "./sidebar";

const NARROW = window.matchMedia("(max-width: 48rem)");

export const narrow = signal(NARROW.matches);
/** Whether the list is shown: open on wide screens, a closed drawer on narrow ones. */
export const sidebarOpen = signal(!NARROW.matches);
export const shortcutListOpen = signal(false);

NARROW.addEventListener("change", () => {
  narrow.value = NARROW.matches;
  sidebarOpen.value = !NARROW.matches;
});

export function Shell({ children }: { children: ComponentChildren }) {
  const here = route.value;
  useEffect(() => {
    if (narrow.peek()) sidebarOpen.value = false;
  }, [here]);
  useShortcut({
    keys: "alt+n",
    label: "shortcuts.new",
    run: () => navigate("/"),
    whileTyping: true,
  });
  useShortcut({ keys: "mod+b", label: "shortcuts.sidebar", run: toggleSidebar });
  useShortcut({ keys: "mod+,", label: "shortcuts.settings", run: () => navigate("/settings") });
  useShortcut({ keys: "?", label: "shortcuts.help", run: () => (shortcutListOpen.value = true) });

  const open = sidebarOpen.value;
  const drawer = narrow.value;
  return (
    <div class={`shell ${open ? "with-sidebar" : ""}`}>
      <a class="skip" href="#main">
        {t("app.skip")}
      </a>
      <aside class="sidebar" inert={!open} aria-label={t("nav.conversations")}>
        <Sidebar />
      </aside>
      {drawer && open && (
        <button type="button" class="scrim" aria-label={t("nav.close")} onClick={toggleSidebar} />
      )}
      <div class="main" inert={drawer && open}>
        {(!open || drawer) && <TopBar />}
        {offline.value && (
          <p class="offline" role="status">
            <Icon name="warning" />
            {t("error.offline")}
          </p>
        )}
        {children}
      </div>
      {shortcutListOpen.value && <ShortcutList onClose={() => (shortcutListOpen.value = false)} />}
    </div>
  );
}

export function toggleSidebar(): void {
  sidebarOpen.value = !sidebarOpen.value;
}

/** Where the list is hidden, the way back to it and to a new chat. */
function TopBar() {
  return (
    <div class="corner">
      <IconButton icon="menu" label={t("nav.open")} aria-expanded={false} onClick={toggleSidebar} />
      <IconButton icon="plus" label={t("nav.new")} onClick={() => navigate("/")} />
    </div>
  );
}

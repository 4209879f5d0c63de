// The frame around every page: the list of conversations at the side (a drawer on phones), the page
// itself, and the shortcuts that work everywhere.

import type { ComponentChildren } from "preact";
import { useEffect } from "preact/hooks";
import { t } from "../i18n";
import { useShortcut } from "../keys";
import { navigate, route } from "../router";
import { offline } from "../session";
import { IconButton } from "../ui/icon-button";
import { Icon } from "../ui/icons";
import { ConversationDialogs } from "./conversation-menu";
import { ShortcutList } from "./shortcut-list";
import { Sidebar } from "./sidebar";
import { narrow, shortcutListOpen, sidebarOpen, toggleSidebar } from "./state";

export function Shell({ children }: { children: ComponentChildren }) {
  const here = route.value;
  useEffect(() => {
    if (narrow.peek()) sidebarOpen.value = false;
  }, [here]);
  useShortcut("new", () => navigate("/"));
  useShortcut("sidebar", toggleSidebar);
  useShortcut("settings", () => navigate("/settings"));
  useShortcut("help", () => (shortcutListOpen.value = true));

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
      <ConversationDialogs />
      {shortcutListOpen.value && <ShortcutList onClose={() => (shortcutListOpen.value = false)} />}
    </div>
  );
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

import { t } from "../i18n";
import { navigate, route } from "../router";
import { IconButton } from "../ui/icon-button";
import { Icon, type IconName } from "../ui/icons";
import { ConversationList } from "./conversation-list";
import { query, SearchField, SearchResults } from "./search";
import { shortcutListOpen, toggleSidebar } from "./state";

export function Sidebar() {
  return (
    <div class="sidebar-body">
      <header class="sidebar-head">
        <a class="wordmark" href="/">
          mull
        </a>
        <IconButton
          icon="keyboard"
          label={t("nav.shortcuts")}
          onClick={() => (shortcutListOpen.value = true)}
        />
        <IconButton icon="panel" label={t("nav.close")} onClick={toggleSidebar} />
      </header>
      <button type="button" class="button new-chat" onClick={() => navigate("/")}>
        <Icon name="plus" />
        {t("nav.new")}
      </button>
      <SearchField />
      {query.value.trim() ? <SearchResults /> : <ConversationList />}
      <nav class="sidebar-nav" aria-label={t("nav.main")}>
        <NavLink href="/models" icon="cube" label={t("nav.models")} names={["models"]} />
        <NavLink href="/runs" icon="chart" label={t("nav.runs")} names={["runs", "run"]} />
        <NavLink href="/status" icon="pulse" label={t("nav.status")} names={["status"]} />
        <NavLink href="/settings" icon="gear" label={t("nav.settings")} names={["settings"]} />
      </nav>
    </div>
  );
}

function NavLink({
  href,
  icon,
  label,
  names,
}: {
  href: string;
  icon: IconName;
  label: string;
  names: string[];
}) {
  const current = names.includes(route.value.name);
  return (
    <a class="nav-link" href={href} aria-current={current ? "page" : undefined}>
      <Icon name={icon} />
      {label}
    </a>
  );
}

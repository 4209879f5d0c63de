import { t } from "../i18n";

export default function SettingsPage() {
  return (
    <main class="page" id="main">
      <div class="column">
        <h1>{t("nav.settings")}</h1>
      </div>
    </main>
  );
}

import { t } from "../i18n";

export default function StatusPage() {
  return (
    <main class="page" id="main">
      <div class="column">
        <h1>{t("nav.status")}</h1>
      </div>
    </main>
  );
}

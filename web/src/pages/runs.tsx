import { t } from "../i18n";

export default function RunsPage() {
  return (
    <main class="page" id="main">
      <div class="column">
        <h1>{t("nav.runs")}</h1>
      </div>
    </main>
  );
}

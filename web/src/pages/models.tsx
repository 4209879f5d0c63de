import { t } from "../i18n";

export default function ModelsPage() {
  return (
    <main class="page" id="main">
      <div class="column">
        <h1>{t("nav.models")}</h1>
      </div>
    </main>
  );
}

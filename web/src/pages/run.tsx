import { t } from "../i18n";

export default function RunPage({ id }: { id: string }) {
  return (
    <main class="page" id="main">
      <div class="column">
        <h1>{t("nav.runs")}</h1>
        <p class="lede">{id}</p>
      </div>
    </main>
  );
}

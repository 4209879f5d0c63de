// What the server is doing right now.

import { useState } from "preact/hooks";
import { api } from "../api/client";
import type { Status } from "../api/types";
import { bytes, number, t } from "../i18n";
import { Sparkline } from "./charts";
import { Bar, Facts, PageFrame, Waiting } from "./parts";
import { usePolled } from "./polled";
import { duration, rate } from "./units";

const POLL_MS = 1000;
const REMEMBERED = 120;

export default function StatusPage() {
  const [rates] = useState<{ decode: number[]; prefill: number[] }>(() => ({
    decode: [],
    prefill: [],
  }));
  const polled = usePolled(
    async (signal) => {
      const status = await api.status(signal);
      for (const kind of ["decode", "prefill"] as const) {
        rates[kind].push(status.tokens_per_s[kind]);
        if (rates[kind].length > REMEMBERED) rates[kind].shift();
      }
      return status;
    },
    () => POLL_MS,
  );
  const status = polled.data;
  return (
    <PageFrame title={t("nav.status")} lede={t("status.lede")} busy={!status}>
      {status && !polled.error ? (
        <>
          <Load status={status} rates={rates} />
          <Memory status={status} />
          <LoadedModels status={status} />
          <Server status={status} />
        </>
      ) : (
        <Waiting error={polled.error} again={polled.again} />
      )}
    </PageFrame>
  );
}

function Load({
  status,
  rates,
}: {
  status: Status;
  rates: { decode: number[]; prefill: number[] };
}) {
  const { running, queued, finished, failed } = status.requests;
  return (
    <section class="tiles" aria-label={t("status.load")}>
      <Tile label={t("status.running")} value={number(running)} />
      <Tile label={t("status.queued")} value={number(queued)} />
      <Tile label={t("status.finished")} value={number(finished)} />
      <Tile label={t("status.failed")} value={number(failed)} />
      <Rate label={t("status.writing")} values={rates.decode} />
      <Rate label={t("status.reading")} values={rates.prefill} />
    </section>
  );
}

function Tile({ label, value }: { label: string; value: string }) {
  return (
    <dl class="tile">
      <dt>{label}</dt>
      <dd>{value}</dd>
    </dl>
  );
}

function Rate({ label, values }: { label: string; values: number[] }) {
  const now = values.at(-1) ?? 0;
  return (
    <div class="tile wide">
      <dl>
        <dt>{label}</dt>
        <dd>
          {rate(now)} <small>{t("unit.tokens_per_s")}</small>
        </dd>
      </dl>
      <Sparkline
        values={values}
        slots={REMEMBERED}
        label={t("status.spark", { label, high: number(Math.max(0, ...values)) })}
      />
    </div>
  );
}

function Memory({ status }: { status: Status }) {
  const { rss_bytes, available_bytes, total_bytes } = status.memory;
  const others = Math.max(0, total_bytes - available_bytes - rss_bytes);
  return (
    <section aria-label={t("status.memory")}>
      <h2>{t("status.memory")}</h2>
      <div
        class="memory-bar"
        role="img"
        aria-label={t("status.memory_is", {
          mull: bytes(rss_bytes),
          others: bytes(others),
          free: bytes(available_bytes),
        })}
      >
        <span class="own" style={{ width: `${share(rss_bytes, total_bytes)}%` }} />
        <span class="others" style={{ width: `${share(others, total_bytes)}%` }} />
      </div>
      <ul class="legend">
        <li class="own">{t("status.memory_mull", { n: bytes(rss_bytes) })}</li>
        <li class="others">{t("status.memory_others", { n: bytes(others) })}</li>
        <li class="free">{t("status.memory_free", { n: bytes(available_bytes) })}</li>
      </ul>
    </section>
  );
}

function share(part: number, all: number): number {
  return all > 0 ? Math.min(100, (part / all) * 100) : 0;
}

function LoadedModels({ status }: { status: Status }) {
  return (
    <section aria-label={t("status.models")}>
      <h2>{t("status.models")}</h2>
      {status.models.length === 0 && <p class="quiet">{t("status.no_models")}</p>}
      <ul class="cards">
        {status.models.map((model) => (
          <li class="card model" key={model.name}>
            <header>
              <h3 dir="auto">{model.name}</h3>
            </header>
            <Facts
              facts={[
                [t("models.precision"), model.precision],
                [t("status.weights"), bytes(model.weights_bytes)],
                [t("status.running"), number(model.running)],
                [t("status.queued"), number(model.queued)],
                [t("status.hits"), number(model.cache.hits)],
                [t("status.idle"), duration(model.idle_s)],
              ]}
            />
            <p class="quiet figures">
              {t("status.cache", {
                used: number(model.cache.used_tokens),
                total: number(model.cache.total_tokens),
              })}
            </p>
            <Bar
              value={model.cache.used_tokens}
              of={model.cache.total_tokens || null}
              label={t("status.cache_bar", { name: model.name })}
            />
          </li>
        ))}
      </ul>
    </section>
  );
}

function Server({ status }: { status: Status }) {
  return (
    <section aria-label={t("status.server")}>
      <h2>{t("status.server")}</h2>
      <Facts
        facts={[
          [t("status.version"), status.version],
          [t("status.uptime"), duration(status.uptime_s)],
          [t("status.cpu"), t("unit.percent", { n: number(status.cpu_percent) })],
        ]}
      />
      <p class="quiet">
        {t("status.more")} <a href="/metrics">/metrics</a> · <a href="/docs">/docs</a>
      </p>
    </section>
  );
}

// Training runs on this machine, live.

import { api } from "../api/client";
import type { Run } from "../api/types";
import { type Key, t, usd, when } from "../i18n";
import { CopyButton } from "../ui/copy-button";
import { Bar, PageFrame, State, Waiting } from "./parts";
import { usePolled } from "./polled";
import { duration, energy } from "./units";

const WHILE_RUNNING_MS = 2500;
const OTHERWISE_MS = 10_000; // a run may be started in a terminal at any time
const START = "mull train recipes/nano.toml";

export default function RunsPage() {
  const polled = usePolled(
    (signal) => api.runs(signal),
    (page) => (page.items.some((run) => run.state === "running") ? WHILE_RUNNING_MS : OTHERWISE_MS),
  );
  const runs = polled.data?.items;
  return (
    <PageFrame title={t("nav.runs")} lede={t("runs.lede")} busy={!runs}>
      {!runs && <Waiting error={polled.error} again={polled.again} />}
      {runs?.length === 0 && <NoRuns />}
      {runs && runs.length > 0 && (
        <ul class="cards runs">
          {runs.map((run) => (
            <RunCard key={run.id} run={run} />
          ))}
        </ul>
      )}
    </PageFrame>
  );
}

function NoRuns() {
  return (
    <div class="card empty">
      <p>{t("runs.none")}</p>
      <p class="command">
        <code>{START}</code>
        <CopyButton text={START} />
      </p>
    </div>
  );
}

function RunCard({ run }: { run: Run }) {
  return (
    <li class="card run-card">
      <header>
        <h2>
          <a href={`/runs/${encodeURIComponent(run.id)}`} dir="auto">
            {run.name}
          </a>
        </h2>
        <RunState run={run} />
      </header>
      {run.about && <p dir="auto">{run.about}</p>}
      <RunProgress run={run} />
      <p class="quiet figures">
        {[
          run.started && t("runs.started", { when: when(run.started) }),
          ...billOf(run),
          run.has_report && t("runs.has_report"),
        ]
          .filter(Boolean)
          .join(" · ")}
      </p>
    </li>
  );
}

export function RunState({ run }: { run: Run }) {
  return <State kind={run.state}>{t(`runs.state_${run.state}` as Key)}</State>;
}

/** Where a running run is: the stage it is in, and how far. */
export function RunProgress({ run }: { run: Run }) {
  if (run.state !== "running") return null;
  const index = run.stages.findIndex((stage) => stage.name === run.stage);
  const stage = run.stages[index];
  if (!stage) return null;
  const place = t("runs.stage_of", { stage: stage.name, n: index + 1, all: run.stages.length });
  return (
    <div class="run-progress">
      <p class="figures">
        {place}
        {stage.steps
          ? ` · ${t("runs.step_of", { n: stage.step, all: stage.steps })}`
          : ` · ${t("runs.at_step", { n: stage.step })}`}
      </p>
      <Bar value={stage.step} of={stage.steps} label={place} />
    </div>
  );
}

export function billOf(run: Run): string[] {
  const bill = run.bill;
  if (!bill) return [];
  const parts = [duration(bill.seconds)];
  if (bill.joules) parts.push(energy(bill.joules));
  if (bill.usd !== null) parts.push(usd(bill.usd));
  return parts;
}

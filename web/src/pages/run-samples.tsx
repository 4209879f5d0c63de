// Answers a run has sampled on its way, newest first.

import { useState } from "preact/hooks";
import { api } from "../api/client";
import { type Key, number, t } from "../i18n";
import { State } from "./parts";
import { usePolled } from "./polled";

const POLL_MS = 3000;
const KEPT = 2000;
const SHOWN = 10;
const VERDICTS = ["correct", "wrong", "unparsable", "truncated", "verifier_failed"];

interface Sample {
  line: number;
  stage: string;
  step: number;
  question: string;
  thinking: string;
  answer: string;
  verdict: string;
  reward: number | null;
  tokens: number | null;
}

export function Samples({ id, live }: { id: string; live: boolean }) {
  const [log] = useState(() => ({ samples: [] as Sample[], next: 0, seen: 0 }));
  const [stage, setStage] = useState("");
  const [shown, setShown] = useState(SHOWN);
  usePolled(
    async (signal) => {
      for (;;) {
        const { rows, next, reset } = await api.runSamples(id, log.next, signal);
        if (reset) Object.assign(log, { samples: [], seen: 0 });
        for (const row of rows) {
          log.seen += 1;
          log.samples.unshift(sampleOf(row, log.seen));
        }
        log.samples.length = Math.min(log.samples.length, KEPT);
        if (rows.length === 0 || next === log.next) return log.seen;
        log.next = next;
      }
    },
    () => (live ? POLL_MS : null),
  );
  if (log.samples.length === 0) return null;
  const stages = [...new Set(log.samples.map((sample) => sample.stage))];
  const wanted = log.samples.filter((sample) => !stage || sample.stage === stage);
  return (
    <section aria-label={t("runs.samples")}>
      <div class="section-head">
        <h2>{t("runs.samples")}</h2>
        {stages.length > 1 && (
          <select
            class="input"
            aria-label={t("runs.samples_stage")}
            value={stage}
            onChange={(event) => {
              setStage(event.currentTarget.value);
              setShown(SHOWN);
            }}
          >
            <option value="">{t("runs.samples_all")}</option>
            {stages.map((name) => (
              <option key={name} value={name}>
                {name}
              </option>
            ))}
          </select>
        )}
      </div>
      <ol class="samples">
        {wanted.slice(0, shown).map((sample) => (
          <SampleCard key={sample.line} sample={sample} />
        ))}
      </ol>
      {wanted.length > shown && (
        <button type="button" class="button" onClick={() => setShown(shown + SHOWN)}>
          {t("runs.samples_more", { n: wanted.length - shown })}
        </button>
      )}
    </section>
  );
}

function SampleCard({ sample }: { sample: Sample }) {
  const verdict = VERDICTS.includes(sample.verdict)
    ? t(`runs.verdict_${sample.verdict}` as Key)
    : sample.verdict;
  return (
    <li class="card sample">
      <header class="quiet figures">
        <State kind={sample.verdict === "correct" ? "done" : "failed"}>{verdict}</State>
        <span>
          {sample.stage} · {t("runs.at_step", { n: sample.step })}
          {sample.tokens !== null && ` · ${t("unit.tokens", { n: sample.tokens })}`}
          {sample.reward !== null && ` · ${t("runs.measure_reward")} ${number(sample.reward, 2)}`}
        </span>
      </header>
      <p class="question" dir="auto">
        {sample.question}
      </p>
      {sample.thinking && (
        <details>
          <summary>{t("runs.thinking")}</summary>
          <p class="thought" dir="auto">
            {sample.thinking}
          </p>
        </details>
      )}
      <p class="answer" dir="auto">
        {sample.answer || <span class="quiet">{t("runs.no_answer")}</span>}
      </p>
    </li>
  );
}

function sampleOf(row: { [key: string]: unknown }, line: number): Sample {
  const text = (name: string) => (typeof row[name] === "string" ? (row[name] as string) : "");
  const figure = (name: string) => (typeof row[name] === "number" ? (row[name] as number) : null);
  return {
    line,
    stage: text("stage"),
    step: figure("step") ?? 0,
    question: text("question"),
    thinking: text("thinking"),
    answer: text("answer"),
    verdict: text("verdict"),
    reward: figure("reward"),
    tokens: figure("tokens"),
  };
}

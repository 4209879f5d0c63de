// Questions to begin with, which the model that is chosen can really answer: those for nano and for a small
// chat model were each asked many times of it; those for a larger thinking model are well within its reach.

import type { Model } from "../api/types";

export interface Suggestion {
  /** As it is sent: in the language the model knows. */
  ask: string;
  /** What it means, for a reader of Korean. */
  ko: string;
}

const SUMS: Suggestion[] = [
  { ask: "What is 37 * 48?", ko: "37 곱하기 48은?" },
  {
    ask: "What is 23522 divided by 8? Give quotient and remainder.",
    ko: "23522를 8로 나눈 몫과 나머지는?",
  },
  { ask: "Write 396 in base 5.", ko: "396을 5진법으로 쓰면?" },
];

const SMALL_CHAT: Suggestion[] = [
  { ask: "What is the largest ocean on Earth?", ko: "지구에서 가장 넓은 바다는?" },
  { ask: "What is gravity?", ko: "중력이란 무엇인가요?" },
  {
    ask: "Give me three tips for sleeping better.",
    ko: "잠을 더 잘 자는 방법 세 가지를 알려 주세요.",
  },
];

const THINKING: Suggestion[] = [
  {
    ask: "A train covers 180 km in two and a half hours. How fast is it on average?",
    ko: "두 시간 반 동안 180 km를 가는 기차의 평균 속력은?",
  },
  {
    ask: "What is the sum of the first twenty odd numbers, and why?",
    ko: "처음 홀수 스무 개의 합은 얼마이고, 왜 그런가요?",
  },
  { ask: "Solve x^2 - 5x + 6 = 0, step by step.", ko: "x² - 5x + 6 = 0을 차근차근 풀어 주세요." },
];

const LARGE = 1e9; // parameters

export function suggestionsFor(name: string, model: Model | undefined): Suggestion[] {
  if (!name) return [];
  if (/^nano\b/.test(name)) return SUMS;
  return model?.thinks && (model.parameters ?? 0) >= LARGE ? THINKING : SMALL_CHAT;
}

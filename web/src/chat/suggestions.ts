// Questions to begin with, chosen by trying them: each was asked many times of the model it stands for.

import type { Model } from "../api/types";

export interface Suggestion {
  /** As it is sent: in the language the model knows. */
  ask: string;
  /** What it means, for a reader of Korean. */
  ko: string;
}

const SMALL_CHAT: Suggestion[] = [
  { ask: "What is the largest ocean on Earth?", ko: "지구에서 가장 넓은 바다는?" },
  { ask: "What is gravity?", ko: "중력이란 무엇인가요?" },
  {
    ask: "Give me three tips for sleeping better.",
    ko: "잠을 더 잘 자는 방법 세 가지를 알려 주세요.",
  },
];

export function suggestionsFor(name: string, _model: Model | undefined): Suggestion[] {
  return name ? SMALL_CHAT : [];
}

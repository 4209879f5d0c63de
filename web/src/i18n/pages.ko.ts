// 모델, 학습 기록, 상태, 설정 화면의 한국어.

import type { pagesEn } from "./pages.en";

export const pagesKo: Record<keyof typeof pagesEn, string> = {
  "pages.loading": "불러오는 중",
};

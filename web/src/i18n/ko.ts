// 한국어. A key of en.ts that is missing here is a compile error.

import type { en } from "./en";

export const ko: Record<keyof typeof en, string> = {
  "app.name": "mull",
  "app.skip": "대화로 바로 가기",
  "nav.new": "새 대화",
  "nav.models": "모델",
  "nav.runs": "학습 기록",
  "nav.status": "상태",
  "nav.settings": "설정",
  "nav.shortcuts": "키보드 단축키",
  "nav.open": "대화 목록 열기",
  "nav.close": "대화 목록 닫기",
  "nav.main": "기본 메뉴",
  "nav.conversations": "대화 목록",

  "action.cancel": "취소",
  "action.close": "닫기",
  "action.save": "저장",
  "action.delete": "삭제",
  "action.undo": "되돌리기",
  "action.retry": "다시 시도",
  "action.copy": "복사",
  "action.copied": "복사됨",
  "action.more": "더 보기",
  "action.done": "완료",

  "unit.seconds": "{s}초",
  "unit.minutes": "{m}분 {s}초",
  "unit.bytes": "{n}바이트",

  "error.offline":
    "mull 서버가 응답하지 않습니다. ‘mull up’으로 다시 시작하면 이 화면은 저절로 이어집니다.",
  "error.login": "로그인이 필요합니다.",
  "error.gone": "더 이상 존재하지 않습니다. 삭제되었을 수 있습니다.",
  "error.too_large": "서버가 받기에는 너무 큽니다. 양을 줄여 보내 주세요.",
  "error.busy": "요청이 한꺼번에 너무 많습니다. 잠시 후 다시 시도해 주세요.",
  "error.server":
    "서버 오류입니다({status}). 이유는 서버 로그에 있으며, 다시 시도하면 될 수도 있습니다.",
  "error.unknown_page": "이 주소에는 아무것도 없습니다.",
  "error.unknown_page_next": "새 대화를 시작하거나 왼쪽에서 대화를 골라 주세요.",
  "error.crash": "화면의 일부가 멈췄습니다. 대화는 서버에 안전하게 남아 있습니다.",

  "toast.region": "알림",
  "toast.dismiss": "알림 닫기",

  "login.title": "mull 로그인",
  "login.key": "키",
  "login.hint": "키는 이 서버를 운영하는 사람이 ‘mull keys add 이름’ 명령으로 만듭니다.",
  "login.button": "로그인",
  "login.wrong": "등록되지 않은 키입니다. 빠짐없이 복사했는지 확인해 주세요.",
  "login.out": "로그아웃",

  "shortcuts.title": "키보드 단축키",
  "shortcuts.new": "새 대화",
  "shortcuts.search": "대화 검색",
  "shortcuts.sidebar": "목록 보이기/숨기기",
  "shortcuts.help": "이 목록 보기",
  "shortcuts.settings": "설정",
};

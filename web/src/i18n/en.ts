// English, and the list of all keys of the shell and the chat.

export const en = {
  "app.name": "mull",
  "app.skip": "Skip to the conversation",
  "nav.new": "New chat",
  "nav.models": "Models",
  "nav.runs": "Training runs",
  "nav.status": "Status",
  "nav.settings": "Settings",
  "nav.shortcuts": "Keyboard shortcuts",
  "nav.open": "Open the list of conversations",
  "nav.close": "Close the list of conversations",
  "nav.main": "Main",
  "nav.conversations": "Conversations",

  "action.cancel": "Cancel",
  "action.close": "Close",
  "action.save": "Save",
  "action.delete": "Delete",
  "action.undo": "Undo",
  "action.retry": "Try again",
  "action.copy": "Copy",
  "action.copied": "Copied",
  "action.more": "More",
  "action.done": "Done",

  "unit.seconds": "{s} s",
  "unit.minutes": "{m} min {s} s",
  "unit.bytes": "{n} bytes",

  "error.offline":
    "mull's server does not answer. Start it again with “mull up”; this page reconnects by itself.",
  "error.login": "You are not logged in.",
  "error.gone": "That is not here any more. It may have been deleted.",
  "error.too_large": "That is too large for the server. Send less of it.",
  "error.busy": "Too many requests at once. Wait a moment, then try again.",
  "error.server": "The server failed (error {status}). Its log says why; trying again may help.",
  "error.unknown_page": "There is no page at this address.",
  "error.unknown_page_next": "Start a new chat, or pick a conversation on the left.",
  "error.crash": "This part of the page broke down. Your conversations are safe on the server.",

  "toast.region": "Messages",
  "toast.dismiss": "Dismiss",

  "login.title": "Log in to mull",
  "login.key": "Key",
  "login.hint": "The person who runs this server makes keys with “mull keys add NAME”.",
  "login.button": "Log in",
  "login.wrong": "This key is not known here. Check that all of it was copied.",
  "login.out": "Log out",

  "shortcuts.title": "Keyboard shortcuts",
  "shortcuts.new": "New chat",
  "shortcuts.search": "Search conversations",
  "shortcuts.sidebar": "Show or hide the list",
  "shortcuts.help": "Show this list",
  "shortcuts.settings": "Settings",
};

// The one gate between a model's words and the page.

import DOMPurify from "dompurify";

const CONFIG = {
  ALLOWED_TAGS: [
    ..."p br hr h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong s a".split(" "),
    ..."table thead tbody tr th td div span sup sub".split(" "),
  ],
  ALLOWED_ATTR: [
    "href",
    "title",
    "class",
    "start",
    "dir",
    "target",
    "rel",
    "tabindex",
    "data-display",
    "data-language",
  ],
  ALLOW_DATA_ATTR: false,
  // Every other attribute's value is held to be an address, and an address leads to one of these.
  ADD_URI_SAFE_ATTR: ["start", "dir", "target", "rel", "tabindex", "data-display", "data-language"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
};

export function sanitise(html: string): string {
  return DOMPurify.sanitize(html, CONFIG);
}

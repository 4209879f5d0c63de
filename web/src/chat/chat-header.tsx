import { t } from "../i18n";
import { itemsFor } from "../shell/conversation-menu";
import { Icon } from "../ui/icons";
import { Menu } from "../ui/menu";
import type { OpenConversation } from "./conversation";

/** The conversation's name, and what can be done with the whole of it. */
export function ChatHeader({ chat }: { chat: OpenConversation }) {
  const item = chat.item.value;
  return (
    <header class="chat-head">
      <h1 class="chat-title" title={item.title}>
        <bdi>{item.title || t("list.untitled")}</bdi>
      </h1>
      <Menu
        label={t("list.actions", { title: item.title || t("list.untitled") })}
        iconOnly
        items={() => itemsFor(item)}
      >
        <Icon name="more" />
      </Menu>
    </header>
  );
}

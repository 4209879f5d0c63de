// The conversation that is open: its tree, what is shown of it, and everything one can do in it.

import { batch, computed, type Signal, signal } from "@preact/signals";
import { ApiError, api, type ConversationPatch } from "../api/client";
import type {
  ChatSettings,
  Conversation,
  ConversationItem,
  Message,
  NewAnswer,
} from "../api/types";
import { changed as listChanged } from "../conversations";
import { offline, start } from "../session";
import { say } from "../ui/toasts";
import { LiveAnswer } from "./live";
import { Tree } from "./tree";

/** How an answer is asked for: the conversation's settings, and the model(s) chosen. */
export interface Asking {
  models: string[];
  settings: ChatSettings;
}

export class OpenConversation {
  readonly item: Signal<ConversationItem>;
  readonly system: Signal<string | null>;
  readonly settings: Signal<ChatSettings>;
  readonly head: Signal<string | null>;
  /** The message that was just sent from here: its turn gets the room to be read from the top. */
  readonly fresh = signal<string | null>(null);
  readonly live = signal<ReadonlyMap<string, LiveAnswer>>(new Map());
  /** What is to be answered, or gone on with, and has no answer yet: a model may be loading. */
  readonly starting = signal<ReadonlySet<string>>(new Set());
  private readonly stopped = new Set<string>(); // of those
  private readonly tree: Signal<{ tree: Tree }>;
  private readonly messages = new Map<string, Signal<Message>>();
  private closed = false;

  readonly path = computed(() => this.tree.value.tree.path(this.head.value));

  constructor(private readonly whole: Conversation) {
    const { system, settings, head, messages, ...item } = whole;
    this.item = signal(item);
    this.system = signal(system ?? null);
    this.settings = signal(settings ?? {});
    for (const message of messages) this.messages.set(message.id, signal(message));
    this.tree = signal({ tree: new Tree(messages) });
    this.head = signal(head ?? messages.at(-1)?.id ?? null);
    for (const message of messages) this.follow(message);
  }

  get id(): string {
    return this.whole.id;
  }

  message(id: string): Signal<Message> {
    const found = this.messages.get(id);
    if (!found) throw new Error(`no message ${id}`);
    return found;
  }

  has(id: string): boolean {
    return this.messages.has(id);
  }

  siblings(id: string): readonly string[] {
    return this.tree.value.tree.siblings(id);
  }

  children(id: string | null): readonly string[] {
    return this.tree.value.tree.children(id);
  }

  /** Answers that were asked for together, to be compared, give the same. */
  together(id: string): string {
    return this.message(id).peek().beside ?? id;
  }

  /** The answers that are being made on the path that is shown. */
  readonly running = computed(() => {
    const live = this.live.value;
    if (live.size === 0) return [];
    const shown = new Set(this.path.value);
    return [...live].filter(([id]) => {
      const parent = this.message(id).peek().parent;
      return shown.has(id) || (parent !== null && shown.has(parent));
    });
  });

  /** Whether an answer on the path is being made, or about to be. */
  readonly busy = computed(
    () =>
      this.running.value.length > 0 || this.path.value.some((id) => this.starting.value.has(id)),
  );

  close(): void {
    this.closed = true;
    for (const live of this.live.peek().values()) live.leave();
    if (offline.peek()) start(); // goes on asking for the server, as nobody here does any more
  }

  // --- asking -----------------------------------------------------------------------------------

  /** A question below `parent`, once it is taken; throws where it is not. An answer of each model follows. */
  async ask(parent: string | null, text: string, files: string[], asking: Asking): Promise<void> {
    const message = await api.addMessage(this.id, { parent, text, files });
    batch(() => {
      this.put(message);
      this.head.value = message.id;
      this.fresh.value = message.id;
      const item = this.item.peek();
      if (!item.title) this.item.value = { ...item, title: titleOf(text) };
    });
    void this.answer(message.id, asking);
  }

  /** One answer of each model to the question `parent`; the first one's is read on. */
  async answer(parent: string, { models, settings }: Asking): Promise<void> {
    const wanted: (string | undefined)[] = models.length > 0 ? models : [undefined];
    await this.once(parent, async () => {
      let beside: string | undefined;
      for (const model of wanted) {
        if (this.stopped.has(parent)) break;
        const begun = await this.begin({ ...answerOf(parent, settings), model, beside });
        beside ??= begun;
      }
    });
  }

  /** Whoever asks again before an answer has begun asks for no second one. */
  private async once(id: string, begin: () => Promise<void>): Promise<void> {
    if (this.starting.peek().has(id)) return;
    this.stopped.delete(id);
    this.starting.value = new Set(this.starting.peek()).add(id);
    await begin();
    const others = new Set(this.starting.peek());
    others.delete(id);
    this.starting.value = others;
    listChanged();
  }

  /** Another answer to the same question: a branch of its own. */
  async regenerate(id: string, asking: Asking): Promise<void> {
    const { parent } = this.message(id).peek();
    if (parent === null) return;
    this.fresh.value = parent;
    await this.answer(parent, asking);
  }

  /** Another answer in its column of a comparison, of the same model. */
  async regenerateBeside(id: string, settings: ChatSettings): Promise<void> {
    const { parent, model } = this.message(id).peek();
    if (parent === null) return;
    const isChosen = this.path.peek().includes(id);
    const asked = { ...answerOf(parent, settings), model: model ?? undefined };
    await this.once(id, async () => {
      const made = await this.begin({ ...asked, beside: this.together(id) }, id);
      if (made && isChosen) this.choose(made);
    });
  }

  /** One answer begins; it is read on, unless it is made to be read beside another. */
  private async begin(asked: NewAnswer, id = asked.parent): Promise<string | undefined> {
    try {
      const { message } = await api.addAnswer(this.id, asked);
      batch(() => {
        this.put(message);
        if (!asked.beside) this.head.value = message.id;
      });
      this.follow(message);
      if (this.stopped.has(id) && message.response_id)
        api.stop(message.response_id).catch(sayUnlessGone);
      return message.id;
    } catch (error) {
      say(error);
      return undefined;
    }
  }

  /** Lets an answer that was cut off go on where it ended. */
  async continueAnswer(id: string, { models, settings }: Asking): Promise<void> {
    const asked = { ...answerOf(id, settings), model: models[0], continue: true as const };
    await this.once(id, async () => {
      await this.begin(asked);
    });
  }

  /** What has not begun yet is stopped as soon as it does. */
  stop(): void {
    for (const id of this.path.peek()) if (this.starting.peek().has(id)) this.stopped.add(id);
    for (const [, live] of this.running.peek()) api.stop(live.responseId).catch(sayUnlessGone);
  }

  answerNow(): void {
    for (const [id, live] of this.running.peek()) {
      if (this.message(id).peek().text === "") api.answerNow(live.responseId).catch(sayUnlessGone);
    }
  }

  // --- moving and changing ----------------------------------------------------------------------

  /** Goes to the branch that holds `id`, and remembers it. */
  goTo(id: string): void {
    this.fresh.value = null;
    const leaf = this.tree.peek().tree.leaf(id);
    this.head.value = leaf;
    this.change({ head: leaf }).catch(say);
  }

  /** Shows a message wherever it is in the tree, without changing where the conversation goes on. */
  reveal(id: string): void {
    if (!this.path.peek().includes(id)) this.head.value = this.tree.peek().tree.leaf(id);
  }

  /** Which of two answers side by side the conversation goes on from. */
  choose(id: string): void {
    this.head.value = this.tree.peek().tree.leaf(id);
    this.change({ head: this.head.peek() }).catch(say);
  }

  async change(change: ConversationPatch): Promise<void> {
    this.show(change);
    await api.changeConversation(this.id, change);
    const onlyHead = Object.keys(change).every((key) => key === "head");
    if (!onlyHead) listChanged();
  }

  show(change: ConversationPatch): void {
    batch(() => {
      if (change.system !== undefined) this.system.value = change.system;
      if (change.settings !== undefined) this.settings.value = change.settings;
      const { title, pinned, folder, tags, model } = { ...this.item.peek(), ...change };
      this.item.value = { ...this.item.peek(), title, pinned, folder, tags, model };
    });
  }

  // --- the answers that are being made ------------------------------------------------------------

  private put(message: Message): void {
    const known = this.messages.get(message.id);
    if (known) {
      known.value = message;
      return;
    }
    this.messages.set(message.id, signal(message));
    const { tree } = this.tree.peek();
    tree.add(message);
    this.tree.value = { tree };
  }

  private follow(message: Message): void {
    if (this.closed || message.state !== "running" || !message.response_id) return;
    this.live.peek().get(message.id)?.leave();
    const live = new LiveAnswer(message.response_id, this.message(message.id), {
      onEnd: (end) => this.ended(message.id, end),
      onForgotten: () => this.reload(message.id),
      onWaiting: (waiting) => {
        offline.value = waiting;
      },
    });
    this.live.value = new Map(this.live.peek()).set(message.id, live);
    live.run();
  }

  private ended(id: string, message: Message | null): void {
    batch(() => {
      if (message) this.put({ ...message, id });
      const live = new Map(this.live.peek());
      live.delete(id);
      this.live.value = live;
    });
    listChanged();
  }

  /** The server was restarted or has forgotten the stream: what it kept of the answer is the truth. */
  private async reload(id: string): Promise<void> {
    for (let wait = 300; !this.closed; wait = Math.min(wait * 1.6, 4000)) {
      try {
        const { messages, ...item } = await api.conversation(this.id);
        offline.value = false;
        batch(() => {
          for (const message of messages) this.put(message);
          this.item.value = { ...this.item.peek(), title: item.title };
        });
        const now = messages.find((message) => message.id === id);
        this.ended(id, null);
        if (now?.state === "running") {
          // Its answer is neither to be listened to nor marked as ended: say so rather than wait for ever.
          this.put({ ...now, state: "stopped" });
        }
        return;
      } catch (error) {
        if (!(error instanceof ApiError) || (error.status > 0 && error.status < 500)) {
          say(error);
          this.ended(id, { ...this.message(id).peek(), state: "failed" });
          return;
        }
        if (this.closed) return;
        offline.value = true;
        await new Promise((resolve) => setTimeout(resolve, wait));
      }
    }
  }
}

/** As the server makes it of the first question. */
function titleOf(text: string): string {
  return (text.trim().split("\n")[0] ?? "").slice(0, 60);
}

function answerOf(parent: string, settings: ChatSettings): NewAnswer {
  const asked: NewAnswer = { parent };
  if (settings.thinking) asked.thinking = settings.thinking;
  if (settings.think_budget) asked.think_budget = settings.think_budget;
  const sampling = Object.entries(settings.sampling ?? {}).filter(
    ([, value]) => value !== undefined,
  );
  if (sampling.length > 0) asked.sampling = Object.fromEntries(sampling);
  return asked;
}

/** Stopping what has just ended by itself is no error. */
function sayUnlessGone(error: unknown): void {
  if (!(error instanceof ApiError && error.status === 404)) say(error);
}

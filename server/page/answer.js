/** An answer as it grows, and how its tokens were produced. Knows nothing of the DOM. */

/**
 * One verified tree, as the server's `speculative_trace` reports it: node i proposes `tokens[i]` to follow node
 * `parents[i]`; -1 is the root, the last token before the round.
 * @typedef {object} Round
 * @property {number} position
 * @property {string[]} tokens
 * @property {number[]} parents
 * @property {number[]} accepted downwards
 * @property {string} bonus_token
 */

/**
 * @typedef {object} Speculation
 * @property {number} num_draft_tokens
 * @property {number} num_accepted_draft_tokens
 * @property {number | null} [draft_visual_tokens]
 * @property {import("./pictures.js").Seen[]} [pictures] those of the prompt
 */

/**
 * @typedef {object} Chunk
 * @property {{delta: {content?: string | null}, finish_reason: string | null}[]} choices
 * @property {Round[]} [speculative_trace]
 * @property {{completion_tokens: number, prompt_tokens_details: {cached_tokens: number, image_tokens: number}} | null} [usage]
 * @property {{speculative_decoding: Speculation}} [metrics]
 */

/**
 * A piece of the answer's text. "draft": drafted and accepted; "bonus": the model's own token after those; "plain":
 * without a draft; "mixed": from the round, but not split by token (a character that consists of several tokens).
 * @typedef {object} Piece
 * @property {"draft" | "bonus" | "plain" | "mixed"} kind
 * @property {number} round -1 for plain
 * @property {string} text
 */

export class Answer {
  text = "";
  /** @type {Round[]} */
  rounds = [];
  /** The text of the root of each round. @type {string[]} */
  roots = [];
  numTokens = 0;
  /** @type {Chunk["usage"]} */
  usage = null;
  /** @type {Speculation | null} */
  speculation = null;
  /** @type {string | null} */
  finishReason = null;
  /** @type {"streaming" | "finished" | "stopped" | "failed"} */
  state = "streaming";
  /** @type {Error | null} */
  error = null;
  #begin;
  #first = 0;
  #last = 0;
  #lastToken = "";

  /** @param {number} now milliseconds, as all times here */
  constructor(now) {
    this.#begin = now;
  }

  /** @param {Chunk} chunk @param {number} now @returns {Piece[]} what is new */
  take(chunk, now) {
    this.usage = chunk.usage ?? this.usage;
    this.speculation = chunk.metrics?.speculative_decoding ?? this.speculation;
    const content = chunk.choices[0]?.delta.content ?? "";
    this.finishReason = chunk.choices[0]?.finish_reason ?? this.finishReason;
    const rounds = chunk.speculative_trace ?? [];
    if (!content && !rounds.length) return [];
    this.#first ||= now;
    this.#last = now;
    this.text += content;
    /** @type {Piece[]} */
    const expected = [];
    for (const round of rounds) {
      this.roots.push(this.#lastToken);
      expected.push(...this.#piecesOf(round, this.rounds.push(round) - 1));
      this.#lastToken = round.bonus_token;
    }
    if (rounds.length) {
      this.numTokens += expected.length;
      return align(content, expected);
    }
    this.numTokens += 1;
    this.#lastToken = content;
    return [{ kind: "plain", round: -1, text: content }];
  }

  /** @param {Round} round @param {number} index @returns {Piece[]} */
  #piecesOf(round, index) {
    /** @type {Piece[]} */
    const drafts = round.accepted.map((node) => ({ kind: "draft", round: index, text: round.tokens[node] }));
    return [...drafts, { kind: "bonus", round: index, text: round.bonus_token }];
  }

  get numAccepted() {
    return this.rounds.reduce((sum, round) => sum + round.accepted.length, 0);
  }

  get numDrafts() {
    return this.rounds.reduce((sum, round) => sum + round.tokens.length, 0);
  }

  /** Tokens per round, including the bonus token; NaN without a round. */
  get acceptanceLength() {
    return (this.numAccepted + this.rounds.length) / this.rounds.length;
  }

  /** Without the first token, which waits for the prompt. */
  get tokensPerSecond() {
    const seconds = (this.#last - this.#first) / 1000;
    return seconds > 0 ? ((this.usage?.completion_tokens ?? this.numTokens) - 1) / seconds : NaN;
  }

  /** Seconds until the first token. */
  get firstTokenSeconds() {
    return this.#first ? (this.#first - this.#begin) / 1000 : NaN;
  }
}

/**
 * Cut `content` into the texts of the tokens, from both ends; what does not match any (part of a character, a stop
 * string held back, a special token left out) is one "mixed" piece.
 * @param {string} content
 * @param {Piece[]} expected at least one
 * @returns {Piece[]}
 */
export function align(content, expected) {
  /** @type {Piece[]} */
  const head = [];
  /** @type {Piece[]} */
  const tail = [];
  let [start, end] = [0, content.length];
  let [first, last] = [0, expected.length - 1];
  for (; first <= last && content.startsWith(expected[first].text, start); first++) {
    start += expected[first].text.length;
    head.push(expected[first]);
  }
  for (; last >= first && start < end && content.slice(start, end).endsWith(expected[last].text); last--) {
    end -= expected[last].text.length;
    tail.unshift(expected[last]);
  }
  if (start < end) {
    const { round } = expected[Math.min(first, expected.length - 1)];
    head.push({ kind: "mixed", round, text: content.slice(start, end) });
  }
  return [...head, ...tail].filter((piece) => piece.text);
}

/** How an answer was produced: its rounds, one round's tree, its speed, and what the draft saw of the pictures. */

import { byId, number, percent, seconds, showFigures, svg } from "./dom.js";
import { drawPicture } from "./pictures.js";
import { drawTree } from "./tree.js";

/** @typedef {import("./answer.js").Answer} Answer */
/** @typedef {import("./composer.js").Picture} Picture */

export class Inside {
  /** @type {Answer | null} */
  #answer = null;
  /** @type {Picture[]} */
  #pictures = [];
  /** @type {object | null} the report that the pictures are drawn from */
  #told = null;
  /** @type {number | null} the round that is shown; null follows the newest */
  #chosen = null;
  /** @type {object | null} the round whose tree is drawn */
  #drawn = null;
  #isDue = false;
  #slider = byId("round", HTMLInputElement);
  #earlier = byId("earlier", HTMLButtonElement);
  #later = byId("later", HTMLButtonElement);

  constructor() {
    this.#slider.addEventListener("input", () => this.#choose(this.#slider.valueAsNumber - 1));
    this.#earlier.addEventListener("click", () => this.#choose(this.#shown - 1));
    this.#later.addEventListener("click", () => this.#choose(this.#shown + 1));
    byId("bars", HTMLElement).addEventListener("click", (event) => {
      const bar = event.target instanceof Element ? event.target.closest("[data-round]") : null;
      if (bar) this.#choose(Number(bar.getAttribute("data-round")));
    });
  }

  /** @param {Answer} answer @param {Picture[]} pictures those of its prompt @param {number | null} round */
  show(answer, pictures, round) {
    this.#answer = answer;
    this.#chosen = round;
    this.#pictures = pictures;
    byId("seen", HTMLElement).hidden = !pictures.length;
    this.#drawPictures();
    this.#draw();
  }

  clear() {
    this.#answer = null;
    this.#draw();
  }

  /** Redraw in the next frame, once for all changes until then. @param {Answer} answer */
  grow(answer) {
    if (answer !== this.#answer || this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => {
      this.#isDue = false;
      this.#draw();
    });
  }

  /** @param {number} round */
  #choose(round) {
    this.#chosen = round;
    this.#draw();
  }

  get #shown() {
    const last = (this.#answer?.rounds.length ?? 0) - 1;
    return Math.max(0, Math.min(this.#chosen ?? last, last));
  }

  #draw() {
    const answer = this.#answer;
    byId("inside-intro", HTMLElement).hidden = answer !== null;
    byId("inside-body", HTMLElement).hidden = answer === null;
    if (answer === null) return;
    showFigures(byId("inside-figures", HTMLElement), [
      ["tokens per round", number(answer.acceptanceLength, 2), "Acceptance length: accepted drafts and the bonus token"],
      ["tokens per second", number(answer.tokensPerSecond, 1), "After the first token, measured in this browser"],
      ["drafts accepted", percent(answer.numAccepted / answer.numDrafts), `${answer.numAccepted} of ${answer.numDrafts}`],
      ["time to first token", seconds(answer.firstTokenSeconds), "From sending to the first token"],
      ["answer tokens", number(answer.usage?.completion_tokens ?? answer.numTokens)],
      ["cached prompt tokens", number(answer.usage?.prompt_tokens_details.cached_tokens), "Reused, not recomputed"],
    ]);
    const hasRounds = answer.rounds.length > 0;
    byId("rounds", HTMLElement).hidden = !hasRounds;
    byId("no-rounds", HTMLElement).hidden = hasRounds || !answer.text || answer.state === "streaming";
    if (hasRounds) this.#drawRounds(answer);
    this.#markShown(hasRounds);
    byId("seen-counts", HTMLElement).textContent = seen(answer);
    if (answer.speculation !== this.#told) this.#drawPictures();
  }

  /** What the draft saw of them is known at the end of an answer. */
  #drawPictures() {
    this.#told = this.#answer?.speculation ?? null;
    const drawn = this.#pictures.map((picture, i) => drawPicture(picture, this.#answer?.speculation?.pictures?.[i]));
    byId("seen-pictures", HTMLElement).replaceChildren(...drawn);
  }

  /** @param {Answer} answer */
  #drawRounds(answer) {
    const [shown, count] = [this.#shown, answer.rounds.length];
    byId("bars", HTMLElement).replaceChildren(bars(answer, shown));
    this.#slider.max = String(count);
    this.#slider.value = String(shown + 1);
    this.#slider.setAttribute("aria-valuetext", `round ${shown + 1} of ${count}`);
    this.#earlier.disabled = shown === 0;
    this.#later.disabled = shown === count - 1;
    const round = answer.rounds[shown];
    if (round === this.#drawn) return;
    this.#drawn = round;
    const drafts = round.tokens.length === 1 ? "1 draft" : `${round.tokens.length} drafts`;
    byId("tree-title", HTMLElement).textContent = `Round ${shown + 1}: ${drafts}, ${round.accepted.length} accepted`;
    byId("tree", HTMLElement).replaceChildren(drawTree(round, answer.roots[shown]));
  }

  /** Mark the shown round in the conversation. As there may be several answers, the old mark may be anywhere. */
  #markShown(hasRounds = true) {
    document.querySelectorAll("#log .shown").forEach((span) => span.classList.remove("shown"));
    if (!hasRounds) return;
    document.querySelectorAll(`#log .looked-at [data-round="${this.#shown}"]`).forEach((span) => span.classList.add("shown"));
  }
}

/** A bar for each round: accepted drafts, and the bonus token on top. @param {Answer} answer @param {number} shown */
function bars(answer, shown) {
  const { rounds } = answer;
  const most = Math.max(4, ...rounds.map((round) => round.accepted.length + 1));
  const columns = Math.max(rounds.length, 8);
  const all = rounds.map((round, i) => {
    const accepted = round.accepted.length;
    const at = { x: i + 0.1, width: 0.8 };
    return svg(
      "g",
      { "data-round": i, class: i === shown ? "bar shown" : "bar" },
      svg("rect", { class: "ground", x: i, width: 1, y: 0, height: most }),
      svg("rect", { class: "accepted", ...at, y: most - accepted, height: accepted }),
      svg("rect", { class: "bonus", ...at, y: most - accepted - 1, height: 1 }),
    );
  });
  const size = { viewBox: `0 0 ${columns} ${most}`, preserveAspectRatio: "none" };
  return svg("svg", { ...size, "aria-hidden": "true" }, ...all);
}

/** How much of the pictures the model saw, and whether a draft looked. @param {Answer} answer */
function seen(answer) {
  const total = answer.usage?.prompt_tokens_details.image_tokens;
  if (!total) return "";
  const isBlind = answer.speculation?.draft_visual_tokens === null;
  return `The model saw ${number(total)} visual tokens.${isBlind ? " No draft saw them." : ""}`;
}

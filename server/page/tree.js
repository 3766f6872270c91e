/** Draws one round's tree: from the root to the right, the accepted path along the top. */

import { svg } from "./dom.js";

/** @typedef {import("./answer.js").Round} Round */

/**
 * @typedef {object} TreeNode
 * @property {number} parent index in the list of nodes, -1 for the root
 * @property {number} depth
 * @property {number} row
 * @property {"root" | "accepted" | "bonus" | "rejected"} kind
 * @property {string} text
 */

const ROOT = -1; // as in a round's `parents`
const BONUS = -2;

const ROW = 30;
const BOX = 22;
const GAP = 17;
const PADDING = 6;
const CHAR = 7.3; // width of a character of the 12 px monospace font
const MAX_CHARS = 14;
const MIN_SCALE = 0.75; // the tree shrinks to fit, as long as it remains readable

/**
 * The nodes, root first, then drafts, each after its parent. A first child shares its parent's row and the
 * accepted child comes first, so the path is a straight line that ends with the bonus token.
 * @param {Round} round
 * @param {string} root
 * @returns {TreeNode[]}
 */
export function layout(round, root) {
  const accepted = new Set(round.accepted);
  const end = round.accepted.at(-1) ?? ROOT;
  /** @type {TreeNode[]} */
  const nodes = [];
  let lastRow = 0;

  /** @param {number} draft @param {TreeNode} node */
  function place(draft, node) {
    const parent = nodes.push(node) - 1;
    const drafts = round.parents.flatMap((above, child) => (above === draft ? [child] : []));
    const below = [...drafts.filter((child) => accepted.has(child)), ...drafts.filter((child) => !accepted.has(child))];
    if (draft === end) below.unshift(BONUS);
    below.forEach((child, i) => {
      const [kind, text] = look(child);
      place(child, { parent, depth: node.depth + 1, row: i ? ++lastRow : node.row, kind, text });
    });
  }

  /** @param {number} draft @returns {[kind: TreeNode["kind"], text: string]} */
  function look(draft) {
    if (draft === BONUS) return ["bonus", round.bonus_token];
    return [accepted.has(draft) ? "accepted" : "rejected", round.tokens[draft]];
  }

  place(ROOT, { parent: -1, depth: 0, row: 0, kind: "root", text: root });
  return nodes;
}

/** Spaces and line ends made visible, long tokens cut. @param {string} text */
export function visible(text) {
  const shown = text.replaceAll(" ", "·").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  const chars = [...shown];
  return chars.length > MAX_CHARS ? `${chars.slice(0, MAX_CHARS - 1).join("")}…` : shown;
}

/** @param {string} text @returns {number} in pixels; East Asian characters and emoji take two columns */
function boxWidth(text) {
  const columns = [...text].reduce((sum, char) => sum + ((char.codePointAt(0) ?? 0) > 0x2e7f ? 2 : 1), 0);
  return Math.max(columns, 1) * CHAR + 2 * PADDING;
}

/** @param {Round} round @param {string} root @returns {SVGSVGElement} */
export function drawTree(round, root) {
  const nodes = layout(round, root);
  const widths = nodes.map((node) => boxWidth(visible(node.text)));
  /** @type {number[]} */
  const columns = [];
  nodes.forEach((node, i) => (columns[node.depth] = Math.max(columns[node.depth] ?? 0, widths[i])));
  const lefts = [1];
  columns.forEach((width) => lefts.push(lefts[lefts.length - 1] + width + GAP));
  const middle = (/** @type {TreeNode} */ node) => 1 + BOX / 2 + node.row * ROW;

  const edges = nodes.slice(1).map((node) => {
    const parent = nodes[node.parent];
    const [fromX, fromY] = [lefts[parent.depth] + widths[node.parent], middle(parent)];
    const [toX, toY] = [lefts[node.depth], middle(node)];
    // A straight step to the end of the parent's column, then a bend within the gap.
    const bend = toX - GAP / 2;
    const path = `M${fromX} ${fromY}H${toX - GAP}C${bend} ${fromY} ${bend} ${toY} ${toX} ${toY}`;
    return svg("path", { class: `edge ${node.kind}`, d: path });
  });
  const boxes = nodes.map((node, i) => {
    const [x, y] = [lefts[node.depth], middle(node)];
    const box = svg("rect", { x, y: y - BOX / 2, width: widths[i], height: BOX, rx: 6 });
    const label = svg("text", { x: x + PADDING, y: y + 4 }, visible(node.text));
    return svg("g", { class: `node ${node.kind}` }, svg("title", {}, `${node.kind}: ${JSON.stringify(node.text)}`), box, label);
  });
  const width = Math.ceil(lefts[lefts.length - 1] - GAP + 1);
  const height = Math.ceil(Math.max(...nodes.map(middle)) + BOX / 2 + 1);
  const size = { width, height, viewBox: `0 0 ${width} ${height}` };
  const tree = svg("svg", { ...size, class: "tree", role: "img", "aria-label": describe(round) }, ...edges, ...boxes);
  tree.style.minWidth = `${width * MIN_SCALE}px`;
  return tree;
}

/** @param {Round} round */
export function describe(round) {
  const path = round.accepted.map((node) => round.tokens[node]).join("");
  const accepted = path ? `accepted ${round.accepted.length}: ${JSON.stringify(path)}` : "accepted none";
  return `${round.tokens.length} drafts, ${accepted}; then the model’s own ${JSON.stringify(round.bonus_token)}`;
}

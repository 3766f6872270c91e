/** The pictures of a prompt with what the draft kept of them: lit cells of a grid, the others dimmed. */

import { el, number, svg } from "./dom.js";

/** @typedef {import("./composer.js").Picture} Picture */
/** @typedef {[rows: number, columns: number]} Grid */

/**
 * What a draft has of one picture, as the server reports it: N visual tokens in grids, row by row, one grid after the
 * other.
 * @typedef {object} Seen
 * @property {string | null} compressor the branch; null: the draft goes without the picture
 * @property {number} visual_tokens N
 * @property {number} draft_visual_tokens
 * @property {Grid[]} grids
 * @property {number[] | null} sources the tokens, 0 to N - 1, whose place those of the draft take; null: not told
 */

/** @param {Picture} picture @param {Seen | undefined} seen @returns {HTMLElement} */
export function drawPicture({ name, url }, seen) {
  const image = el("img", { src: url, alt: name });
  if (!seen) return el("figure", {}, el("div", { class: "cells" }, image));
  const caption = el("figcaption", {}, describe(seen));
  const masks = drawMasks(seen);
  // Where on the picture the tiles of several grids lie differs by model, so they stand beside it.
  const [over, beside] = masks.length === 1 ? [masks, []] : [[], masks];
  return el("figure", {}, el("div", { class: "cells" }, image, ...over), ...beside, caption);
}

/** @param {Seen} seen */
export function describe(seen) {
  const all = number(seen.visual_tokens);
  if (seen.compressor === null) return `The draft saw none of ${all} visual tokens: the picture came from the cache`;
  if (seen.compressor === "none") return `The draft saw all ${all} visual tokens: no compression`;
  return `The draft saw ${number(seen.draft_visual_tokens)} of ${all} visual tokens, branch ${seen.compressor}`;
}

/**
 * One for each grid; none where nothing was dropped, or it is not known what, or where in the picture: single rows are
 * what the server tells where it knows no grid.
 * @param {Seen} seen
 */
function drawMasks({ grids, sources }) {
  if (sources === null || grids.every(([rows]) => rows === 1)) return [];
  const kept = new Set(sources);
  let first = 0;
  return grids.map((grid) => {
    const mask = drawMask(grid, (cell) => kept.has(first + cell));
    first += grid[0] * grid[1];
    return mask;
  });
}

/** @param {Grid} grid @param {(cell: number) => boolean} isKept */
function drawMask([rows, columns], isKept) {
  const paths = { dropped: "", kept: "" };
  for (let cell = 0; cell < rows * columns; cell++) {
    paths[isKept(cell) ? "kept" : "dropped"] += `M${cell % columns} ${Math.floor(cell / columns)}h1v1h-1z`;
  }
  const size = { viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none", class: "mask", "aria-hidden": "true" };
  const mask = svg("svg", size, svg("path", { class: "dropped", d: paths.dropped }), svg("path", { class: "kept", d: paths.kept }));
  mask.style.aspectRatio = `${columns} / ${rows}`;
  return mask;
}

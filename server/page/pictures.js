/** The pictures of a prompt, with the cells of the grid that the draft kept lit and the others dimmed. */

import { el, number, svg } from "./dom.js";

/** @typedef {import("./composer.js").Picture} Picture */
/** @typedef {[rows: number, columns: number]} Grid */

/**
 * What a draft sees of one picture, as reported by the server: N visual tokens in grids, row by row, one grid after
 * the other.
 * @typedef {object} Seen
 * @property {string | null} compressor the branch; null: the draft does not see the picture
 * @property {number} visual_tokens N
 * @property {number} draft_visual_tokens
 * @property {Grid[]} grids
 * @property {number[] | null} sources the tokens, 0 to N - 1, whose positions the draft's tokens take; null: unknown
 */

/** @param {Picture} picture @param {Seen | undefined} seen @returns {HTMLElement} */
export function drawPicture({ name, url }, seen) {
  const image = el("img", { src: url, alt: name });
  if (!seen) return el("figure", {}, el("div", { class: "cells" }, image));
  const caption = el("figcaption", {}, describe(seen));
  const masks = drawMasks(seen);
  // Where the tiles of several grids lie in the picture depends on the model, so they are shown next to it.
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
 * Draw one mask per grid; none if nothing was dropped, or if it is unknown what, or where in the picture: the server
 * reports single rows where it knows no grid.
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

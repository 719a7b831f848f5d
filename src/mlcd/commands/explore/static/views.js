// What stands beside the map: lists of clusters, a cluster, an image.

import { bar, counted, el, grouped, shown, thumbnail } from "./dom.js";

export const PAGE = 48;
const IMAGES = 60;
export const imagesPerPage = IMAGES;

const UNITS = { size: "images", use: "uses", duplicates: "twins" };

// A cluster as a card: its four nearest images, its number, and one value.
export function card(cluster, { by = "size", note = "", words = "" } = {}) {
  const cover = cluster.cover.slice(0, 4).map((place) => thumbnail(place, 160));
  const [value, unit] = note ? [note, ""]
    : [shown(by, cluster[by]), by === "size" && cluster.size === 1 ? "image" : UNITS[by] ?? by];
  return el("a", {
    className: "card", href: `#/cluster/${cluster.id}${words ? `?${new URLSearchParams({ words })}` : ""}`,
    data: { cluster: cluster.id }, aria: { label: `Cluster ${cluster.id}, ${value} ${unit}` },
  },
  el("span", { className: `cover of-${cover.length}` },
    cover.length ? cover : el("span", { className: "lost" }, "empty")),
  el("span", { className: "caption" }, el("b", {}, `#${cluster.id}`),
    el("span", {}, `${value} `, unit && el("span", { className: "unit" }, unit))));
}

const cards = (list, options) =>
  el("div", { className: "cards", data: { grid: "" } },
    list.map((cluster) => card(cluster, options(cluster))));

// An image as a tile of a page.
function tile(image) {
  const caption = image.caption || "no caption";
  return el("button", {
    type: "button", className: "tile", title: caption,
    data: { chunk: image.chunk, row: image.row },
    aria: { label: `Image: ${caption}` },
  },
  thumbnail([image.chunk, image.row], 320, caption),
  el("span", { className: "caption" },
    image.similarity !== null && el("b", {}, image.similarity.toFixed(3)),
    el("span", {}, image.caption || "")));
}

const tiles = (images) =>
  el("div", { className: "tiles", data: { grid: "" } }, images.map(tile));

// Links to the pages before and after; `address` gives the address of a page, from 1.
function pager(start, count, total, address) {
  const page = Math.floor(start / count) + 1;
  const last = Math.max(1, Math.ceil(total / count));
  const link = (to, word, label, key) => to < 1 || to > last
    ? el("span", { className: "button", aria: { disabled: "true" } }, word)
    : el("a", { className: "button", href: address(to), title: `${label} (${key})`,
      data: { turn: key } }, word);
  if (last === 1) return null;
  const field = el("input", { type: "number", min: 1, max: last, value: page,
    aria: { label: "Page" } });
  field.addEventListener("change", () => {
    const to = Math.min(last, Math.max(1, Math.round(Number(field.value) || 1)));
    location.hash = address(to);
  });
  return el("nav", { className: "pager", aria: { label: "Pages" } },
    link(page - 1, "‹ Previous", "Previous page", "p"),
    el("label", {}, "page ", field, ` of ${grouped(last)}`),
    link(page + 1, "Next ›", "Next page", "n"));
}

// All clusters, in an order.
export function list(about, answer, { by, order, page }) {
  const address = (changed) => {
    const now = { by, order, page: 1, ...changed };
    return `#/?${new URLSearchParams(now)}`;
  };
  const chosen = about.sorts.find((sort) => sort.name === by);
  const select = el("select", { aria: { label: "Sort by" } },
    about.sorts.map((sort) =>
      el("option", { value: sort.name, selected: sort.name === by }, sort.name)));
  select.addEventListener("change", () => { location.hash = address({ by: select.value }); });
  return [
    el("div", { className: "bar-of-list" },
      el("h1", {}, `${grouped(answer.total)} clusters`),
      el("span", { className: "sort" }, el("label", {}, "sort by ", select),
        el("a", { className: "button", href: address({ order: order === "up" ? "down" : "up" }),
          title: "Turn the order", aria: { label: order === "up"
            ? "Smallest first; turn the order" : "Largest first; turn the order" } },
        order === "up" ? "↑ smallest first" : "↓ largest first"))),
    el("p", { className: "what" }, `${by}: ${chosen.what}`),
    cards(answer.clusters, () => ({ by })),
    pager(answer.start, PAGE, answer.total, (to) => address({ page: to })),
  ];
}

// One value of a cluster, and where it stands among all.
function stat(sort, cluster) {
  const rank = cluster.ranks[sort.name];
  const more = rank === null ? "" : rank === 0 ? "the least"
    : `above ${Math.floor(100 * rank)} %`;
  return el("div", { className: "stat", title: sort.what },
    el("span", {}, sort.name),
    el("b", {}, shown(sort.name, cluster[sort.name])),
    bar(rank ?? 0), el("small", {}, more));
}

// One cluster: its values, neighbors and images.
export function cluster(about, answer, page) {
  const address = (to) =>
    `#/cluster/${answer.id}?${new URLSearchParams({ page: to, words: answer.words })}`;
  const pages = () => pager(answer.start, IMAGES, answer.size, address);
  const known = answer.images.some((image) => image.similarity !== null);
  return [
    el("p", { className: "back" }, el("a", { href: "#/", data: { back: "" } }, "‹ all clusters")),
    el("h1", {}, `Cluster ${answer.id}`),
    el("div", { className: "stats" }, about.sorts.map((sort) => stat(sort, answer))),
    answer.neighbors.length > 0 && [
      el("h2", {}, "Nearest clusters"),
      el("div", { className: "strip", data: { grid: "" } }, answer.neighbors.map((other) =>
        card(other, { note: other.similarity.toFixed(3) }))),
    ],
    answer.matches.length > 0 && [
      el("h2", {}, `“${answer.words}”`, el("small", {}, ", captions with these words")),
      tiles(answer.matches),
    ],
    el("h2", {}, counted(answer.size, "image"),
      el("small", {}, known ? ", nearest to the center first" : "")),
    answer.images.length ? tiles(answer.images)
      : el("p", { className: "note" }, page > 1 ? "No more images." : "No image has this cluster as its nearest."),
    pages(),
  ].flat();
}

// What was found by words.
export function found(answer, about) {
  const parts = [el("p", { className: "back" }, el("a", { href: "#/", data: { back: "" } },
    "‹ all clusters")), el("h1", {}, `“${answer.query}”`)];
  if (answer.problem) parts.push(el("p", { className: "note" }, answer.problem));
  if (answer.captions !== null) {
    parts.push(el("h2", {}, "By captions",
      el("small", {}, answer.captions.length ? ", most of them first" : "")));
    parts.push(answer.captions.length
      ? cards(answer.captions, (one) => ({ note: `${grouped(one.count)} of ${grouped(one.size)}`,
        words: answer.query }))
      : el("p", { className: "note" }, "No cluster has a caption with all of these words."));
  }
  if (answer.text) parts.push(...nearest(answer.text, `By ${about.encoder}`));
  if (answer.captions === null && !answer.text && !answer.problem) {
    parts.push(el("p", { className: "note" },
      "This run has neither captions nor a text tower. Search by a cluster's number."));
  }
  return parts;
}

// What is nearest to a vector.
export function nearest(answer, title) {
  return [
    el("h2", {}, title, el("small", {}, ", nearest clusters")),
    cards(answer.clusters.slice(0, 12), (one) => ({ note: one.similarity.toFixed(3) })),
    answer.images.length > 0 && [
      el("h2", {}, "Nearest images", el("small", {}, ", of these clusters")),
      tiles(answer.images),
    ],
  ].flat();
}

// One image, large, with all that is known of it.
export function image(answer) {
  const url = el("code", {}, answer.url || "–");
  const copy = el("button", { type: "button", className: "button" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(answer.url);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(url);
    }
  });
  const close = el("button", { type: "button", className: "close", aria: { label: "Close" } }, "×");
  close.addEventListener("click", () => close.closest("dialog").close());
  return [
    close,
    el("figure", {}, thumbnail([answer.chunk, answer.row], 1024, answer.caption)),
    el("div", { className: "details" },
      el("p", { className: "said" }, answer.caption || "no caption"),
      el("dl", {},
        el("dt", {}, "URL"), el("dd", { className: "url" }, url, answer.url && copy),
        el("dt", {}, "Place"), el("dd", {}, `row ${answer.row} of ${answer.chunk_name}`)),
      el("h2", {}, counted(answer.labels.length, "label")),
      el("ol", { className: "labels" }, answer.labels.map((label) => el("li", {},
        el("a", { href: `#/cluster/${label.id}` },
          label.cover.length ? thumbnail(label.cover[0], 64) : el("span", { className: "lost" }),
          el("span", {}, el("b", {}, `#${label.id}`), ` ${counted(label.size, "image")}`),
          label.similarity !== null && el("span", { className: "value" },
            label.similarity.toFixed(3), bar(Math.max(0, label.similarity)))))))),
  ];
}

export const problem = (message) => [
  el("p", { className: "back" }, el("a", { href: "#/", data: { back: "" } }, "‹ all clusters")),
  el("p", { className: "note" }, message),
];

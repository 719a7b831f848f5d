// The page: addresses after #, searches, and what they show.

import * as api from "./api.js";
import { el, grouped } from "./dom.js";
import { listen } from "./keyboard.js";
import { ClusterMap } from "./map.js";
import * as views from "./views.js";

const by = (id) => document.getElementById(id);
const content = by("content");
const query = by("query");
const dialog = by("image");

let about = null;
let map = null;
let running = null; // of the answer that is waited for
let found = null; // what was found by an image: it has no address
let lastList = "#/";

// Shows nodes beside the map, from the top.
function show(nodes, title) {
  content.replaceChildren(...nodes.filter((node) => node));
  content.scrollTop = 0;
  if (!matchMedia("(min-width: 901px)").matches) scrollTo(0, 0);
  document.title = title ? `${title} · mlcd explore` : "mlcd explore";
  content.classList.remove("waiting");
  for (const link of content.querySelectorAll("[data-back]")) link.href = lastList;
}

// Runs the work of an address; a newer one ends it.
async function work(task) {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  // Quick answers do not flicker.
  const slow = setTimeout(() => content.classList.add("waiting"), 150);
  try {
    await task(mine.signal);
  } catch (error) {
    if (mine.signal.aborted || error.name === "AbortError") return;
    if (!(error instanceof api.Problem)) console.error(error);
    show(views.problem(error.message));
  } finally {
    clearTimeout(slow);
    if (running === mine) content.classList.remove("waiting");
  }
}

async function showList(parameters, signal) {
  const names = about.sorts.map((sort) => sort.name);
  const wanted = parameters.get("by");
  const state = {
    by: names.includes(wanted) ? wanted : "size",
    order: parameters.get("order") === "up" ? "up" : "down",
    page: Math.max(1, Number.parseInt(parameters.get("page") ?? "1", 10) || 1),
  };
  lastList = location.hash || "#/";
  const start = (state.page - 1) * views.PAGE;
  const answer = await api.clusters(state.by, state.order, start, views.PAGE, signal);
  map?.mark(null, []);
  map?.colorBy(state.by);
  show(views.list(about, answer, state), "");
}

async function showCluster(id, parameters, signal) {
  const page = Math.max(1, Number.parseInt(parameters.get("page") ?? "1", 10) || 1);
  const start = (page - 1) * views.imagesPerPage;
  const answer = await api.cluster(id, start, views.imagesPerPage,
    parameters.get("words") ?? "", signal);
  show(views.cluster(about, answer, page), `Cluster ${id}`);
  map?.mark(answer, answer.neighbors);
}

async function showWords(text, signal) {
  query.value = text;
  const answer = await api.words(text, signal);
  show(views.found(answer, about), text);
  const marked = answer.text ? answer.text.clusters : answer.captions ?? [];
  map?.mark(null, marked.slice(0, 24));
}

async function route() {
  if (dialog.open) dialog.close();
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const parameters = new URLSearchParams(search);
  const cluster = path.match(/^cluster\/(\d{1,12})$/);
  await work(async (signal) => {
    if (cluster) await showCluster(Number(cluster[1]), parameters, signal);
    else if (path === "search") await showWords(parameters.get("q") ?? "", signal);
    else if (path === "by-image" && found) showFound();
    else await showList(parameters, signal);
  });
}

function showFound() {
  show([el("p", { className: "back" }, el("a", { href: "#/", data: { back: "" } },
    "‹ all clusters")), el("h1", { className: "asked" }, found.shown, "Your image"),
  ...views.nearest(found.answer, about.encoder)], "Your image");
  map?.mark(null, found.answer.clusters.slice(0, 12));
}

// Draws the dropped image itself: an address of it would be no part of this site.
async function preview(file) {
  const canvas = el("canvas", { width: 96, height: 96, className: "preview" });
  try {
    const bitmap = await createImageBitmap(file);
    const scale = 96 / Math.max(bitmap.width, bitmap.height);
    [canvas.width, canvas.height] = [bitmap.width * scale, bitmap.height * scale].map(
      (side) => Math.max(1, Math.round(side)));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  } catch {
    return "";
  }
  return canvas;
}

function searchByImage(file) {
  if (!about?.by_image) {
    show(views.problem("This run does not say which encoder its embeddings are of."));
    return;
  }
  // The server would end the connection in the middle, and its answer would be lost.
  if (file.size > about.upload) {
    show(views.problem(`This file has more than ${about.upload >> 20} MiB.`));
    return;
  }
  work(async (signal) => {
    const [answer, shown] = await Promise.all([api.byImage(file, signal), preview(file)]);
    found = { answer, shown };
    if (location.hash === "#/by-image") showFound();
    else location.hash = "#/by-image";
  });
}

function search(event) {
  event.preventDefault();
  const text = query.value.trim();
  query.blur();
  const number = text.match(/^#?(\d{1,12})$/);
  if (number) location.hash = `#/cluster/${Number(number[1])}`;
  else if (text) location.hash = `#/search?${new URLSearchParams({ q: text })}`;
  else location.hash = "#/";
}

async function openImage(chunk, row) {
  try {
    const answer = await api.image(chunk, row);
    dialog.replaceChildren(...views.image(answer));
    if (!dialog.open) dialog.showModal();
  } catch (error) {
    show(views.problem(error.message));
  }
}

function listenToDrops() {
  const drop = by("drop");
  let depth = 0;
  const files = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (files(event) && ++depth) drop.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (files(event) && --depth <= 0) drop.hidden = true;
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    drop.hidden = true;
    if (event.dataTransfer.files.length) searchByImage(event.dataTransfer.files[0]);
  });
  by("file").addEventListener("change", (event) => {
    if (event.target.files.length) searchByImage(event.target.files[0]);
    event.target.value = "";
  });
}

function listenToTabs() {
  const choose = (name) => {
    document.body.dataset.tab = name;
    by("tab-list").setAttribute("aria-pressed", String(name === "list"));
    by("tab-map").setAttribute("aria-pressed", String(name === "map"));
    map?.resize();
  };
  by("tab-list").addEventListener("click", () => choose("list"));
  by("tab-map").addEventListener("click", () => choose("map"));
  addEventListener("hashchange", () => choose("list"));
  choose("list");
}

async function start() {
  about = await api.about();
  by("facts").textContent =
    `${about.name}: ${grouped(about.images)} images in ${grouped(about.clusters)} clusters`;
  const ways = ["a cluster’s number"];
  if (about.captions || about.by_text) ways.unshift("words");
  query.placeholder = `Search: ${ways.join(", ")}${about.by_image ? ", or drop an image" : ""}`;
  by("pick").hidden = !about.by_image;
  if (about.map) {
    map = new ClusterMap(by("map"), about, (id) => { location.hash = `#/cluster/${id}`; });
    map.colorBy("size");
    content.addEventListener("pointerover", (event) => {
      map.hover(event.target.closest("[data-cluster]")?.dataset.cluster);
    });
  } else {
    document.body.classList.add("no-map");
  }
  by("search").addEventListener("submit", search);
  content.addEventListener("click", (event) => {
    const tile = event.target.closest("[data-row]");
    if (tile) openImage(tile.dataset.chunk, tile.dataset.row);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest("a")) dialog.close();
  });
  addEventListener("hashchange", route);
  listen({ query, content, back: () => { location.hash = lastList; } });
  listenToDrops();
  listenToTabs();
  await route();
}

start().catch((error) => show(views.problem(error.message)));

// The map of the centers on a canvas. Points come in tiles: of 2^z × 2^z tiles those in sight are
// asked for, each with some thousands of points at most, so that a million clusters draw as fast as
// a hundred.

import * as api from "./api.js";
import { counted, el, shown } from "./dom.js";

const SIDE = 65536; // of the map, in the numbers of a tile
const TILE_PIXELS = 360; // about how wide a tile is drawn
const KEPT = 400; // tiles
const CELL = 62; // pixels between two images on the map, about
const IMAGE = 64;

// Dark to bright, and bright to dark on a light page: blue, teal, amber.
const DARK = [[38, 62, 120], [32, 120, 140], [64, 184, 140], [196, 210, 90], [255, 214, 130]];
const LIGHT = [[206, 214, 228], [128, 190, 200], [40, 148, 152], [24, 92, 128], [60, 26, 92]];

function ramp(stops, steps) {
  return Array.from({ length: steps }, (_, index) => {
    const at = (index / (steps - 1)) * (stops.length - 1);
    const low = Math.min(stops.length - 2, Math.floor(at));
    const mixed = stops[low].map((v, c) => Math.round(v + (stops[low + 1][c] - v) * (at - low)));
    return `rgb(${mixed.join(" ")})`;
  });
}

function parsed(buffer) {
  const [count, total] = new Uint32Array(buffer, 0, 2);
  return {
    count, total,
    id: new Uint32Array(buffer, 8, count),
    x: new Uint16Array(buffer, 8 + 4 * count, count),
    y: new Uint16Array(buffer, 8 + 6 * count, count),
    value: new Uint8Array(buffer, 8 + 8 * count, count),
    size: new Uint8Array(buffer, 8 + 9 * count, count),
  };
}

export class ClusterMap {
  #tiles = new Map(); // "z/x/y?by" → points, or null while they are waited for
  #images = new Map(); // cluster → image
  #marked = [];
  #chosen = null;
  #hovered = null;
  #pointers = new Map();
  #moved = 0;
  #frame = 0;
  #points = []; // that are drawn, for the pointer: {id, x, y, r} in pixels

  constructor(root, about, open) {
    this.root = root;
    this.about = about;
    this.open = open;
    this.canvas = root.querySelector("#canvas");
    this.context = this.canvas.getContext("2d");
    this.tip = root.querySelector("#tip");
    this.by = "size";
    this.x = this.y = 0.5;
    this.scale = 0;
    this.#listen();
    this.#legend();
    new ResizeObserver(() => this.resize()).observe(root);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", () => { this.#theme(dark.matches); });
    this.#theme(dark.matches);
    this.resize();
  }

  // Fits the canvas to its place; keeps what is in the middle.
  resize() {
    const { clientWidth: width, clientHeight: height } = this.root;
    if (!width || !height) return;
    const ratio = devicePixelRatio || 1;
    [this.canvas.width, this.canvas.height] = [width * ratio, height * ratio];
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const first = !this.scale;
    [this.width, this.height] = [width, height];
    if (first) this.home();
    this.draw();
  }

  home() {
    this.scale = Math.min(this.width, this.height) * 0.94;
    this.x = this.y = 0.5;
    this.draw();
  }

  // Chooses the column that colors are of.
  colorBy(name) {
    this.by = name;
    const select = this.root.querySelector("#color");
    select.value = name;
    const sort = this.about.sorts.find((each) => each.name === name);
    this.root.querySelector("#least").textContent = shown(name, sort.least);
    this.root.querySelector("#most").textContent = shown(name, sort.most);
    this.draw();
  }

  // Rings around clusters with a place (`where`); the view moves to the chosen one.
  mark(chosen, others) {
    this.#chosen = chosen?.where ? chosen : null;
    this.#marked = others.filter((other) => other.where);
    const seen = [this.#chosen, ...this.#marked].filter(Boolean);
    if (seen.length && this.width) this.#show(seen);
    this.draw();
  }

  hover(id) {
    this.#hovered = id === undefined ? null : Number(id);
    this.draw();
  }

  // Moves so that the clusters are in sight; no more than is needed.
  #show(seen) {
    const places = seen.map(({ where }) => where.map((v) => v / SIDE));
    const [x, y] = this.#chosen ? this.#chosen.where.map((v) => v / SIDE)
      : [0, 1].map((axis) => (Math.min(...places.map((p) => p[axis]))
        + Math.max(...places.map((p) => p[axis]))) / 2);
    const reach = places.map((p) => Math.max(Math.abs(p[0] - x), Math.abs(p[1] - y)))
      .sort((a, b) => a - b);
    // A far one does not draw the view apart.
    const most = Math.max(0.004, reach[Math.floor(reach.length * 0.7)]);
    const whole = Math.min(this.width, this.height) * 0.94;
    const scale = Math.min(Math.max(whole, (0.4 * Math.min(this.width, this.height)) / most),
      this.#most());
    this.#glide(x, y, scale);
  }

  #most() {
    return TILE_PIXELS * 2 ** (this.about.levels - 3);
  }

  #glide(x, y, scale) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const from = { x: this.x, y: this.y, scale: Math.log(this.scale), time: performance.now() };
    const token = (this.gliding = {});
    const step = (now) => {
      if (this.gliding !== token) return;
      const t = still ? 1 : Math.min(1, Math.max(0, (now - from.time) / 450));
      const eased = 1 - (1 - t) ** 3;
      this.x = from.x + (x - from.x) * eased;
      this.y = from.y + (y - from.y) * eased;
      this.scale = Math.exp(from.scale + (Math.log(scale) - from.scale) * eased);
      this.#paint();
      if (t < 1) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  draw() {
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.#paint();
    });
  }

  #px(x) { return (x - this.x) * this.scale + this.width / 2; }
  #py(y) { return (y - this.y) * this.scale + this.height / 2; }

  // The points of a tile, or of the nearest tile above it that is here. Asks for it if it is not.
  #tile(z, x, y) {
    const key = `${z}/${x}/${y}?${this.by}`;
    if (!this.#tiles.has(key)) {
      this.#tiles.set(key, null);
      api.tile(z, x, y, this.by).then((buffer) => {
        this.#tiles.set(key, parsed(buffer));
        while (this.#tiles.size > KEPT) this.#tiles.delete(this.#tiles.keys().next().value);
        this.draw();
      }, () => { this.#tiles.delete(key); });
    }
    for (let up = 0; up <= z; up++) {
      const above = this.#tiles.get(`${z - up}/${x >> up}/${y >> up}?${this.by}`);
      if (above) return above;
    }
    return null;
  }

  #paint() {
    if (!this.width) return;
    const { context, width, height } = this;
    context.clearRect(0, 0, width, height);
    const z = Math.max(0, Math.min(this.about.levels - 3,
      Math.round(Math.log2(this.scale / TILE_PIXELS))));
    const side = 1 / 2 ** z;
    const range = (middle, length) => [
      Math.max(0, Math.floor((middle - length / 2 / this.scale) / side)),
      Math.min(2 ** z - 1, Math.floor((middle + length / 2 / this.scale) / side))];
    const [left, right] = range(this.x, width);
    const [top, bottom] = range(this.y, height);
    const points = [];
    for (let y = top; y <= bottom; y++) {
      for (let x = left; x <= right; x++) {
        const tile = this.#tile(z, x, y);
        if (tile) this.#collect(tile, [x * side, y * side, side], points);
      }
    }
    const share = Math.sqrt((width * height) / Math.max(1, points.length));
    const radius = Math.max(0.8, Math.min(9, 0.16 * share));
    for (const point of points) point.r = radius * (0.45 + 0.75 * (point.size / 255));
    this.#dots(points);
    this.#points = points;
    this.#lines();
    this.#pictures(points);
    this.#rings(points);
  }

  #collect(tile, [x0, y0, side], points) {
    const [x1, y1] = [x0 + side, y0 + side];
    for (let i = 0; i < tile.count; i++) {
      const [x, y] = [tile.x[i] / SIDE, tile.y[i] / SIDE];
      // A tile above has points of its other quarters too.
      if (x < x0 || x >= x1 || y < y0 || y >= y1) continue;
      const [px, py] = [this.#px(x), this.#py(y)];
      if (px < -40 || py < -40 || px > this.width + 40 || py > this.height + 40) continue;
      points.push({ id: tile.id[i], x: px, y: py, u: x, v: y, value: tile.value[i],
        size: tile.size[i], r: 1 });
    }
  }

  #dots(points) {
    const { context } = this;
    context.globalAlpha = points.length > 20000 ? 0.75 : 0.9;
    for (const point of points) {
      context.fillStyle = this.colors[point.value >> 3];
      if (point.r < 1.6) {
        context.fillRect(point.x - point.r, point.y - point.r, 2 * point.r, 2 * point.r);
        continue;
      }
      context.beginPath();
      context.arc(point.x, point.y, point.r, 0, 7);
      context.fill();
    }
    context.globalAlpha = 1;
  }

  #lines() {
    if (!this.#chosen) return;
    const { context } = this;
    const [x, y] = this.#chosen.where.map((v) => v / SIDE);
    context.strokeStyle = this.ink;
    context.globalAlpha = 0.35;
    context.lineWidth = 1;
    for (const { where } of this.#marked) {
      context.beginPath();
      context.moveTo(this.#px(x), this.#py(y));
      context.lineTo(this.#px(where[0] / SIDE), this.#py(where[1] / SIDE));
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  // Images of some clusters: of each cell of the map the largest, so that they stay while it moves.
  #pictures(points) {
    const cell = CELL / 2 ** Math.floor(Math.log2(this.scale));
    const best = new Map();
    for (const point of points) {
      if (!point.size) continue; // an empty cluster has no image
      const key = `${Math.floor(point.u / cell)}/${Math.floor(point.v / cell)}`;
      const other = best.get(key);
      if (!other || point.size > other.size || (point.size === other.size && point.id < other.id)) {
        best.set(key, point);
      }
    }
    const placed = [];
    const wanted = [...best.values()].sort((a, b) => b.size - a.size || a.id - b.id);
    const named = new Set([this.#chosen?.id, ...this.#marked.map(({ id }) => id)]);
    wanted.sort((a, b) => named.has(b.id) - named.has(a.id));
    const side = Math.min(56, Math.max(36, this.width / 12));
    for (const point of wanted) {
      if (placed.length >= 120) break;
      if (placed.some((p) => Math.hypot(p.x - point.x, p.y - point.y) < side * 1.2)) continue;
      placed.push(point);
      this.#picture(point, side);
    }
  }

  #picture(point, side) {
    let image = this.#images.get(point.id);
    if (!image) {
      image = new Image();
      image.src = `cover/${point.id}/${IMAGE}`;
      image.onload = () => this.draw();
      this.#images.set(point.id, image);
      if (this.#images.size > 2000) this.#images.delete(this.#images.keys().next().value);
    }
    if (!image.complete || !image.naturalWidth) return;
    const { context } = this;
    const [x, y] = [point.x - side / 2, point.y - side / 2];
    context.save();
    context.beginPath();
    context.roundRect(x, y, side, side, 9);
    context.fillStyle = "#fff";
    context.shadowColor = "rgb(0 0 0 / 35%)";
    context.shadowBlur = 6;
    context.shadowOffsetY = 1;
    context.fill();
    context.shadowColor = "transparent";
    context.clip();
    const fit = Math.min((side - 6) / image.naturalWidth, (side - 6) / image.naturalHeight);
    const [w, h] = [image.naturalWidth * fit, image.naturalHeight * fit];
    context.drawImage(image, point.x - w / 2, point.y - h / 2, w, h);
    context.restore();
    context.beginPath();
    context.roundRect(x, y, side, side, 9);
    context.strokeStyle = this.colors[point.value >> 3];
    context.lineWidth = 2.5;
    context.stroke();
    point.r = side / 2;
    point.image = true;
  }

  #rings(points) {
    const { context } = this;
    const ring = (x, y, r, color, wide) => {
      context.beginPath();
      context.arc(x, y, r, 0, 7);
      context.strokeStyle = color;
      context.lineWidth = wide;
      context.stroke();
    };
    const drawn = new Map(points.map((point) => [point.id, point]));
    const around = (id, where, color, wide) => {
      const point = drawn.get(id);
      if (point?.image) {
        const side = 2 * point.r + 4 + wide;
        context.beginPath();
        context.roundRect(point.x - side / 2, point.y - side / 2, side, side, 12);
        context.strokeStyle = color;
        context.lineWidth = wide + 1;
        context.stroke();
      } else if (point) ring(point.x, point.y, point.r + 4, color, wide);
      else if (where) ring(this.#px(where[0] / SIDE), this.#py(where[1] / SIDE), 8, color, wide);
    };
    for (const { id, where } of this.#marked) around(id, where, this.accent, 1.5);
    if (this.#chosen) around(this.#chosen.id, this.#chosen.where, this.accent, 4);
    if (this.#hovered !== null) around(this.#hovered, null, this.ink, 3);
  }

  #nearest(x, y) {
    let best = null;
    let least = Infinity;
    for (const point of this.#points) {
      const apart = Math.hypot(point.x - x, point.y - y) - (point.image ? point.r : 0);
      if (apart < least) [least, best] = [apart, point];
    }
    return least < 14 ? best : null;
  }

  #listen() {
    const { canvas } = this;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#pointers.set(event.pointerId, at(event));
      this.#moved = 0;
      this.gliding = null;
    });
    canvas.addEventListener("pointermove", (event) => this.#pointer(event, at(event)));
    canvas.addEventListener("pointerup", (event) => {
      this.#pointers.delete(event.pointerId);
      const point = this.#moved < 5 ? this.#nearest(...at(event)) : null;
      if (point) this.open(point.id);
    });
    canvas.addEventListener("pointercancel", (event) => this.#pointers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => { this.#say(null); });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 24 : 1;
      this.zoom(Math.exp(-event.deltaY * lines * 0.0016), ...at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    const button = (name, act) => this.root.querySelector(name).addEventListener("click", act);
    button("#zoom-in", () => this.zoom(1.6));
    button("#zoom-out", () => this.zoom(1 / 1.6));
    button("#zoom-home", () => { this.#glide(0.5, 0.5, Math.min(this.width, this.height) * 0.94); });
  }

  #pointer(event, [x, y]) {
    const before = this.#pointers.get(event.pointerId);
    if (!before) {
      this.#say(event.pointerType === "mouse" ? this.#nearest(x, y) : null);
      return;
    }
    const others = [...this.#pointers].filter(([id]) => id !== event.pointerId);
    if (others.length) {
      const [ox, oy] = others[0][1];
      const factor = Math.hypot(x - ox, y - oy) / Math.max(1, Math.hypot(before[0] - ox, before[1] - oy));
      this.zoom(factor, (x + ox) / 2, (y + oy) / 2);
    } else {
      this.x -= (x - before[0]) / this.scale;
      this.y -= (y - before[1]) / this.scale;
    }
    this.#moved += Math.hypot(x - before[0], y - before[1]);
    this.#pointers.set(event.pointerId, [x, y]);
    this.#say(null);
    this.draw();
  }

  zoom(factor, px = this.width / 2, py = this.height / 2) {
    this.gliding = null;
    const least = Math.min(this.width, this.height) * 0.5;
    const scale = Math.min(Math.max(this.scale * factor, least), this.#most());
    // What is under the pointer stays there.
    this.x += (px - this.width / 2) * (1 / this.scale - 1 / scale);
    this.y += (py - this.height / 2) * (1 / this.scale - 1 / scale);
    this.scale = scale;
    this.draw();
  }

  #key(event) {
    const step = 60 / this.scale;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step],
      ArrowDown: [0, step] };
    if (moves[event.key]) {
      this.x += moves[event.key][0];
      this.y += moves[event.key][1];
      this.gliding = null;
    } else if (event.key === "+" || event.key === "=") this.zoom(1.6);
    else if (event.key === "-") this.zoom(1 / 1.6);
    else if (event.key === "0") this.home();
    else if (event.key === "Enter") {
      this.#paint(); // what moved since is drawn with the next frame only
      const middle = this.#points.map((point) => [Math.hypot(point.x - this.width / 2,
        point.y - this.height / 2), point]).sort((a, b) => a[0] - b[0])[0];
      if (middle) this.open(middle[1].id);
    } else return;
    event.preventDefault();
    this.draw();
  }

  #say(point) {
    this.canvas.style.cursor = point ? "pointer" : "grab";
    if (this.#hovered !== (point?.id ?? null)) this.hover(point?.id);
    this.tip.hidden = !point;
    if (!point) return;
    this.tip.replaceChildren(el("b", {}, `#${point.id}`));
    this.tip.style.left = `${Math.min(point.x + 14, this.width - 90)}px`;
    this.tip.style.top = `${Math.max(8, point.y - point.r - 30)}px`;
  }

  #legend() {
    const select = this.root.querySelector("#color");
    select.replaceChildren(...this.about.sorts.map((sort) =>
      el("option", { value: sort.name }, sort.name)));
    select.addEventListener("change", () => this.colorBy(select.value));
    this.root.querySelector("#canvas").title = counted(this.about.clusters, "cluster");
  }

  #theme(dark) {
    this.colors = ramp(dark ? DARK : LIGHT, 32);
    this.ink = dark ? "#ffffff" : "#10202a";
    this.accent = dark ? "#ffb454" : "#d9480f";
    const canvas = this.root.querySelector("#ramp");
    const context = canvas.getContext("2d");
    this.colors.forEach((color, index) => {
      context.fillStyle = color;
      context.fillRect(index * 3, 0, 3, 8);
    });
    this.draw();
  }
}

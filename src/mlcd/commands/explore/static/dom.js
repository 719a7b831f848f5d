// Elements, built from text and never from markup: captions and URLs are strangers' words.

// Returns an element. `properties` are set as such (className, href, onclick …); `aria` and `data`
// hold attributes. Children are nodes or text; null and false are left out.
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  const { aria = {}, data = {}, ...rest } = properties;
  Object.assign(node, rest);
  for (const [name, value] of Object.entries(aria)) node.setAttribute(`aria-${name}`, value);
  for (const [name, value] of Object.entries(data)) node.dataset[name] = value;
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

// Returns a horizontal bar that is filled by a share, 0 to 1.
export function bar(share) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "bar");
  svg.setAttribute("viewBox", "0 0 100 4");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const [name, width] of [["track", 100], ["fill", Math.max(1, 100 * share)]]) {
    const rect = document.createElementNS(SVG, "rect");
    rect.setAttribute("class", name);
    rect.setAttribute("width", width);
    rect.setAttribute("height", 4);
    svg.append(rect);
  }
  return svg;
}

// Returns a thumbnail; a gray tile stands for an image that cannot be shown.
export function thumbnail([chunk, row], side, caption = "") {
  const image = el("img", {
    src: `image/${chunk}/${row}/${side}`, alt: caption, loading: "lazy", decoding: "async",
    draggable: false,
  });
  image.addEventListener("error", () => {
    image.replaceWith(el("span", { className: "lost", title: caption }, "not shown"));
  });
  return image;
}

const whole = new Intl.NumberFormat("en");

// Returns a value of a column as people read it.
export function shown(name, value) {
  if (value === null || value === undefined) return "–";
  if (name === "size" || name === "use") return whole.format(value);
  if (name === "duplicates") return `${(100 * value).toFixed(value && value < 0.1 ? 1 : 0)} %`;
  return value.toFixed(3);
}

export const counted = (count, word) =>
  `${whole.format(count)} ${word}${count === 1 ? "" : "s"}`;
export const grouped = (count) => whole.format(count);

// Keys: / searches, arrows move among cards and images, n and p turn pages, Escape leads back.

function gridOf(node) {
  return node.closest("[data-grid]");
}

// The item above or below: of the next row, the one that is nearest in x.
function beside(items, from, key) {
  const index = items.indexOf(from);
  if (key === "ArrowLeft") return items[index - 1];
  if (key === "ArrowRight") return items[index + 1];
  if (key === "Home") return items[0];
  if (key === "End") return items.at(-1);
  const here = from.getBoundingClientRect();
  const down = key === "ArrowDown";
  const rows = items.map((item) => ({ item, box: item.getBoundingClientRect() }))
    .filter(({ box }) => down ? box.top > here.top + 4 : box.top < here.top - 4);
  if (!rows.length) return undefined;
  const tops = rows.map(({ box }) => box.top);
  const top = down ? Math.min(...tops) : Math.max(...tops);
  return rows.filter(({ box }) => Math.abs(box.top - top) < 4)
    .sort((a, b) => Math.abs(a.box.left - here.left) - Math.abs(b.box.left - here.left))[0].item;
}

const MOVES = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"]);

export function listen({ query, content, back }) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    const typing = target.matches("input, select, textarea");
    if (event.key === "Escape") {
      if (document.querySelector("dialog[open]")) return; // the browser closes it
      if (typing) target.blur();
      else back();
      return;
    }
    if (typing || document.querySelector("dialog[open]")) return;
    if (event.key === "/") {
      event.preventDefault();
      query.focus();
      query.select();
      return;
    }
    const turn = content.querySelector(`[data-turn="${CSS.escape(event.key)}"]`);
    if (turn && event.key.length === 1) {
      turn.click();
      return;
    }
    if (!MOVES.has(event.key) || target.matches("canvas")) return;
    const grid = gridOf(target);
    if (!grid) {
      // From nowhere, an arrow enters the first grid.
      const first = content.querySelector("[data-grid] > *");
      if (first && event.key.startsWith("Arrow")) {
        event.preventDefault();
        first.focus();
      }
      return;
    }
    const next = beside([...grid.children], target.closest("[data-grid] > *"), event.key);
    event.preventDefault();
    if (next) {
      next.focus();
      next.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const grids = [...content.querySelectorAll("[data-grid]")];
      const other = grids[grids.indexOf(grid) + (event.key === "ArrowDown" ? 1 : -1)];
      other?.firstElementChild?.focus();
    }
  });
}

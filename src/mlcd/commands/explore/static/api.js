// Questions to the server that this page came from, and to no other.

export class Problem extends Error {}

async function answer(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("mlcd explore does not answer; is it still running?");
  }
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new Problem(said.problem || `the server answered ${response.status}`);
  }
  return response;
}

const json = async (path, options) => (await answer(path, options)).json();

export const about = () => json("api/about");
export const clusters = (by, order, start, count, signal) =>
  json(`api/clusters?${new URLSearchParams({ by, order, start, count })}`, { signal });
export const cluster = (id, start, count, words, signal) =>
  json(`api/cluster/${id}?${new URLSearchParams({ start, count, words })}`, { signal });
export const image = (chunk, row) => json(`api/image/${chunk}/${row}`);
export const words = (q, signal) => json(`api/words?${new URLSearchParams({ q })}`, { signal });
export const byImage = (file, signal) =>
  json("api/by-image", { method: "POST", body: file, signal });
export const tile = async (z, x, y, by) =>
  (await answer(`map/${z}/${x}/${y}?${new URLSearchParams({ by })}`)).arrayBuffer();

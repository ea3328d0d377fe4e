// The page: one tile, its neighbours at every width. All widths are asked for at once, so the slider only redraws.

import * as api from "./api.js";
import { viridis } from "./colours.js";
import { Viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const state = { model: null, tile: null, from: null, found: null, likeness: null, tokens: new Map(), asking: null };
let viewer = null;

function say(error) {
  if (error?.name === "AbortError") return;
  if (error?.status === 401) showTokenForm();
  $("problem").textContent = error ? error.message : "";
}

const guarded = (work) => async (...args) => {
  try { say(null); await work(...args); } catch (error) { say(error); }
};

function showTokenForm() {
  $("token-form").hidden = false;
  $("work").hidden = true;
  $("token").focus();
}

// ---------------------------------------------------------------- the tile

/** `from`: {slide, x, y} where the tile was taken, else null. */
const take = guarded(async (tile, from = null) => {
  state.asking?.abort();
  state.asking = new AbortController();
  const { signal } = state.asking;
  Object.assign(state, { tile, from, found: null, likeness: null, tokens: new Map() });
  URL.revokeObjectURL($("tile").src);
  $("tile").src = URL.createObjectURL(tile);
  $("tile").alt = from ? `The tile at ${Math.round(from.x)}, ${Math.round(from.y)} of ${from.slide.slide_id}` : "The tile that is searched for";
  $("tile").hidden = false;
  $("hint").hidden = true;
  if ($("file").files[0] !== tile) $("file").value = "";
  $("same-slide").hidden = !from;
  viewer?.removeHeat();
  const tasks = [drawTokens(signal)];
  if (state.model.num_tiles) tasks.push(searchTile(signal));
  if (viewer?.slide.num_tiles) tasks.push(askLikeness(signal));
  await Promise.all(tasks);
});

async function searchTile(signal) {
  const notSlide = state.from && $("others").checked ? state.from.slide.slide_id : null;
  $("answer").setAttribute("aria-busy", "true");
  try {
    state.found = await api.search(state.tile, notSlide, signal);
    drawNeighbours();
  } finally {
    $("answer").removeAttribute("aria-busy");
  }
}

// ---------------------------------------------------------------- the width

const width = () => state.model.widths[Number($("width").value)];

function changeWidth() {
  const said = `${width()} of ${state.model.width} numbers`;
  $("width-said").textContent = said;
  $("width").setAttribute("aria-valuetext", said);
  drawNeighbours();
  drawHeat();
  guarded(drawTokens)(state.asking?.signal);
}

function drawNeighbours() {
  if (!state.found) return;
  const hits = state.found.by_width[width()];
  const all = new Set(state.found.by_width[state.model.width].map((hit) => hit.tile_id));
  $("neighbours").replaceChildren(...hits.map((hit) => card(hit, all.has(hit.tile_id))));
  const shared = hits.filter((hit) => all.has(hit.tile_id)).length;
  if (!hits.length) $("summary").textContent = "Nothing is left: every tile of the index is from this slide.";
  else $("summary").textContent = width() === state.model.width
    ? `The ${hits.length} nearest of ${state.found.num_tiles} tiles by all numbers.`
    : `${shared} of these ${hits.length} are also the nearest by all ${state.model.width} numbers; the others have a dashed frame.`;
}

function card(hit, kept) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: kept ? "" : "new" });
  const image = Object.assign(document.createElement("img"), { alt: "" });
  const score = Object.assign(document.createElement("span"), { className: "score", textContent: hit.score.toFixed(3) });
  const facts = document.createElement("span");
  facts.textContent = [hit.label, hit.patient_id].filter(Boolean).join(", ");
  button.title = hit.tile_id;
  button.setAttribute("aria-label", `Search from ${facts.textContent || hit.tile_id}, cosine ${hit.score.toFixed(3)}`);
  button.append(image, score, facts);
  if (hit.has_image) {
    api.picture(hit.tile_id).then(({ url }) => { image.src = url; }).catch(say);
    button.addEventListener("click", async () => take((await api.picture(hit.tile_id)).blob));
  } else button.disabled = true;
  const item = document.createElement("li");
  item.append(button);
  return item;
}

async function drawTokens(signal) {
  const shown = $("show-tokens").checked && state.tile;
  $("tokens").hidden = !shown;
  if (!shown) return;
  const at = width();
  if (!state.tokens.has(at)) state.tokens.set(at, URL.createObjectURL(await api.tokens(state.tile, at, signal)));
  if (at === width()) $("tokens").src = state.tokens.get(at);
}

// ---------------------------------------------------------------- the slide

async function openSlides() {
  const slides = await api.slides();
  if (!slides.length) return;
  $("slides").hidden = false;
  $("slide").replaceChildren(...slides.map((slide) => new Option(
    slide.num_tiles ? slide.slide_id : `${slide.slide_id} (not in the index)`, slide.slide_id)));
  viewer = new Viewer($("viewer"), (x, y) => takeRegion(viewer.slide, x, y));
  const open = () => { viewer.open(slides[$("slide").selectedIndex]); state.likeness = null; $("legend").hidden = true; };
  $("slide").addEventListener("change", open);
  $("zoom-in").addEventListener("click", () => viewer.zoom(1.6));
  $("zoom-out").addEventListener("click", () => viewer.zoom(1 / 1.6));
  $("whole").addEventListener("click", () => viewer.whole());
  $("pick").addEventListener("click", () => viewer.takeMiddle());
  $("show-heat").addEventListener("change", drawHeat);
  const ramp = $("ramp").getContext("2d");
  for (let i = 0; i < 256; i++) { ramp.fillStyle = viridis(i / 255); ramp.fillRect(i, 0, 1, 1); }
  open();
}

const takeRegion = guarded(async (slide, x, y) => {
  const tile = await api.region(slide.slide_id, x, y);
  viewer.mark(x, y, slide.side);
  await take(tile, { slide, x, y });
});

async function askLikeness(signal) {
  state.likeness = await api.likeness(viewer.slide.slide_id, state.tile, signal);
  drawHeat();
}

function drawHeat() {
  const shown = $("show-heat").checked && state.likeness && state.likeness.slide_id === viewer.slide.slide_id;
  $("legend").hidden = !shown;
  if (!shown) return viewer?.removeHeat();
  const [low, high] = viewer.drawHeat(state.likeness.tiles, state.likeness.by_width[width()]);
  $("low").textContent = low.toFixed(2);
  $("high").textContent = high.toFixed(2);
}

// ---------------------------------------------------------------- the wiring

const start = guarded(async () => {
  state.model = await api.model();
  const { model } = state;
  $("model").textContent = `Model ${model.model_id.slice(0, 12)}, ${model.width} numbers a tile, distilled from ${model.teachers.join(", ")}.`;
  $("token-form").hidden = true;
  $("work").hidden = false;
  $("width").max = model.widths.length - 1;
  $("width").value = model.widths.length - 1;
  if (!model.num_tiles) $("summary").textContent = "The service has no index; start it with --index to see neighbours.";
  changeWidth();
  if (model.num_slides) await openSlides();
});

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.rememberToken($("token").value.trim());
  start();
});
$("file").addEventListener("change", () => { if ($("file").files.length) take($("file").files[0]); });
$("width").addEventListener("input", changeWidth);
$("others").addEventListener("change", guarded(() => searchTile(state.asking?.signal)));
$("show-tokens").addEventListener("change", () => guarded(drawTokens)(state.asking?.signal));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    const file = kind === "drop" && event.dataTransfer.files[0];
    if (file && state.model) take(file);
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file && state.model) take(file);
});

api.takeTokenFromAddress();
start();

// The page: one tile, the golden tiles by likeness at every width. A width is the first numbers, so the slider only redraws.

import * as students from "./student.js";

const $ = (id) => document.getElementById(id);
const LEAST = 0.9999;
const state = { student: null, vector: null, turn: 0 };

const guarded = (work) => async (...args) => {
  try { $("problem").textContent = ""; await work(...args); } catch (error) { $("problem").textContent = error.message; }
};

const width = () => state.student.facts.widths[Number($("width").value)];

const take = guarded(async (file) => {
  const turn = ++state.turn; // a tile dropped while another is embedded is the one that counts
  const began = performance.now();
  const vector = await students.embed(state.student, file);
  if (turn !== state.turn) return;
  Object.assign(state, { vector, ms: performance.now() - began });
  URL.revokeObjectURL($("tile").src);
  $("tile").src = URL.createObjectURL(file);
  $("tile").alt = "The tile that was embedded";
  $("tile").hidden = false;
  $("hint").hidden = true;
  if ($("file").files[0] !== file) $("file").value = "";
  draw();
});

function draw() {
  const { facts, golden } = state.student;
  const said = `${width()} of ${facts.width} numbers`;
  $("width-said").textContent = said;
  $("width").setAttribute("aria-valuetext", said);
  if (!state.vector) return;
  const found = golden.map(({ name, vector }) => ({ name, score: students.cosine(state.vector, vector, width()) }));
  found.sort((a, b) => b.score - a.score);
  $("neighbours").replaceChildren(...found.map(card));
  $("summary").textContent = `Embedded in ${state.ms.toFixed(0)} ms; ordered by cosine of the first ${said}.`;
}

function card({ name, score }) {
  const button = Object.assign(document.createElement("button"), { type: "button", title: name });
  const image = Object.assign(document.createElement("img"), { src: name, alt: "" });
  const said = Object.assign(document.createElement("span"), { className: "score", textContent: score.toFixed(3) });
  button.setAttribute("aria-label", `Embed golden tile ${name.match(/\d+/)}, cosine ${score.toFixed(3)}`);
  button.append(image, said);
  button.addEventListener("click", guarded(async () => take(await (await fetch(name)).blob())));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

/** Whether this browser gives the vector that PyTorch gave. */
async function check() {
  const { name, vector } = state.student.golden[0];
  const got = await students.embed(state.student, await (await fetch(name)).blob());
  const found = Math.min(...state.student.facts.widths.map((each) => students.cosine(got, vector, each)));
  if (!(found >= LEAST)) throw new Error(`This browser gives other vectors than PyTorch (cosine ${found.toFixed(5)}); do not trust them.`);
  return found;
}

const start = guarded(async () => {
  state.student = await students.open();
  const { facts } = state.student;
  $("width").max = facts.widths.length - 1;
  $("width").value = facts.widths.length - 1;
  $("work").hidden = false;
  draw();
  const found = await check();
  $("model").textContent = `Student ${facts.model_id.slice(0, 12)}, ${facts.width} numbers a tile; in this browser cosine ${found.toFixed(5)} to PyTorch.`;
});

$("file").addEventListener("change", () => { if ($("file").files.length) take($("file").files[0]); });
$("width").addEventListener("input", draw);
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    const file = kind === "drop" && event.dataTransfer.files[0];
    if (file && state.student) take(file);
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file && state.student) take(file);
});

start();

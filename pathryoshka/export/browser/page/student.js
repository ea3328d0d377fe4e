// The student in ONNX Runtime Web: one thread of WebAssembly, so any static file server will do.

import * as ort from "./vendor/ort.wasm.bundle.min.js";
import { decode, view } from "./view.js";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("vendor/ort-wasm-simd-threaded.wasm", import.meta.url).href };

async function fetched(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} is not beside this page (${answer.status}); write it again with "pathryoshka formats --browser".`);
  return answer;
}

/** -> {facts, golden: [{name, vector}], session}; facts are those of student.json. */
export async function open() {
  const facts = await (await fetched("student.json")).json();
  const numbers = new Float32Array(await (await fetched("golden/vectors.f32")).arrayBuffer());
  const golden = facts.golden.map((name, i) => ({ name, vector: numbers.subarray(i * facts.width, (i + 1) * facts.width) }));
  const session = await ort.InferenceSession.create(await (await fetched("model.onnx")).arrayBuffer());
  return { facts, golden, session };
}

/** Uint8Array [size, size, 3] -> Float32Array, the whole embedding. */
export async function run({ facts, session }, pixels) {
  const { embedding } = await session.run({ tiles: new ort.Tensor("uint8", pixels, [1, facts.size, facts.size, 3]) }, ["embedding"]);
  return embedding.data;
}

export const embed = async (student, file) => run(student, view(await decode(file), student.facts.size));

/** Of the first `width` numbers. */
export function cosine(a, b, width) {
  let ab = 0, aa = 0, bb = 0;
  for (let i = 0; i < width; i++) { ab += a[i] * b[i]; aa += a[i] * a[i]; bb += b[i] * b[i]; }
  return ab / Math.sqrt(aa * bb);
}

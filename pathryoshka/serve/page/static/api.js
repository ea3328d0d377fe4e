// What the page asks the service. The token comes with the address after '#', which no browser sends, or from the form.

const KEPT = "pathryoshka.token";

export function rememberToken(token) { sessionStorage.setItem(KEPT, token); }

export function takeTokenFromAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    rememberToken(token);
    history.replaceState(null, "", location.pathname);  // not into history, not onto a projector
  }
}

export function headers() {
  const token = sessionStorage.getItem(KEPT);
  return token ? { authorization: `Bearer ${token}` } : {};
}

export class Refused extends Error {
  constructor(status, sentence) { super(sentence); this.status = status; }
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

async function ask(path, options = {}) {
  for (let tries = 0; ; tries++) {
    let answer;
    try {
      answer = await fetch(path, { headers: headers(), ...options });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, "The service does not answer; is it still running?");
    }
    if (answer.ok) return answer;
    if ([429, 503].includes(answer.status) && tries < 5) {
      await pause(Number(answer.headers.get("retry-after")) || 1);
      continue;
    }
    const said = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, said.error || `The service answered ${answer.status}`);
  }
}

const json = async (path, options) => (await ask(path, options)).json();
const blob = async (path, options) => (await ask(path, options)).blob();
const post = (body, signal) => ({ method: "POST", body, signal });
const slide = (id) => `/v1/slides/${encodeURIComponent(id)}`;

export const model = () => json("/v1/model");
export const slides = () => json("/v1/slides");
export const tokens = (tile, width, signal) => blob(`/v1/tokens?width=${width}`, post(tile, signal));
export const region = (id, x, y) => blob(`${slide(id)}/region?x=${x}&y=${y}`);
export const likeness = (id, tile, signal) => json(`${slide(id)}/likeness`, post(tile, signal));
export const tileUrl = (id, level, x, y) => `${slide(id)}/deep-zoom/${level}/${x}/${y}.jpeg`;

export function search(tile, notSlide, signal) {
  const without = notSlide ? `&not_slide=${encodeURIComponent(notSlide)}` : "";
  return json(`/v1/search?k=12${without}`, post(tile, signal));
}

const pictures = new Map();  // tile id -> promise of {blob, url}: a neighbour at one width is one at others

export function picture(tileId) {
  if (!pictures.has(tileId)) {
    const path = `/v1/tiles/${tileId.split("/").map(encodeURIComponent).join("/")}`;
    pictures.set(tileId, blob(path).then((data) => ({ blob: data, url: URL.createObjectURL(data) })));
  }
  return pictures.get(tileId);
}

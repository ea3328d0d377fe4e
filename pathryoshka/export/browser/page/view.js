// A picture of any size -> the view that the student was scored on: the middle square, resized as Pillow's BILINEAR does
// it (a triangle that widens with the scale, in whole numbers, columns before rows), so that vectors agree with Python's.

const BITS = 22;
const MAX_PIXELS = 50_000_000;

/** Image file -> {pixels: Uint8ClampedArray RGBA, width, height}. */
export async function decode(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error("This is no JPEG, PNG or WebP image that the browser can read.");
  }
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) throw new Error(`${width} x ${height} pixels are no tile; cut one out of it.`);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { pixels: context.getImageData(0, 0, width, height).data, width, height };
}

/** -> Uint8Array [size, size, 3]. */
export function view({ pixels, width, height }, size) {
  const side = Math.min(width, height);
  const columns = weights(width, (width - side) / 2, side, size);
  const rows = weights(height, (height - side) / 2, side, size);
  const wide = new Uint8Array(height * size * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < size; x++) {
      const { first, taps } = columns[x];
      for (let c = 0; c < 3; c++) {
        let sum = 2 ** (BITS - 1);
        for (let i = 0; i < taps.length; i++) sum += pixels[(y * width + first + i) * 4 + c] * taps[i];
        wide[(y * size + x) * 3 + c] = clip(sum);
      }
    }
  }
  const out = new Uint8Array(size * size * 3);
  for (let y = 0; y < size; y++) {
    const { first, taps } = rows[y];
    for (let at = 0; at < size * 3; at++) {
      let sum = 2 ** (BITS - 1);
      for (let i = 0; i < taps.length; i++) sum += wide[(first + i) * size * 3 + at] * taps[i];
      out[y * size * 3 + at] = clip(sum);
    }
  }
  return out;
}

const clip = (sum) => Math.max(0, Math.min(255, Math.floor(sum / 2 ** BITS)));

/** For each of `size` outputs the first input and its weights, as whole numbers of 2^-22. */
function weights(length, from, side, size) {
  const scale = side / size;
  const reach = Math.max(scale, 1);
  return Array.from({ length: size }, (_, at) => {
    const centre = from + (at + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(length, Math.trunc(centre + reach + 0.5));
    const raw = Array.from({ length: end - first }, (_, i) => Math.max(0, 1 - Math.abs((first + i - centre + 0.5) / reach)));
    const sum = raw.reduce((a, b) => a + b, 0);
    return { first, taps: raw.map((weight) => Math.floor((weight / sum) * 2 ** BITS + 0.5)) };
  });
}

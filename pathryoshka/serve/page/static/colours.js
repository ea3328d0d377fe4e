// Viridis (van der Walt and Smith, CC0): even steps for every kind of sight, also in grey. Nine of its 256 colours,
// between which it is nearly straight.

const STOPS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99],
  [170, 220, 50], [253, 231, 37]];

/** CSS colour of a share, 0 to 1. */
export function viridis(share) {
  const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const below = Math.min(Math.floor(at), STOPS.length - 2);
  const mix = STOPS[below].map((from, i) => Math.round(from + (at - below) * (STOPS[below + 1][i] - from)));
  return `rgb(${mix.join(",")})`;
}

/** The 2nd and the 98th percentile: one odd tile does not take all the colours. */
export function range(values) {
  const sorted = Float64Array.from(values).sort();
  const of = (share) => sorted[Math.round(share * (sorted.length - 1))];
  return [of(0.02), Math.max(of(0.98), of(0.02) + 1e-6)];
}

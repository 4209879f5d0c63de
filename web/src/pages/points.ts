// The points of a curve: fewer of them, and the one next to a place.

export interface Points {
  x: number[];
  y: number[];
}

const MOST_POINTS = 240;

/** At most a few hundred points: means of neighbours, so that noise does not hide the course. */
export function thinned({ x, y }: Points): Points {
  const size = Math.ceil(y.length / MOST_POINTS);
  if (size <= 1) return { x, y };
  const thin: Points = { x: [], y: [] };
  for (let start = 0; start < y.length; start += size) {
    const end = Math.min(y.length, start + size);
    let sum = 0;
    for (let i = start; i < end; i += 1) sum += y[i]!;
    thin.x.push(x[end - 1]!);
    thin.y.push(sum / (end - start));
  }
  return thin;
}

/** Index of the value next to the wanted one. */
export function nearest(sorted: number[], wanted: number): number {
  let low = 0;
  let high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle]! < wanted) low = middle + 1;
    else high = middle;
  }
  const before = sorted[low - 1];
  if (before !== undefined && wanted - before < sorted[low]! - wanted) return low - 1;
  return low;
}

// Maps to colours, boxes and masks, as ssa_fast.localize defines them. A map is {height, width, data: Float32Array}.

/** Return a map resized bilinearly, pixel centres at halves as PyTorch's `align_corners=False`. */
export function resize(map, height, width) {
  if (map.height === height && map.width === width) return map.data;
  const out = new Float32Array(height * width);
  const columns = places(map.width, width);
  const rows = places(map.height, height);
  for (let y = 0; y < height; y++) {
    const top = rows.low[y] * map.width;
    const bottom = rows.high[y] * map.width;
    const down = rows.share[y];
    for (let x = 0; x < width; x++) {
      const left = columns.low[x];
      const right = columns.high[x];
      const across = columns.share[x];
      const above = map.data[top + left] * (1 - across) + map.data[top + right] * across;
      const below = map.data[bottom + left] * (1 - across) + map.data[bottom + right] * across;
      out[y * width + x] = above * (1 - down) + below * down;
    }
  }
  return out;
}

function places(from, to) {
  const low = new Int32Array(to);
  const high = new Int32Array(to);
  const share = new Float32Array(to);
  for (let place = 0; place < to; place++) {
    const exact = Math.min(Math.max(((place + 0.5) * from) / to - 0.5, 0), from - 1);
    low[place] = Math.floor(exact);
    high[place] = Math.min(low[place] + 1, from - 1);
    share[place] = exact - low[place];
  }
  return {low, high, share};
}

const FAINT = 0.35; // of the range: values below it fade out, so that the picture shows where a map is silent

/** Return RGBA of a map stretched from `low`..`high` over a table of 256 colours; NaN is grey. */
export function colours(map, height, width, table, low = 0, high = 1) {
  const values = resize(map, height, width);
  const image = new ImageData(width, height);
  const scale = high > low ? 1 / (high - low) : 0;
  for (let place = 0, byte = 0; place < values.length; place++, byte += 4) {
    const value = (values[place] - low) * scale;
    if (Number.isNaN(value)) {
      image.data.set([128, 128, 128, 255], byte);
      continue;
    }
    const share = Math.min(Math.max(value, 0), 1);
    const entry = 3 * Math.min(Math.floor(share * 256), 255);
    image.data[byte] = table[entry];
    image.data[byte + 1] = table[entry + 1];
    image.data[byte + 2] = table[entry + 2];
    image.data[byte + 3] = 255 * Math.min(share / FAINT, 1);
  }
  return image;
}

/** Return the largest value of a map, NaN if it holds one, as NumPy's `max`. */
function peak(map) {
  let most = -Infinity;
  for (const value of map.data) {
    if (Number.isNaN(value)) return NaN;
    if (value > most) most = value;
  }
  return most;
}

/** Return the level that boxes exceed: `auto`, the server's, or the share of the map's maximum, in float32. */
export function boxLevel(map, share, auto) {
  return Math.fround(share === null ? auto : Math.fround(share) * peak(map));
}

/** Return boxes [x1, y1, x2, y2] (ends exclusive) around the 8-connected regions above `level`, largest first. */
export function boxes(map, level, components) {
  if (!(peak(map) > 0)) return [];
  const {height, width, data} = map;
  const seen = new Uint8Array(data.length);
  const stack = new Int32Array(data.length);
  const found = [];
  for (let start = 0; start < data.length; start++) {
    if (seen[start] || !(data[start] > level)) continue;
    let [x1, y1, x2, y2, area, depth] = [width, height, 0, 0, 0, 1];
    seen[start] = 1;
    stack[0] = start;
    while (depth) {
      const place = stack[--depth];
      const y = Math.floor(place / width);
      const x = place - y * width;
      area++;
      if (x < x1) x1 = x;
      if (x >= x2) x2 = x + 1;
      if (y < y1) y1 = y;
      if (y >= y2) y2 = y + 1;
      for (let row = Math.max(y - 1, 0); row <= Math.min(y + 1, height - 1); row++) {
        for (let column = Math.max(x - 1, 0); column <= Math.min(x + 1, width - 1); column++) {
          const next = row * width + column;
          if (!seen[next] && data[next] > level) {
            seen[next] = 1;
            stack[depth++] = next;
          }
        }
      }
    }
    found.push({box: [x1, y1, x2, y2], area});
  }
  found.sort((one, other) => other.area - one.area); // stable: in reading order on a tie
  return found.slice(0, components === 'largest' ? 1 : found.length).map(({box}) => box);
}

/** Return the label map: 0 background, k + 1 for the class of the largest map above it, 255 where one is NaN. */
export function mask(maps, background) {
  const level = Math.fround(background);
  const labels = new Uint8Array(maps[0].data.length);
  for (let place = 0; place < labels.length; place++) {
    let [most, best] = [-Infinity, 0];
    for (let k = 0; k < maps.length; k++) {
      const value = maps[k].data[place];
      if (Number.isNaN(value)) {
        best = 254;
        most = Infinity;
        break;
      }
      if (value > most) [most, best] = [value, k];
    }
    labels[place] = most > level ? best + 1 : 0;
  }
  return labels;
}

/** Return where a map is largest, as fractions [y, x] of the picture. */
export function strongest(map) {
  let best = 0;
  for (let place = 1; place < map.data.length; place++) if (map.data[place] > map.data[best]) best = place;
  const row = Math.floor(best / map.width);
  return [(row + 0.5) / map.height, (best - row * map.width + 0.5) / map.width];
}

/** Return a map's value at fractions of height and width: that of the pixel there. */
export function valueAt(map, y, x) {
  const row = Math.min(Math.floor(y * map.height), map.height - 1);
  const column = Math.min(Math.floor(x * map.width), map.width - 1);
  return map.data[row * map.width + column];
}

// A view's settings, and the address's fragment that holds those which differ from the defaults.

/** What a fragment need not say; `colormap` is the server's to choose. */
export const DEFAULTS = {
  image: '', network: '', classes: [], stages: null, weights: null, fuse: 'mean', affinity: 'auto', seed: 'auto',
  prior: null, size: null, // what the server computes
  view: 'fused', shown: 0, at: null, opacity: 0.75, colormap: '', threshold: null, background: null,
  components: 'largest', wipe: 50, // what the browser shows
};

const list = (text, read) => (text ? text.split(',').map(read) : null);
const fraction = (text) => inRange(text, 0, 1);

function inRange(text, low, high) {
  const value = Number(text);
  if (text === '' || !(value >= low && value <= high)) throw new RangeError(text);
  return value;
}

function whole(text) {
  if (!/^\d{1,7}$/.test(text)) throw new RangeError(text);
  return Number(text);
}

function oneOf(...values) {
  return (text) => {
    if (!values.includes(text)) throw new RangeError(text);
    return text;
  };
}

function pair(text) {
  const numbers = list(text, fraction);
  if (numbers.length !== 2) throw new RangeError(text);
  return numbers;
}

const READ = {
  image: String, network: String, classes: (text) => list(text, whole).slice(0, 5), stages: (text) => list(text, String),
  weights: (text) => list(text, (item) => inRange(item, 0, 1e6)), fuse: String, affinity: String, seed: String,
  prior: oneOf('center'), size: whole, view: String, shown: (text) => inRange(whole(text), 0, 4), at: pair,
  opacity: fraction, colormap: String, threshold: fraction, background: fraction, components: oneOf('largest', 'all'),
  wipe: (text) => inRange(text, 0, 100),
};

/** Return the settings of a fragment, and the names of those that could not be read. */
export function fromFragment(fragment) {
  const settings = {...DEFAULTS};
  const unread = [];
  for (const [name, text] of new URLSearchParams(fragment.replace(/^#/, ''))) {
    try {
      if (!(name in READ)) throw new RangeError(name);
      settings[name] = READ[name](text);
    } catch {
      unread.push(name);
    }
  }
  return {settings, unread};
}

/** Return the fragment of settings, readable: image, network and classes first, then what differs from the defaults. */
export function toFragment(settings) {
  const parts = [];
  for (const [name, value] of Object.entries(settings)) {
    if (value === null || value === '' || String(value) === String(DEFAULTS[name])) continue;
    parts.push(`${name}=${encodeURIComponent(String(value)).replaceAll('%2C', ',')}`);
  }
  return parts.length ? `#${parts.join('&')}` : '';
}

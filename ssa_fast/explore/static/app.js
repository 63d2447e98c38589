// The page's state and flow: settings change, the server computes, the browser paints.

import {blob, Failure, floats, fromBase64, get, post, upload} from './api.js';
import {
  chosenStages, setUp, setUpSearch, showCaption, showClasses, showImages, showSettings, showStages,
} from './controls.js';
import {strongest, valueAt} from './maps.js';
import {bytes, byId, copy, decimals, element, milliseconds, percent, renew, settle, tell} from './page.js';
import {CLASS_COLOURS, crosshair, fitCanvas, Painter, ratio} from './painter.js';
import {Probe} from './pixel.js';
import {DEFAULTS, fromFragment, toFragment} from './settings.js';

const COMPUTED = ['image', 'network', 'classes', 'stages', 'weights', 'fuse', 'affinity', 'seed', 'prior', 'size'];
const FILES = [['CAMs', 'cams.npz'], ['Mask', 'mask.png'], ['Boxes', 'boxes.json'], ['Figure', 'figure.png'],
  ['Figure', 'figure.svg'], ['Figure', 'figure.pdf']];

let options = null; // what the server offers
let settings = {...DEFAULTS};
let tables = {}; // colour map -> 256 RGB
let network = null; // {key, photo, stages, predicted, …} of the image and network shown
let painter = null; // paints the view shown, null before the first
let hovered = null; // the place under the pointer
let work = null; // what is being computed, to be aborted by what is newer
const names = new Map(); // class index -> {name, probability}

const probe = new Probe(() => ({painter, settings, request: painter?.view.request}), (error) => fail(error, 'pixel'));

/** Return the position, in the view that is shown, of the class chosen to be shown; the view may be older than the choice. */
function shownClass() {
  const {classes} = painter.view;
  return Math.max(0, classes.findIndex(({index}) => index === settings.classes[settings.shown]));
}

// ---- settings and flow

/** Take over a choice; compute or paint what follows from it. */
function change(patch) {
  if (patch.image !== undefined && patch.image !== settings.image) patch = {classes: [], shown: 0, at: null, ...patch};
  if (patch.network !== undefined && patch.network !== settings.network) {
    patch = {classes: [], shown: 0, stages: null, weights: null, ...patch};
  }
  const before = settings;
  settings = {...settings, ...patch};
  remember();
  showControls();
  if (COMPUTED.some((name) => String(settings[name]) !== String(before[name]))) compute();
  else paint();
  if (settings.at !== before.at && settings.at) point(settings.at, true);
  else if (settings.shown !== before.shown || settings.at !== before.at) pointAgain();
}

let remembering = 0;

/** Write the settings into the address, not more often than browsers allow. */
function remember() {
  clearTimeout(remembering);
  remembering = setTimeout(() => history.replaceState(null, '', toFragment(settings) || location.pathname), 120);
}

function fail(error, kind = 'view') {
  if (error.name === 'AbortError') return;
  if (!(error instanceof Failure)) console.error(error);
  tell(error.message, 'error', kind === 'pixel' ? null : compute);
}

let running = 0;

/** Show that something is being computed or read; each start has its end. */
function busy(starts) {
  running += starts ? 1 : -1;
  byId('progress').hidden = !running;
  byId('viewer').setAttribute('aria-busy', String(running > 0));
}

/** Run the network where image or network are new, then compute the view; the newest request wins. */
async function compute() {
  work?.abort();
  work = new AbortController();
  const {signal} = work;
  if (!settings.image) return showEmpty();
  byId('empty').hidden = true;
  busy(true);
  byId('status').textContent = 'Computing…';
  try {
    await meet(signal);
    let info = await show({full: false}, signal);
    if (info.preview) {
      tellPreview(`Preview: ${info.preview_reason.replace(/\.$/, '')}. The full maps are being computed…`);
      byId('status').textContent = 'Computing the full maps…';
      info = await show({full: true}, signal);
    }
    tellPreview('');
    byId('status').textContent = `Polished in ${milliseconds(info.milliseconds.polish)}`;
    settle();
  } catch (error) {
    fail(error);
    if (error.name !== 'AbortError') byId('status').textContent = painter ? 'Not computed: see the message above.' : '';
  } finally {
    busy(false);
  }
}

function tellPreview(text) {
  byId('preview').textContent = text;
  byId('preview').hidden = !text;
}

/** Let the network see the image, unless it has; settle what the settings leave open. */
async function meet(signal) {
  const key = JSON.stringify([settings.image, settings.network, settings.size]);
  if (network?.key !== key) {
    const [info, photo] = await Promise.all([
      post('api/network', {network: settings.network, image: settings.image, size: settings.size, stages: settings.stages}, signal),
      blob(`api/images/${encodeURIComponent(settings.image)}`, signal).then(({bytes: read}) => createImageBitmap(read)),
    ]);
    network = {...info, key, photo};
    names.clear();
    for (const row of info.predicted) names.set(row.index, row);
  }
  const classes = settings.classes.filter((index) => index < network.num_classes);
  const known = network.stages.map(({name}) => name);
  const stages = settings.stages?.filter((name) => known.includes(name)) ?? null;
  if (classes.length < settings.classes.length || (stages && stages.length < settings.stages.length)) {
    tell('The address names classes or stages that this network does not have; they were left out.', 'note');
    settings = {...settings, weights: null};
  }
  settings = {
    ...settings, stages: stages?.length ? stages : null,
    classes: classes.length ? classes : network.predicted.slice(0, 1).map(({index}) => index),
  };
  if (settings.weights && settings.weights.length !== chosenStages(network, settings).length) settings.weights = null;
  settings.shown = Math.min(settings.shown, settings.classes.length - 1);
  remember();
  showControls();
}

/** Compute the view of the settings, fetch its maps and show them all at once. */
async function show({full}, signal) {
  const asked = Object.fromEntries(COMPUTED.map((name) => [name, settings[name]]));
  const info = await post('api/view', {...asked, full}, signal);
  const fetchMaps = (kind, shape, stage = '') => Promise.all(info.classes.map(async (_, k) => {
    const query = new URLSearchParams({kind, k, ...(stage && {stage})});
    const data = await floats(`api/view/${info.id}/map?${query}`, signal);
    return {height: shape.height, width: shape.width, data};
  }));
  const [seed, fused, ...stages] = await Promise.all([
    fetchMaps('seed', info.seed), fetchMaps('fused', info.fused),
    ...info.stages.map((stage) => fetchMaps('stage', stage, stage.name)),
  ]);
  const view = {
    ...info, height: info.image.height, width: info.image.width, seed, fused,
    stages: Object.fromEntries(info.stages.map(({name}, place) => [name, stages[place]])), computed: info.stages,
    request: {image: asked.image, network: asked.network, stages: asked.stages, affinity: asked.affinity, size: asked.size},
  };
  for (const row of info.classes) names.set(row.index, row);
  painter = new Painter(network.photo, view, tables);
  probe.forget();
  showView();
  return info;
}

// ---- what is shown

function showEmpty() {
  byId('empty').hidden = false;
  byId('viewer-title').textContent = 'No image yet';
  byId('status').textContent = '';
}

function showControls() {
  showSettings(settings);
  showCaption(options.images, settings);
  if (network) {
    showClasses(network.predicted, names, settings, change);
    showStages(network, settings, change);
  }
  for (const name of ['opacity', 'wipe']) byId(name).value = settings[name];
  for (const name of ['colormap', 'components']) byId(name).value = settings[name];
  byId('opacity-value').textContent = `${Math.round(100 * settings.opacity)} %`;
}

/** Show a view that has just come: its names, files and lines, and the pixel. */
function showView() {
  const {view} = painter;
  if (!views().includes(settings.view)) settings.view = DEFAULTS.view;
  showControls();
  showShown();
  showStrip();
  showComputed();
  showLines();
  byId('viewer').style.setProperty('--aspect', view.width / view.height);
  paint();
  pointAgain();
}

const views = () => ['image', 'seed', ...Object.keys(painter.view.stages).map((name) => `stage:${name}`), 'fused', 'boxes',
  'mask', 'wipe'];

const TITLES = {image: 'Image', seed: 'Seed', fused: 'Polished', boxes: 'Boxes', mask: 'Mask', wipe: 'Wipe'};

function title(view) {
  return TITLES[view] ?? view.slice('stage:'.length);
}

/** Show which of several classes has its maps shown. */
function showShown() {
  const {classes} = painter.view;
  byId('shown').hidden = classes.length < 2;
  renew(byId('shown'), ...classes.map(({name, probability}, k) => {
    const radio = element('input', {type: 'radio', name: 'shown', value: k, checked: k === shownClass(),
      className: 'hidden-input', 'data-key': k});
    radio.addEventListener('change', () => change({shown: k}));
    const dot = element('span', {className: 'dot', 'aria-hidden': 'true'});
    dot.style.setProperty('--colour', CLASS_COLOURS[k]);
    return element('label', {}, radio, dot, element('span', {textContent: `${name} ${percent(probability)}`}));
  }));
}

function showStrip() {
  const kept = [...byId('strip').querySelectorAll('input')].map(({value}) => value);
  if (String(kept) === String(views())) return;
  renew(byId('strip'), ...views().map((view) => {
    const radio = element('input', {type: 'radio', name: 'view', value: view, className: 'hidden-input', 'data-key': view});
    radio.addEventListener('change', () => change({view}));
    return element('label', {title: title(view)}, radio, element('canvas', {'aria-hidden': 'true'}),
      element('span', {textContent: title(view)}));
  }));
}

let painting = null; // 'all', or 'cross': the crosshair alone has moved

/** Paint at the next frame: a slider moves more often than the screen shows. */
function paint(what = 'all') {
  if (painting === null) {
    requestAnimationFrame(() => {
      const all = painting === 'all';
      painting = null;
      if (!painter) return;
      if (all) paintNow();
      else paintBig();
    });
  }
  if (painting !== 'all') painting = what;
}

function paintNow() {
  const {view} = painter;
  const {name, probability} = view.classes[shownClass()];
  byId('viewer-title').replaceChildren(name, element('span', {className: 'unit', textContent: ` ${percent(probability)}`}));
  for (const radio of byId('strip').querySelectorAll('input')) {
    radio.checked = radio.value === settings.view;
    const canvas = radio.nextElementSibling;
    if (fitCanvas(canvas, view.height, view.width)) painter.paint(canvas, radio.value, {...settings, shown: shownClass()});
  }
  paintBig();
  for (const radio of byId('shown').querySelectorAll('input')) radio.checked = Number(radio.value) === shownClass();
  byId('wipe-field').hidden = settings.view !== 'wipe';
  showThreshold('threshold', settings.threshold, view.threshold[shownClass()]);
  showThreshold('background', settings.background, view.background);
  const scale = byId('scale').getContext('2d');
  const row = new ImageData(256, 1);
  for (let place = 0; place < 256; place++) row.data.set([...tables[settings.colormap].subarray(3 * place, 3 * place + 3), 255], 4 * place);
  scale.putImageData(row, 0, 0);
  byId('view').setAttribute('aria-label',
    `${title(settings.view)} of ${name}; arrow keys move the crosshair`);
  showRegions();
  showDownloads();
  probe.paint();
}

function paintBig() {
  const canvas = byId('view');
  if (!fitCanvas(canvas, painter.view.height, painter.view.width)) return;
  painter.paint(canvas, settings.view, {...settings, shown: shownClass()});
  const place = hovered ?? settings.at ?? probe.answer?.place;
  if (place) crosshair(canvas, place, ratio());
}

function showThreshold(name, own, automatic) {
  const value = own ?? automatic;
  byId(`${name}-auto`).checked = own === null;
  if (document.activeElement !== byId(name) || own === null) byId(name).value = value;
  byId(`${name}-value`).textContent = decimals(value);
}

/** Tell boxes and mask of each class in numbers, as the sliders have them. */
function showRegions() {
  const {view} = painter;
  const counts = new Uint32Array(256);
  for (const label of painter.mask(settings)) counts[label]++;
  const pixels = view.fused[0].data.length;
  byId('regions').replaceChildren(...painter.boxes(settings).map((found, k) => {
    const [x1, y1, x2, y2] = found[0] ?? [];
    const box = found.length ? `${found.length > 1 ? `${found.length} boxes, the first ` : 'box '}x ${x1}–${x2}, y ${y1}–${y2}` : 'no box';
    const area = `mask ${counts[k + 1].toLocaleString('en')} pixels (${percent(counts[k + 1] / pixels)})`;
    const dot = element('span', {className: 'dot', 'aria-hidden': 'true'});
    dot.style.setProperty('--colour', CLASS_COLOURS[k]);
    return element('li', {}, dot, element('span', {textContent: `${view.classes[k].name}: ${box}; ${area}`}));
  }));
}

function showComputed() {
  const {view} = painter;
  byId('computed').replaceChildren(...view.computed.map((stage) => element('tr', {},
    element('th', {scope: 'row', textContent: stage.name}),
    element('td', {textContent: `${stage.height} × ${stage.width}`}), element('td', {textContent: stage.method}),
    element('td', {textContent: stage.kernel}),
    element('td', {className: 'number', textContent: milliseconds(stage.milliseconds)}),
    element('td', {className: 'number', textContent: bytes(stage.dense_bytes)}))));
  byId('reasons').replaceChildren(...view.computed.filter(({reason}) => reason).map(({name, reason}) => element('div', {},
    element('dt', {textContent: name}), element('dd', {textContent: reason}))));
  byId('why').hidden = !byId('reasons').children.length;
  const {features, polish} = view.milliseconds;
  byId('computed-sum').textContent = [
    features ? `Features ${milliseconds(features)}` : 'Features kept from before',
    `polishing ${milliseconds(polish)}`, `the dense form would have held ${bytes(view.dense_bytes)}`].join(' · ');
  const notes = [...(network.notes ?? []), ...(view.notes ?? [])];
  byId('notes').replaceChildren(...[...new Set(notes)].map((note) => element('li', {textContent: note})));
}

function showLines() {
  byId('command').textContent = painter.view.command;
  byId('python').textContent = painter.view.python;
}

function showDownloads() {
  const {threshold, background, components, colormap} = settings;
  const query = new URLSearchParams({threshold: threshold ?? 'auto', background: background ?? 'auto', components, colormap});
  const list = byId('downloads');
  if (!list.children.length) {
    list.append(...FILES.map(([text, file]) => {
      const ending = file.split('.')[1];
      const link = element('a', {download: '', 'data-file': file}, `${text} `, element('span', {textContent: `.${ending}`}));
      link.addEventListener('click', save);
      return element('li', {}, link);
    }));
  }
  for (const link of list.querySelectorAll('a')) link.href = `api/view/${painter.view.id}/download/${link.dataset.file}?${query}`;
}

/** Save a file; a refusal is told in the page instead of being saved as a file. */
async function save(event) {
  event.preventDefault();
  const link = event.currentTarget;
  try {
    const file = await blob(link.href);
    const address = URL.createObjectURL(file.bytes);
    element('a', {href: address, download: file.name || link.dataset.file}).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  } catch (error) {
    fail(error, 'pixel');
  }
}

// ---- the pixel

/** Show a pixel's values and correlation; `aloud` tells screen readers, which hovering does not. */
function point(place, aloud = false) {
  if (!painter) return;
  const {view} = painter;
  const [y, x] = place;
  const [row, column] = [Math.min(Math.floor(y * view.height), view.height - 1), Math.min(Math.floor(x * view.width), view.width - 1)];
  const where = `Pixel ${column} across, ${row} down`;
  byId('pixel-place').textContent = settings.at || hovered ? `${where}${hovered ? '' : ', held'}`
    : `${where}: where the map is strongest. Click, tap or point elsewhere.`;
  const seed = decimals(valueAt(view.seed[shownClass()], y, x));
  const polished = decimals(valueAt(view.fused[shownClass()], y, x));
  byId('pixel-values').replaceChildren(
    element('div', {}, element('dt', {textContent: 'seed'}), element('dd', {textContent: seed})),
    element('div', {}, element('dt', {textContent: 'polished'}), element('dd', {textContent: polished})));
  if (aloud) byId('pixel-live').textContent = `${where}: seed ${seed}, polished ${polished}`;
  paint('cross');
  probe.show(place);
}

/** Show the pixel that is held, or where the map is strongest. */
function pointAgain() {
  if (painter) point(settings.at ?? strongest(painter.view.fused[shownClass()]), true);
}

/** Return the place in the picture under the pointer, null beside it. */
function placeOf(event) {
  const canvas = event.target.closest('canvas');
  if (!canvas || !painter) return null;
  const {left, top, width, height} = canvas.getBoundingClientRect();
  const within = (value) => Math.min(Math.max(value, 0), 1);
  return [within((event.clientY - top) / height), within((event.clientX - left) / width)];
}

const rounded = (place) => place.map((value) => Math.round(1e4 * value) / 1e4);

function setUpPointer(target) {
  target.addEventListener('pointermove', (event) => {
    const place = placeOf(event);
    if (event.pointerType === 'touch' || !place) return; // a finger scrolls; its tap is a click
    hovered = place;
    point(place);
  });
  target.addEventListener('pointerleave', () => {
    if (!hovered) return;
    hovered = null;
    pointAgain();
  });
  target.addEventListener('click', (event) => {
    const place = placeOf(event);
    if (place) change({at: rounded(place)});
  });
}

const STEPS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};

function setUpKeys() {
  byId('view').addEventListener('keydown', (event) => {
    if (!painter || event.ctrlKey || event.altKey || event.metaKey) return;
    const {view} = painter;
    const from = settings.at ?? probe.answer?.place ?? [0.5, 0.5];
    let place;
    if (event.key in STEPS) {
      const far = event.shiftKey ? 1 : 8;
      const sizes = [view.height, view.width];
      // To the middle of a pixel, so that eight steps of one pixel are one of eight.
      place = STEPS[event.key].map((sign, axis) => {
        const pixel = Math.floor(from[axis] * sizes[axis]) + sign * far;
        return (Math.min(Math.max(pixel, 0), sizes[axis] - 1) + 0.5) / sizes[axis];
      });
    } else if (event.key === 'Home') place = strongest(view.fused[shownClass()]);
    else if (event.key === 'Escape') place = null;
    else return;
    event.preventDefault();
    hovered = null;
    change({at: place && rounded(place)});
  });
}

// ---- images

async function add(files) {
  for (const file of files) {
    const {bytes: most} = options.limits;
    if (file.size > most) {
      tell(`${file.name} has ${bytes(file.size)}; at most ${bytes(most)} are read. Make it smaller first.`);
      continue;
    }
    const status = byId('status').textContent;
    byId('status').textContent = `Reading ${file.name}…`;
    busy(true);
    try {
      const image = await upload(file);
      for (const note of image.notes ?? []) tell(note, 'note');
      options.images = [image, ...options.images.filter(({id}) => id !== image.id)];
      settle();
      showImages(options.images, settings, change);
      change({image: image.id});
    } catch (error) {
      fail(error, 'pixel');
      byId('status').textContent = status;
    } finally {
      busy(false);
    }
  }
}

function setUpFiles() {
  byId('file').addEventListener('change', async ({target}) => {
    const files = [...target.files];
    target.value = ''; // the same file can be chosen again
    await add(files);
  });
  document.addEventListener('paste', (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) add(files);
  });
  let inside = 0;
  const dropping = (on) => {
    inside = on ? inside : 0;
    byId('dropping').hidden = !on;
  };
  const hasFiles = (event) => event.dataTransfer?.types.includes('Files');
  document.addEventListener('dragenter', (event) => {
    if (!hasFiles(event)) return;
    inside++;
    dropping(true);
  });
  document.addEventListener('dragleave', (event) => {
    if (hasFiles(event) && --inside <= 0) dropping(false);
  });
  document.addEventListener('dragover', (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  document.addEventListener('drop', (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    dropping(false);
    add([...event.dataTransfer.files]);
  });
}

// ---- start

function setUpDisplay() {
  for (const name of ['opacity', 'threshold', 'background', 'wipe']) {
    byId(name).addEventListener('input', ({target}) => change({[name]: Number(target.value)}));
  }
  for (const name of ['threshold', 'background']) {
    byId(`${name}-auto`).addEventListener('change', ({target}) =>
      change({[name]: target.checked ? null : Number(byId(name).value)}));
  }
  for (const name of ['colormap', 'components']) {
    byId(name).addEventListener('change', ({target}) => change({[name]: target.value}));
  }
  byId('colormap').replaceChildren(...Object.keys(tables).map((name) => element('option', {value: name, textContent: name})));
  for (const button of document.querySelectorAll('[data-copy]')) {
    button.addEventListener('click', async () => flash(button, await copy(byId(button.dataset.copy).textContent, byId(button.dataset.copy))));
  }
  byId('copy-link').addEventListener('click', async ({currentTarget}) => {
    flash(currentTarget, await copy(new URL(toFragment(settings), location.href).href, null));
  });
  byId('skip').addEventListener('click', (event) => { // the fragment is the view's
    event.preventDefault();
    byId('view').focus();
  });
  const resized = new ResizeObserver(() => paint());
  for (const id of ['viewer', 'correlations']) resized.observe(byId(id));
}

function flash(button, done) {
  const text = (button.dataset.text ??= button.textContent);
  button.textContent = done ? 'Copied' : 'Press Ctrl+C';
  setTimeout(() => (button.textContent = text), 1200);
}

/** Take over the address's settings, or the server's first image and network where they name none. */
function restore() {
  const {settings: read, unread} = fromFragment(location.hash);
  if (unread.length) tell(`The address has settings that are not understood and were left out: ${unread.join(', ')}.`, 'note');
  const available = options.networks.filter((one) => one.available).map(({name}) => name);
  const first = options.images[0]?.id ?? '';
  if (read.image && !options.images.some(({id}) => id === read.image)) {
    tell('The image that the address names is not here any more: uploads are kept while the server runs. Another one is shown.', 'note');
    Object.assign(read, {image: '', classes: [], at: null});
  }
  if (read.network && !available.includes(read.network)) {
    tell(`The network “${read.network}” that the address names is not available here; another one is shown.`, 'note');
    Object.assign(read, {network: '', classes: [], stages: null, weights: null});
  }
  if (!(read.colormap in tables)) read.colormap = options.default_colormap;
  settings = {...read, image: read.image || first, network: read.network || available[0] || ''};
}

async function start() {
  try {
    options = await get('api/options');
  } catch (error) {
    byId('viewer-title').textContent = 'Not connected';
    return tell(error.message, 'error', start);
  }
  tables = Object.fromEntries(Object.entries(options.colormaps).map(([name, text]) => [name, fromBase64(text)]));
  DEFAULTS.colormap = options.default_colormap;
  byId('version').textContent = `ssa_fast ${options.version}`;
  restore();
  setUp(options, settings, change);
  setUpSearch(() => settings, change, names, (error) => fail(error, 'pixel'));
  setUpDisplay();
  setUpPointer(byId('view'));
  setUpPointer(byId('correlations'));
  setUpKeys();
  setUpFiles();
  addEventListener('hashchange', () => {
    if (toFragment(settings) === location.hash) return;
    restore();
    network = null;
    showControls();
    compute();
  });
  showImages(options.images, settings, change);
  showControls();
  compute();
}

start();

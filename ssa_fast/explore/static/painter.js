// Paint views of one result: the image under a map, boxes or a mask, at any size of canvas.

import {boxes, boxLevel, colours, mask} from './maps.js';

/** A colour per class position, told apart with any colour vision (M. Okabe and K. Ito, Color Universal Design). */
export const CLASS_COLOURS = ['#e69f00', '#56b4e9', '#009e73', '#cc79a7', '#d55e00'];

/** The bytes RGBA of each label as one number of this machine: background transparent, 255 (unsure) grey. */
const LABELS = new Uint32Array(256);
CLASS_COLOURS.forEach((text, k) => {
  new Uint8Array(LABELS.buffer).set([...[1, 3, 5].map((from) => parseInt(text.slice(from, from + 2), 16)), 255], 4 * (k + 1));
});
new Uint8Array(LABELS.buffer).set([128, 128, 128, 255], 4 * 255);

const ENOUGH = 640; // pixels a side at which a coarse map is drawn; the browser smooths what is larger

/** Return a canvas that holds an ImageData. */
function sheet(pixels) {
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [pixels.width, pixels.height];
  canvas.getContext('2d').putImageData(pixels, 0, 0);
  return canvas;
}

/** Holds what does not change with a slider, and paints the rest anew. */
export class Painter {
  /**
   * @param photo the image as decoded, its longer side at most some 1024 pixels
   * @param view what the server computed: {id, request, classes, height, width, seed, fused, stages}, a map per class each
   * @param tables colour map name -> Uint8Array of 256 RGB
   */
  constructor(photo, view, tables) {
    this.photo = photo;
    this.view = view;
    this.tables = tables;
    this.sheets = new Map();
    this.found = new Map();
  }

  /** Return the map that a view shows for class position `k`, null while it has not come. */
  map(name, k) {
    if (name === 'seed') return this.view.seed[k] ?? null;
    if (name.startsWith('stage:')) return this.view.stages[name.slice(6)]?.[k] ?? null;
    return this.view.fused[k] ?? null;
  }

  /** Return the boxes of each class in pixels of the fused map, as the settings have it. */
  boxes(settings) {
    return this.remember(`boxes ${settings.threshold} ${settings.components}`, () =>
      this.view.fused.map((map, k) =>
        boxes(map, boxLevel(map, settings.threshold, this.view.threshold[k]), settings.components)));
  }

  /** Return the label map of the fused maps, as the settings have it. */
  mask(settings) {
    return this.remember(`mask ${settings.background}`, () =>
      mask(this.view.fused, settings.background ?? this.view.background));
  }

  /** Keep the newest of each kind: a slider asks for each value several times, for the picture and its small one. */
  remember(key, compute) {
    const kind = key.split(' ')[0];
    if (this.found.get(kind)?.key !== key) this.found.set(kind, {key, value: compute()});
    return this.found.get(kind).value;
  }

  /** Paint the view `name` over the whole canvas. */
  paint(canvas, name, settings) {
    const pen = canvas.getContext('2d');
    const {width, height} = canvas;
    pen.globalAlpha = 1;
    pen.imageSmoothingEnabled = true;
    pen.imageSmoothingQuality = 'high';
    pen.drawImage(this.photo, 0, 0, width, height);
    if (name === 'boxes') this.paintBoxes(pen, width, height, settings);
    else if (name === 'mask') this.paintMask(pen, width, height, settings);
    else if (name === 'wipe') this.paintWipe(pen, width, height, settings);
    else if (name !== 'image') this.paintMap(pen, width, height, name, settings);
  }

  paintMap(pen, width, height, name, settings) {
    const map = this.map(name, settings.shown);
    if (!map) return;
    const key = `${name} ${settings.shown} ${settings.colormap}`;
    if (!this.sheets.has(key)) {
      const {height: rows, width: columns} = this.view;
      const share = Math.min(1, Math.max(ENOUGH / Math.max(rows, columns), map.height / rows, map.width / columns));
      const size = [rows, columns].map((side) => Math.max(1, Math.round(share * side)));
      const pixels = colours(map, ...size, this.tables[settings.colormap]);
      if (this.sheets.size > 40) this.sheets.clear(); // some megabytes each
      this.sheets.set(key, sheet(pixels));
    }
    pen.globalAlpha = settings.opacity;
    pen.drawImage(this.sheets.get(key), 0, 0, width, height);
    pen.globalAlpha = 1;
  }

  paintWipe(pen, width, height, settings) {
    const edge = Math.round((width * settings.wipe) / 100);
    for (const [name, from, to] of [['seed', 0, edge], ['fused', edge, width]]) {
      pen.save();
      pen.beginPath();
      pen.rect(from, 0, to - from, height);
      pen.clip();
      this.paintMap(pen, width, height, name, settings);
      pen.restore();
    }
    const line = Math.max(2, width / 300);
    pen.fillStyle = 'rgb(0 0 0 / 55%)';
    pen.fillRect(edge - line, 0, 2 * line, height);
    pen.fillStyle = '#fff';
    pen.fillRect(edge - line / 2, 0, line, height);
  }

  paintBoxes(pen, width, height, settings) {
    const {height: rows, width: columns} = this.view.fused[0];
    const line = Math.max(1.5, width / 250);
    const all = this.boxes(settings).map((found) => found.map(([x1, y1, x2, y2]) =>
      [(x1 / columns) * width, (y1 / rows) * height, ((x2 - x1) / columns) * width, ((y2 - y1) / rows) * height]));
    all.forEach((found, k) => {
      for (const box of found) {
        pen.lineWidth = 2 * line;
        pen.strokeStyle = 'rgb(0 0 0 / 60%)';
        pen.strokeRect(...box);
        pen.lineWidth = line;
        pen.strokeStyle = CLASS_COLOURS[k];
        pen.strokeRect(...box);
      }
    });
    if (width < 260) return;
    const letters = Math.round(Math.max(11, width / 45));
    const high = 1.7 * letters;
    const named = [];
    pen.font = `600 ${letters}px system-ui, sans-serif`;
    all.forEach((found, k) => {
      if (!found.length) return;
      const [left, top] = found[0]; // one name per class, not on every speck
      const {name} = this.view.classes[k];
      const wide = pen.measureText(name).width + letters;
      const from = Math.max(0, Math.min(left - line, width - wide));
      let above = top > high ? top - high : top;
      while (named.some(([x, y, w]) => Math.abs(y - above) < high && x < from + wide && from < x + w)) above += high;
      named.push([from, above, wide]);
      pen.fillStyle = CLASS_COLOURS[k];
      pen.fillRect(from, above, wide, high);
      pen.fillStyle = '#000';
      pen.fillText(name, from + letters / 2, above + 0.73 * high);
    });
  }

  paintMask(pen, width, height, settings) {
    const key = `mask ${settings.background}`;
    if (this.labels?.key !== key) {
      const {height: rows, width: columns} = this.view.fused[0];
      const pixels = new ImageData(columns, rows);
      const whole = new Uint32Array(pixels.data.buffer); // a pixel at a time, four times as fast as its bytes
      const labels = this.mask(settings);
      for (let place = 0; place < labels.length; place++) whole[place] = LABELS[labels[place]];
      this.labels = {key, sheet: sheet(pixels)};
    }
    pen.globalAlpha = settings.opacity;
    pen.drawImage(this.labels.sheet, 0, 0, width, height);
    pen.globalAlpha = 1;
  }
}

/** Draw a crosshair at fractions of height and width. */
export function crosshair(canvas, [y, x], ratio) {
  const pen = canvas.getContext('2d');
  const [left, top] = [x * canvas.width, y * canvas.height];
  const [inner, outer] = [5 * ratio, 13 * ratio];
  for (const [colour, line] of [['rgb(0 0 0 / 75%)', 4 * ratio], ['#fff', 1.75 * ratio]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = line;
    pen.beginPath();
    pen.arc(left, top, inner, 0, 2 * Math.PI);
    for (const [down, across] of [[0, 1], [0, -1], [1, 0], [-1, 0]]) {
      pen.moveTo(left + across * inner, top + down * inner);
      pen.lineTo(left + across * outer, top + down * outer);
    }
    pen.stroke();
  }
}

/** Give a canvas the pixels that it covers on the screen; return whether it covers any. */
export function fitCanvas(canvas, height, width) {
  const across = Math.round(canvas.clientWidth * ratio());
  const size = [across, Math.round((across * height) / width)];
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  return size[0] > 0 && size[1] > 0;
}

/** Pixels of a canvas per pixel of the page: more than two cost time that nobody sees. */
export function ratio() {
  return Math.min(window.devicePixelRatio || 1, 2);
}

// The correlation of one pixel with all others: the newest place wins, one request at a time.

import {fromBase64, fromBuffer, post} from './api.js';
import {colours} from './maps.js';
import {crosshair, fitCanvas, ratio} from './painter.js';
import {byId, decimals, element} from './page.js';

export class Probe {
  /** `context` returns {painter, settings, request}: what is shown, and what a request for it tells besides the place. */
  constructor(context, fail) {
    this.context = context;
    this.fail = fail;
    this.waiting = null;
    this.running = false;
    this.answer = null; // {place, stages}
  }

  /** Show the correlation of the pixel at fractions [y, x] of the picture, as soon as the one before has come. */
  async show(place) {
    this.waiting = place;
    if (this.running) return;
    this.running = true;
    try {
      while (this.waiting) {
        const [y, x] = this.waiting;
        this.waiting = null;
        const {request} = this.context();
        const {stages} = await post('api/correlation', {...request, y, x});
        if (this.context().request !== request) continue; // another view is shown by now
        this.answer = {
          place: [y, x],
          stages: stages.map(({data, ...stage}) => ({...stage, data: fromBuffer(fromBase64(data).buffer)})),
        };
        this.paint();
      }
    } catch (error) {
      this.waiting = null;
      this.fail(error);
    } finally {
      this.running = false;
    }
  }

  /** Forget the answer: it is not of the view that is shown now. */
  forget() {
    this.answer = null;
  }

  /** Paint the answer anew: colours, opacity or the window have changed. */
  paint() {
    const {painter, settings} = this.context();
    if (!this.answer || !painter) return;
    const list = byId('correlations');
    const {place, stages} = this.answer;
    if (String([...list.children].map((figure) => figure.dataset.stage)) !== String(stages.map(({name}) => name))) {
      list.replaceChildren(...stages.map(({name}) => element('figure', {'data-stage': name},
        element('canvas', {role: 'img'}), element('figcaption'))));
    }
    stages.forEach((stage, position) => {
      const [canvas, caption] = list.children[position].children;
      canvas.setAttribute('aria-label', `Correlation of the pixel with all others in stage ${stage.name}`);
      caption.replaceChildren(element('span', {className: 'name', textContent: stage.name}),
        element('span', {className: 'size', textContent: `${stage.height} × ${stage.width}`}),
        element('span', {className: 'number', textContent: `${decimals(stage.low)} to ${decimals(stage.high)}`}));
      if (!fitCanvas(canvas, painter.view.height, painter.view.width)) return;
      const {width, height} = canvas;
      const pen = canvas.getContext('2d');
      pen.imageSmoothingQuality = 'high';
      pen.drawImage(painter.photo, 0, 0, width, height);
      const pixels = colours(stage, height, width, painter.tables[settings.colormap], stage.low, stage.high);
      createSheet(pixels, (sheet) => {
        pen.globalAlpha = settings.opacity;
        pen.drawImage(sheet, 0, 0);
        pen.globalAlpha = 1;
      });
      crosshair(canvas, place, ratio());
    });
  }
}

let scratch; // one canvas for all: its content is used at once

function createSheet(pixels, use) {
  scratch ??= document.createElement('canvas');
  [scratch.width, scratch.height] = [pixels.width, pixels.height];
  scratch.getContext('2d').putImageData(pixels, 0, 0);
  use(scratch);
}

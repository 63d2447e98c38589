// The form of what to compute: image, network, classes, stages and how they are fused.

import {get} from './api.js';
import {CLASS_COLOURS} from './painter.js';
import {byId, element, percent, renew} from './page.js';

const MOST = 5; // classes at once
const OTHER = 'other'; // the choice that opens a field for text
const SIDES = [224, 320, 384, 448, 512, 768, 1024];

/** Fill the form from the server's options; `change` is called with each choice. */
export function setUp(options, settings, change) {
  byId('settings').addEventListener('submit', (event) => event.preventDefault());
  byId('display').addEventListener('submit', (event) => event.preventDefault());
  byId('network').replaceChildren(...options.networks.map(({name, title, available, reason}) =>
    element('option', {value: name, disabled: !available, textContent: available ? title : `${title} – ${reason}`})));
  byId('network').addEventListener('change', ({target}) => change({network: target.value}));

  byId('fuse').replaceChildren(...options.fusions.map((name) => element('option', {value: name, textContent: name})));
  byId('seed').replaceChildren(...options.seeds.map((name) => element('option', {value: name, textContent: name})));
  byId('affinity').replaceChildren(
    ...options.affinities.map(({value, title}) => element('option', {value, textContent: title})),
    element('option', {value: OTHER, textContent: 'other, as text…'}));
  byId('size').replaceChildren(element('option', {value: '', textContent: 'the image’s'}),
    ...SIDES.filter((side) => side <= options.limits.side).map(sideOption));

  for (const name of ['fuse', 'seed']) byId(name).addEventListener('change', ({target}) => change({[name]: target.value}));
  byId('prior').addEventListener('change', ({target}) => change({prior: target.value || null}));
  byId('size').addEventListener('change', ({target}) => change({size: Number(target.value) || null}));
  const text = byId('affinity-text');
  byId('affinity').addEventListener('change', ({target}) => {
    text.hidden = target.value !== OTHER;
    if (text.hidden) change({affinity: target.value});
    else text.focus();
  });
  text.addEventListener('change', () => change({affinity: text.value.trim() || 'auto'}));
  const altered = ['stages', 'weights', 'prior', 'size'].some((name) => settings[name] !== null) ||
    settings.affinity !== 'auto' || settings.fuse !== 'mean' || settings.seed !== 'auto';
  byId('method').open = altered || matchMedia('(min-width: 1000px)').matches;
}

function sideOption(side) {
  return element('option', {value: side, textContent: `${side} pixels`});
}

/** Show the settings in the form. */
export function showSettings(settings) {
  byId('network').value = settings.network;
  for (const name of ['fuse', 'seed']) byId(name).value = settings[name];
  byId('prior').value = settings.prior ?? '';
  if (settings.size && !byId('size').querySelector(`[value="${settings.size}"]`)) byId('size').append(sideOption(settings.size));
  byId('size').value = settings.size ?? '';
  const listed = [...byId('affinity').options].some(({value}) => value === settings.affinity && value !== OTHER);
  byId('affinity').value = listed ? settings.affinity : OTHER;
  byId('affinity-text').hidden = listed;
  byId('affinity-text').value = listed ? '' : settings.affinity;
  for (const radio of document.querySelectorAll('input[name="photo"]')) radio.checked = radio.value === settings.image;
}

/** Show the images to choose from. */
export function showImages(images, settings, change) {
  byId('photos').replaceChildren(...images.map((image) => {
    const radio = element('input', {type: 'radio', name: 'photo', value: image.id, className: 'hidden-input'});
    radio.checked = image.id === settings.image;
    radio.addEventListener('change', () => change({image: image.id}));
    const small = element('img', {alt: image.name, loading: 'lazy', decoding: 'async', width: 64, height: 64});
    small.src = `api/images/${encodeURIComponent(image.id)}`;
    return element('label', {title: image.name}, radio, small);
  }));
  showCaption(images, settings);
}

export function showCaption(images, settings) {
  const image = images.find(({id}) => id === settings.image);
  byId('photo-caption').textContent = image ? [image.name, image.credit].filter(Boolean).join(' · ') : '';
}

/** Show the classes that the network predicts, and those chosen besides; `names` knows the latter's. */
export function showClasses(predicted, names, settings, change) {
  const rows = [...predicted];
  for (const index of settings.classes) {
    if (!rows.some((row) => row.index === index)) rows.push({index, name: names.get(index)?.name, ...names.get(index)});
  }
  renew(byId('classes'), ...rows.map(({index, name, probability}) => {
    const place = settings.classes.indexOf(index);
    const box = element('input', {type: 'checkbox', value: index, checked: place >= 0, 'data-key': index});
    box.addEventListener('change', () => {
      const count = settings.classes.length + (box.checked ? 1 : -1);
      if (count >= 1 && count <= MOST) return toggle(index, settings, change);
      box.checked = !box.checked;
      byId('class-note').textContent = count ? `At most ${MOST} classes at once: take one off first.` : 'One class at least.';
    });
    const bar = element('span', {className: 'bar', 'aria-hidden': 'true'});
    bar.style.setProperty('--share', probability ?? 0);
    if (place >= 0) bar.style.setProperty('--colour', CLASS_COLOURS[place]);
    return element('li', {}, element('label', {}, box,
      element('span', {className: 'name', textContent: name || `class ${index}`}),
      element('span', {className: 'number', textContent: percent(probability)}), bar));
  }));
  byId('class-note').textContent = '';
}

function toggle(index, settings, change) {
  const has = settings.classes.includes(index);
  const classes = has ? settings.classes.filter((other) => other !== index) : [...settings.classes, index].slice(0, MOST);
  change({classes, shown: has ? Math.min(settings.shown, classes.length - 1) : classes.indexOf(index)});
}

/** Make the field that finds a class by name: a combobox with a list below it. */
export function setUpSearch(current, change, names, fail) {
  const [field, list] = [byId('search'), byId('found')];
  let [active, asked] = [-1, null];

  function close() {
    asked?.abort();
    list.hidden = true;
    active = -1;
    field.setAttribute('aria-expanded', 'false');
    field.removeAttribute('aria-activedescendant');
  }

  function mark(place) {
    active = place;
    [...list.children].forEach((row, other) => row.setAttribute('aria-selected', String(other === place)));
    if (place < 0) return field.removeAttribute('aria-activedescendant');
    field.setAttribute('aria-activedescendant', list.children[place].id);
    list.children[place].scrollIntoView({block: 'nearest'});
  }

  function pick(index) {
    field.value = '';
    close();
    const settings = current();
    if (settings.classes.includes(index)) change({shown: settings.classes.indexOf(index)});
    else if (settings.classes.length >= MOST) byId('class-note').textContent = `At most ${MOST} classes at once: take one off first.`;
    else toggle(index, settings, change);
  }

  async function find() {
    asked?.abort();
    const text = field.value.trim();
    if (!text) return close();
    asked = new AbortController();
    const query = new URLSearchParams({network: current().network, q: text});
    let answer;
    try {
      answer = await get(`api/names?${query}`, asked.signal);
    } catch (error) {
      if (error.name !== 'AbortError') fail(error);
      return;
    }
    for (const {index, name} of answer.names) if (!names.has(index)) names.set(index, {name});
    list.replaceChildren(...answer.names.map(({index, name}) => {
      const row = element('li', {id: `found-${index}`, role: 'option', 'aria-selected': 'false', 'data-index': index},
        element('span', {className: 'name', textContent: name || `class ${index}`}),
        element('span', {className: 'number', textContent: index}));
      row.addEventListener('pointerdown', (event) => event.preventDefault()); // the field keeps the focus
      row.addEventListener('click', () => pick(index));
      return row;
    }));
    byId('class-note').textContent = answer.names.length ? '' : `No class is called “${text}”.`;
    list.hidden = !answer.names.length;
    field.setAttribute('aria-expanded', String(!list.hidden));
    mark(list.hidden ? -1 : 0);
  }

  field.addEventListener('input', find);
  field.addEventListener('blur', close);
  field.addEventListener('keydown', (event) => {
    const rows = list.hidden ? 0 : list.children.length;
    if (event.key === 'Escape') close();
    else if (event.key === 'Enter' && active >= 0) pick(Number(list.children[active].dataset.index));
    else if (event.key === 'ArrowDown' && rows) mark((active + 1) % rows);
    else if (event.key === 'ArrowUp' && rows) mark((active + rows - 1) % rows);
    else return;
    event.preventDefault();
  });
}

/** Return the names of the stages that are chosen. */
export function chosenStages(info, settings) {
  return settings.stages ?? info.stages.filter((stage) => stage.default).map(({name}) => name);
}

/** Show the network's stages, with a weight for each that is chosen. */
export function showStages(info, settings, change) {
  const chosen = chosenStages(info, settings);
  const weight = (name) => settings.weights?.[chosen.indexOf(name)] ?? 1;

  function choose(names, weigh) {
    const ordered = info.stages.map(({name}) => name).filter((name) => names.includes(name));
    const defaults = chosenStages(info, {stages: null});
    const weights = ordered.map(weigh);
    change({
      stages: String(ordered) === String(defaults) ? null : ordered,
      weights: weights.every((value) => value === 1) ? null : weights,
    });
  }

  renew(byId('stages'), ...info.stages.map(({name, channels, height, width}) => {
    const on = chosen.includes(name);
    const box = element('input', {type: 'checkbox', checked: on, value: name, 'data-key': name});
    box.addEventListener('change', () => {
      const names = box.checked ? [...chosen, name] : chosen.filter((other) => other !== name);
      if (names.length) return choose(names, (other) => (chosen.includes(other) ? weight(other) : 1));
      box.checked = true;
      byId('stage-note').textContent = 'One stage at least.';
    });
    const row = element('li', {}, element('label', {}, box, element('span', {className: 'name', textContent: name}),
      element('span', {className: 'size', textContent: `${channels} × ${height} × ${width}`})));
    if (on) {
      const field = element('input', {type: 'number', min: 0, step: 0.1, value: weight(name), 'data-key': `weight ${name}`,
        'aria-label': `Weight of ${name}`});
      field.addEventListener('change', () => {
        const value = Number(field.value);
        if (field.value === '' || !(value >= 0)) {
          byId('stage-note').textContent = 'A weight is a number, 0 or more.';
          field.value = weight(name);
        } else choose(chosen, (other) => (other === name ? value : weight(other)));
      });
      row.append(field);
    }
    return row;
  }));
  byId('stage-note').textContent = '';
}

// Small helpers to build the page: elements, messages, numbers as text.

export const byId = (id) => document.getElementById(id);

/** Return a new element with properties and children; `data-` and `aria-` names become attributes. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Replace a list's children; the control that had the focus has it again, found by its `data-key`. */
export function renew(list, ...children) {
  const key = list.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  list.replaceChildren(...children);
  if (key !== undefined) list.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({preventScroll: true});
}

/** Show a sentence at the top of the page until it is dismissed; `kind` is "error" or "note". */
export function tell(text, kind = 'error', retry = null) {
  const list = byId('messages');
  if ([...list.children].some((message) => message.dataset.text === text)) return;
  const close = element('button', {type: 'button', className: 'quiet', textContent: 'Dismiss'});
  const message = element('div', {className: `message ${kind}`, 'data-text': text}, element('p', {textContent: text}));
  if (retry) {
    const again = element('button', {type: 'button', textContent: 'Try again'});
    again.addEventListener('click', () => {
      message.remove();
      retry();
    });
    message.append(again);
  }
  message.append(close);
  close.addEventListener('click', () => {
    message.remove();
    (list.querySelector('button') ?? byId('view')).focus({preventScroll: true}); // not lost with the button
  });
  list.append(message);
  if (list.children.length > 4) list.firstElementChild.remove();
}

/** Take back the errors that a success has answered. */
export function settle() {
  for (const message of byId('messages').querySelectorAll('.error')) message.remove();
}

export function percent(probability) {
  const share = 100 * probability;
  return Number.isFinite(share) ? `${share.toFixed(share >= 10 ? 0 : share >= 0.1 ? 1 : 2)} %` : '';
}

export function milliseconds(time) {
  if (!Number.isFinite(time)) return '–';
  if (time >= 1000) return `${(time / 1000).toFixed(2)} s`;
  return `${time.toFixed(time >= 100 ? 0 : time >= 1 ? 1 : 2)} ms`;
}

export function bytes(count) {
  if (!Number.isFinite(count)) return '–';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let place = 0;
  while (count >= 1024 && place < units.length - 1) {
    count /= 1024;
    place++;
  }
  return `${count.toFixed(place ? 1 : 0)} ${units[place]}`;
}

/** Return `number` with two decimals and a true minus sign. */
export function decimals(number) {
  return Number.isNaN(number) ? 'NaN' : number.toFixed(2).replace('-', '−');
}

/** Put text on the clipboard; where the page may not, select it so that the keyboard can. */
export async function copy(text, source) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    done = false;
    if (source) getSelection().selectAllChildren(source);
  }
  byId('copied').textContent = done ? 'Copied.' : 'Selected: press Ctrl+C to copy.';
  return done;
}

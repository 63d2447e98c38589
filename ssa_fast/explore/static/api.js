// Requests to the server, and their failures as sentences.

/** A failure whose message the page shows as it is. */
export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status; // 0: no answer
  }
}

const GONE = 'The server does not answer: start “ssa-fast explore” again and open the address that it prints.';

async function answer(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw error.name === 'AbortError' ? error : new Failure(GONE);
  }
  if (response.ok) return response;
  let told = '';
  try {
    told = (await response.json()).error;
  } catch (error) {
    if (error.name === 'AbortError') throw error;
  }
  throw new Failure(told || `The server answered with status ${response.status}; reload the page.`, response.status);
}

/** Return the body of an answer; the connection may end within it. */
async function body(response, kind) {
  try {
    return await response[kind]();
  } catch (error) {
    throw error.name === 'AbortError' ? error : new Failure(GONE);
  }
}

export async function get(path, signal) {
  return body(await answer(path, {signal}), 'json');
}

export async function post(path, settings, signal) {
  const headers = {'Content-Type': 'application/json'};
  return body(await answer(path, {method: 'POST', body: JSON.stringify(settings), headers, signal}), 'json');
}

export async function upload(file) {
  const name = file.name || 'pasted.png';
  const headers = {'Content-Type': file.type || 'application/octet-stream'};
  return body(await answer(`api/images?name=${encodeURIComponent(name)}`, {method: 'POST', body: file, headers}), 'json');
}

/** Return the bytes of an image or a file, and the name that the server gives it. */
export async function blob(path, signal) {
  const response = await answer(path, {signal});
  const named = /filename="?([^";]+)/.exec(response.headers.get('Content-Disposition') ?? '');
  return {name: named?.[1] ?? '', bytes: await body(response, 'blob')};
}

/** Return a map of little-endian float32 as it came. */
export async function floats(path, signal) {
  return fromBuffer(await body(await answer(path, {signal}), 'arrayBuffer'));
}

/** Return bytes written as base64. */
export function fromBase64(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** Return little-endian float32 as numbers, on a machine of either byte order. */
export function fromBuffer(buffer) {
  const view = new DataView(buffer);
  return Float32Array.from({length: buffer.byteLength / 4}, (_, index) => view.getFloat32(4 * index, true));
}

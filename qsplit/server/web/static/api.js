// Calls to the server. Where it wants a key, that is asked for once and kept for as long as the tab is open. Pictures
// cannot send a key: for them the server gives a cookie for it, which no script can read.

import { find } from './dom.js';
import { t } from './words.js';

const KEY = 'qsplit-key';
const SESSION = '/api/v1/session';
const JSON_TYPE = { 'Content-Type': 'application/json' };

// What went wrong, in the server's words, and what mends it.
export class Problem extends Error {
  constructor(message, { status = 0, fix = '', type = '' } = {}) {
    super(message);
    Object.assign(this, { status, fix, type });
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

export async function forgetKey() {
  sessionStorage.removeItem(KEY);
  await fetch(SESSION, { method: 'DELETE' });
}

// The response to a request, or a `Problem`.
export async function request(path, { method = 'GET', json, body, signal, keepalive } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { Accept: 'application/json' };
    if (key) headers.Authorization = `Bearer ${key}`;
    if (json !== undefined) Object.assign(headers, JSON_TYPE);
    const options = { method, headers, signal, keepalive, body: json === undefined ? body : JSON.stringify(json) };
    const response = await fetch(path, options).catch((error) => {
      if (error.name === 'AbortError') throw error;
      throw new Problem(t('problem.offline'), { fix: t('problem.offline.fix') });
    });
    if (response.ok) return response;
    if (response.status !== 401) throw await problemOf(response);
    await askForKey(key);
  }
}

export async function call(path, options = {}) {
  const response = await request(path, options);
  return response.status === 204 ? null : response.json();
}

async function problemOf(response) {
  const told = await response.json().catch(() => ({}));
  const said = told.error ?? told;
  const status = response.status;
  const message = (typeof said === 'string' ? said : said.detail ?? said.message ?? said.title) ?? t('problem.status', { status });
  if (status === 429) return new Problem(t('problem.busy'), { status, fix: t('problem.busy.fix') });
  return new Problem(typeof message === 'string' ? message : t('problem.status', { status }), {
    status,
    fix: said.fix ?? '',
    type: said.type ?? '',
  });
}

let asking = null;

// Asks for a key, once for all requests that wait for one; `refused` is the key that the server did not take.
function askForKey(refused) {
  const other = sessionStorage.getItem(KEY);
  if (other !== null && other !== refused) return Promise.resolve();
  asking ??= new Promise((resolve) => {
    const dialog = find('#key');
    const field = find('input', dialog);
    find('.problem', dialog).textContent = refused ? t('key.wrong') : '';
    field.value = '';
    dialog.addEventListener('cancel', (event) => event.preventDefault());
    find('form', dialog).onsubmit = async (event) => {
      event.preventDefault();
      const key = field.value.trim();
      const found = await fetch(SESSION, { method: 'POST', headers: JSON_TYPE, body: JSON.stringify({ key }) });
      if (!found.ok) return (find('.problem', dialog).textContent = t('key.wrong'));
      sessionStorage.setItem(KEY, key);
      dialog.close();
      asking = null;
      return resolve();
    };
    dialog.showModal();
    field.focus();
  });
  return asking;
}

export const thumbnail = (id) => `/api/v1/images/${id}/thumbnail`;

export const picture = (id) => `/api/v1/images/${id}/picture`;

// Shows what lies at a path, which is fetched once however often it is asked for.
export function show(img, path) {
  if (img.dataset.path === path) return;
  img.dataset.path = path;
  img.src = path;
}

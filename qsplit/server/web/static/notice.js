// Short words at the edge of the page, read out by screen readers, and the panels that stand where there is nothing else.

import { find, h } from './dom.js';
import { t } from './words.js';

const STAYS = 8000; // milliseconds

export function say(text, { action, run, bad = false } = {}) {
  const box = find('#notices');
  const note = h('div', { class: bad ? 'note bad' : 'note' }, h('span', {}, text));
  const close = () => note.remove();
  if (action) {
    const undo = () => (close(), run());
    note.append(h('button', { type: 'button', onclick: undo }, action));
  }
  note.append(h('button', { type: 'button', class: 'quiet', 'aria-label': t('close'), onclick: close }, '×'));
  box.append(note);
  box.hidePopover();
  box.showPopover(); // above whatever dialog is open
  if (box.children.length > 4) box.firstElementChild.remove();
  if (!bad) setTimeout(close, STAYS);
}

export function complain(error) {
  if (error.name === 'AbortError') return;
  if (!('fix' in error)) console.error(error);
  say([error.message, error.fix].filter(Boolean).join(' '), { bad: true });
}

// A heading, a sentence and what can be done about it.
export function panel(title, text, ...actions) {
  return h('div', { class: 'panel' }, h('h2', {}, title), text && h('p', {}, text), h('div', { class: 'actions' }, ...actions));
}

export function failure(error, retry) {
  const button = retry && h('button', { type: 'button', onclick: retry }, t('again'));
  return panel(t('problem'), [error.message, error.fix].filter(Boolean).join(' '), button ?? '');
}

export function confirmed(question, yes) {
  const dialog = find('#confirm');
  find('p', dialog).textContent = question;
  find('[value=yes]', dialog).textContent = yes;
  dialog.returnValue = '';
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true }),
  );
}

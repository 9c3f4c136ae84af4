// Pictures that are dropped on the page or chosen: put into the album, or looked for in it.

import { call } from './api.js';
import { fill, find, h } from './dom.js';
import { number, t } from './words.js';

const AT_ONCE = 2;

// Opens the system's dialog for choosing files.
export const choose = () => find('#files').click();

export class Uploads {
  constructor({ onpicture, onadded }) {
    Object.assign(this, { onadded, queue: [], running: 0, added: 0, known: 0, failed: [], total: 0 });
    this.panel = find('#uploads');
    this.zone = find('#drop');
    find('#files').addEventListener('change', (event) => (this.add([...event.target.files]), (event.target.value = '')));
    find('[data-do=choose]').addEventListener('click', choose);
    addEventListener('dragenter', (event) => isFiles(event) && (this.zone.hidden = false));
    addEventListener('dragover', (event) => isFiles(event) && event.preventDefault());
    addEventListener('dragleave', (event) => event.relatedTarget === null && (this.zone.hidden = true));
    addEventListener('drop', (event) => this.dropped(event, onpicture));
  }

  async dropped(event, onpicture) {
    if (!isFiles(event)) return;
    event.preventDefault();
    this.zone.hidden = true;
    const isSearch = event.target.closest('[data-drop=search], #search') !== null;
    const files = await filesOf(event.dataTransfer);
    if (isSearch && files.length) onpicture(files[0]);
    else this.add(files);
  }

  add(files) {
    if (!this.running && !this.queue.length) Object.assign(this, { added: 0, known: 0, failed: [], total: 0 });
    this.queue.push(...files);
    this.total += files.length;
    while (this.running < AT_ONCE && this.queue.length) this.next();
    this.tell();
  }

  async next() {
    const file = this.queue.shift();
    if (!file) return;
    this.running += 1;
    const body = new FormData();
    body.append('file', file);
    try {
      const { encoded } = await call('/api/v1/images', { method: 'POST', body });
      this[encoded ? 'added' : 'known'] += 1;
    } catch (error) {
      this.failed.push(`${file.name}: ${[error.message, error.fix].filter(Boolean).join(' ')}`);
    }
    this.running -= 1;
    this.tell();
    if (this.queue.length) return this.next();
    if (!this.running && this.added) this.onadded();
  }

  tell() {
    const done = this.added + this.known + this.failed.length;
    const values = { done: number(done), total: number(this.total), known: number(this.known), failed: number(this.failed.length) };
    const bar = h('progress', { max: String(this.total || 1), 'aria-label': t('uploads') });
    bar.value = done;
    const close = h('button', { type: 'button', class: 'quiet', 'aria-label': t('close'), onclick: () => (this.panel.hidden = true) }, '×');
    const failed = this.failed.length ? h('ul', { class: 'problem' }, this.failed.map((text) => h('li', {}, text))) : '';
    this.panel.hidden = !this.total;
    fill(this.panel, h('div', { class: 'head' }, h('span', {}, t('uploads.told', values)), close), bar, failed);
  }
}

const isFiles = (event) => event.dataTransfer?.types.includes('Files');

// All files that were dropped, those in folders too.
async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map(within))).flat();
}

async function within(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return (await Promise.all(found.map(within))).flat();
    found.push(...some);
  }
}

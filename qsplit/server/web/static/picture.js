// One picture: large, with what its file says of it, questions about it, and the way to those that are like it.

import { call, picture, show, thumbnail } from './api.js';
import { FILTERS, go } from './address.js';
import { Chat } from './chat.js';
import { fill, find, h, isTyping } from './dom.js';
import { complain, confirmed, say } from './notice.js';
import { day, number, size, t } from './words.js';

export class PictureView {
  constructor({ beside, onforgotten }) {
    this.dialog = find('#picture');
    this.image = find('.stage img', this.dialog);
    this.chat = new Chat(find('.ask', this.dialog));
    Object.assign(this, { id: null, beside, onforgotten });
    const act = {
      close: () => this.close(),
      next: () => this.step(1),
      previous: () => this.step(-1),
      similar: () => this.similar(),
      forget: () => this.forget().catch(complain),
    };
    this.dialog.addEventListener('click', (event) => act[event.target.closest('[data-do]')?.dataset.do]?.());
    this.dialog.addEventListener('cancel', (event) => (event.preventDefault(), this.close()));
    this.dialog.addEventListener('keydown', (event) => this.pressed(event));
    this.image.addEventListener('error', () => this.gone());
  }

  follow(params) {
    const id = params.get('picture');
    if (id === this.id) return;
    this.id = id;
    if (id) this.open(id).catch((error) => (this.close(), complain(error)));
    else {
      this.chat.leave();
      if (this.dialog.open) this.dialog.close();
    }
  }

  async open(id) {
    this.chat.about(id);
    this.image.classList.remove('lost');
    this.image.alt = '';
    delete this.image.dataset.path;
    find('.gone', this.dialog).hidden = true;
    show(this.image, picture(id));
    if (!this.dialog.open) this.dialog.showModal();
    const row = await call(`/api/v1/images/${id}`);
    if (this.id === id) this.tell(row);
  }

  tell(row) {
    find('h2', this.dialog).textContent = row.name ?? row.id.slice(0, 12);
    find('.caption', this.dialog).textContent = row.caption ?? '';
    this.image.alt = [row.name, row.caption].filter(Boolean).join(', ');
    fill(find('.facts', this.dialog), facts(row).flatMap(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
    const exif = Object.entries(row.exif ?? {});
    find('.exif', this.dialog).hidden = !exif.length;
    const line = ([name, value]) => h('tr', {}, h('th', { scope: 'row' }, name), h('td', {}, written(value)));
    fill(find('.exif tbody', this.dialog), exif.map(line));
  }

  gone() {
    if (this.image.dataset.path !== picture(this.id)) return;
    find('.gone', this.dialog).hidden = false;
    show(this.image, thumbnail(this.id));
  }

  step(by) {
    const next = this.beside(this.id, by);
    if (next) go({ picture: next }, { replace: true });
  }

  close() {
    go({ picture: null });
  }

  similar() {
    const nothing = Object.fromEntries(['q', 'dropped', 'at', 'view', ...FILTERS].map((name) => [name, null]));
    go({ ...nothing, like: this.id, picture: null });
  }

  async forget() {
    const { id } = this;
    if (!(await confirmed(t('forget.sure'), t('forget')))) return;
    await call(`/api/v1/images/${id}`, { method: 'DELETE' });
    say(t('forget.done'));
    go({ picture: null });
    this.onforgotten();
  }

  pressed(event) {
    if (isTyping(event)) return;
    const keys = { ArrowRight: () => this.step(1), ArrowLeft: () => this.step(-1), s: () => this.similar(), a: () => this.chat.field.focus() };
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}

function facts(row) {
  const place = row.lat === null || row.lat === undefined ? null : `${row.lat.toFixed(5)}, ${row.lon.toFixed(5)}`;
  const found = [
    [t('fact.taken'), row.taken_at && day(row.taken_at)],
    [t('fact.camera'), row.camera],
    [t('fact.place'), place && near(row, place)],
    [t('fact.size'), `${number(row.width)} × ${number(row.height)}, ${row.format}`],
    ...(row.files ?? []).map((file) => [t('fact.file'), `${file.name}, ${size(file.bytes)}`]),
    [t('fact.id'), row.id.slice(0, 16)],
  ];
  return found.filter(([, value]) => value);
}

function near(row, place) {
  const params = new URLSearchParams({ near: `${row.lat},${row.lon},10` });
  return h('a', { href: `/?${params}`, title: t('fact.place.near') }, place);
}

const written = (value) => (typeof value === 'string' ? value : JSON.stringify(value));

// The search box: words, pictures that are dropped or pasted, and conditions, each a chip that can be taken away again.

import { show, thumbnail } from './api.js';
import { FILTERS, go, here } from './address.js';
import { fill, find, findAll, h } from './dom.js';
import { t } from './words.js';

export class Search {
  constructor({ onpicture }) {
    this.form = find('#search');
    this.field = find('input[type=search]', this.form);
    this.chips = find('#chips');
    this.panel = find('#filters');
    this.form.addEventListener('submit', (event) => (event.preventDefault(), this.submit()));
    this.form.addEventListener('reset', () => setTimeout(() => go({}, { from: new URLSearchParams() })));
    this.field.addEventListener('search', () => this.field.value || this.submit());
    find('#filter-button').addEventListener('click', () => this.open(this.panel.hidden));
    this.panel.addEventListener('keydown', (event) => event.key === 'Escape' && (this.open(false), find('#filter-button').focus()));
    document.addEventListener('paste', (event) => {
      const file = [...event.clipboardData.files].find((one) => one.type.startsWith('image/'));
      if (file) onpicture(file);
    });
  }

  open(isOpen) {
    this.panel.hidden = !isOpen;
    find('#filter-button').setAttribute('aria-expanded', isOpen);
    if (isOpen) find('input, select', this.panel).focus();
  }

  focus() {
    this.field.focus();
    this.field.select();
  }

  submit() {
    const changes = { q: this.field.value.trim(), view: null, picture: null, at: null };
    for (const field of findAll('[name]', this.panel)) {
      const isDefault = field.type === 'checkbox' ? !field.checked : field.value === field.dataset.plain;
      changes[field.name] = isDefault ? null : field.value.trim();
    }
    this.open(false);
    go(changes);
  }

  // Writes what the address says into the box, the panel and the chips.
  follow(params, dropped) {
    this.field.value = params.get('q') ?? '';
    for (const field of findAll('[name]', this.panel)) {
      if (field.type === 'checkbox') field.checked = params.has(field.name);
      else field.value = params.get(field.name) ?? field.dataset.plain ?? '';
    }
    const likes = params.getAll('like').map((id) => this.likeChip(id));
    const filters = FILTERS.filter((name) => params.has(name)).map((name) => this.filterChip(name, params.get(name)));
    fill(this.chips, likes, dropped ? this.droppedChip(dropped) : [], filters);
    this.chips.hidden = !this.chips.children.length;
    const count = filters.length;
    find('#filter-count').textContent = count ? String(count) : '';
  }

  likeChip(id) {
    const img = h('img', { alt: '', width: '24', height: '24' });
    show(img, thumbnail(id));
    const others = () => here().getAll('like').filter((one) => one !== id);
    return chip([img, t('chip.like', { id: id.slice(0, 8) })], () => go({ like: others() }));
  }

  droppedChip(file) {
    return chip([t('chip.picture', { name: file.name || t('chip.pasted') })], () => go({ dropped: null }));
  }

  filterChip(name, value) {
    const label = t(`filter.${name}`);
    return chip([name === 'everything' ? label : `${label}: ${value}`], () => go({ [name]: null }));
  }
}

function chip(content, remove) {
  const text = content.filter((part) => typeof part === 'string').join(' ');
  const button = h('button', { type: 'button', 'aria-label': t('chip.remove', { text }), onclick: remove }, '×');
  return h('li', { class: 'chip' }, ...content.map((part) => (typeof part === 'string' ? h('span', {}, part) : part)), button);
}

// The timeline beside the album: a slider whose length is the number of pictures, with the years written where they begin.

import { fill, h } from './dom.js';
import { month, t } from './words.js';

const APART = 18; // pixels between two labels at least

export class Scrubber {
  constructor(element, { jump }) {
    Object.assign(this, { element, jump, months: [], total: 0, at: 0 });
    this.labels = h('div', { class: 'labels', 'aria-hidden': 'true' });
    this.thumb = h('div', { class: 'thumb', 'aria-hidden': 'true' });
    this.bubble = h('output', { class: 'bubble', 'aria-hidden': 'true' });
    element.append(this.labels, this.thumb, this.bubble);
    element.addEventListener('pointerdown', (event) => (element.setPointerCapture(event.pointerId), this.dragged(event)));
    element.addEventListener('pointermove', (event) => element.hasPointerCapture(event.pointerId) && this.dragged(event));
    element.addEventListener('keydown', (event) => this.pressed(event));
    new ResizeObserver(() => this.label()).observe(element);
  }

  use({ total, months }) {
    Object.assign(this, { total, months });
    this.element.hidden = months.length < 2;
    this.element.setAttribute('aria-valuemin', 0);
    this.element.setAttribute('aria-valuemax', Math.max(0, months.length - 1));
    this.label();
    this.follow(this.at);
  }

  label() {
    const height = this.element.clientHeight;
    let below = -APART;
    const labels = [];
    let year = '';
    for (const one of this.months) {
      const name = one.month ? one.month.slice(0, 4) : t('no-date');
      const y = (one.offset / this.total) * height;
      if (name === year || y < below + APART || y > height - APART) continue;
      const label = h('span', {}, name);
      label.style.top = `${Math.max(y, APART / 2)}px`;
      labels.push(label);
      [year, below] = [name, y];
    }
    fill(this.labels, labels);
  }

  // Which month lies at an offset.
  monthAt(offset) {
    let found = 0;
    while (found + 1 < this.months.length && this.months[found + 1].offset <= offset) found += 1;
    return found;
  }

  // Shows where the album is.
  follow(offset) {
    this.at = offset;
    if (!this.months.length) return;
    const place = this.monthAt(offset);
    const name = month(this.months[place].month);
    this.element.setAttribute('aria-valuenow', place);
    this.element.setAttribute('aria-valuetext', name);
    this.bubble.textContent = name;
    this.thumb.style.top = this.bubble.style.top = `${(100 * offset) / Math.max(1, this.total)}%`;
  }

  dragged(event) {
    const box = this.element.getBoundingClientRect();
    const part = Math.max(0, Math.min(1, (event.clientY - box.top) / box.height));
    this.to(Math.min(this.total - 1, Math.floor(part * this.total)));
  }

  pressed(event) {
    const place = this.monthAt(this.at);
    const last = this.months.length - 1;
    const steps = { ArrowDown: place + 1, ArrowUp: place - 1, PageDown: place + 12, PageUp: place - 12, Home: 0, End: last };
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.to(this.months[Math.max(0, Math.min(last, steps[event.key]))].offset);
  }

  to(offset) {
    this.follow(offset);
    this.jump(offset);
  }
}

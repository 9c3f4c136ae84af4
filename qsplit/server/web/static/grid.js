// A grid of any length. Only the rows in sight are in the document, and no row is higher than another, so where a picture
// lies is a multiplication. Browsers end a page at some 16 million pixels, less when enlarged: beyond `HIGHEST` the
// scrollbar stands for more than its length, and wheel and keys still move by what they say.

import { show, thumbnail } from './api.js';
import { debounced, h } from './dom.js';
import { day, t } from './words.js';

const GAP = 6; // pixels
const LEAST = 152; // pixels across a tile; less where there is little room
const NARROW = 500; // pixels
const LEAST_NARROW = 104;
const MOST = 240; // tiles in the document
const BEYOND = 2; // rows above and below what is in sight
const HIGHEST = 4_000_000; // pixels
const REST = 80; // milliseconds

export class Grid {
  constructor(scroller, { href, onsettle = () => {} }) {
    Object.assign(this, { scroller, href, onsettle, source: null, active: 0, top: 0, put: 0, ratio: 1, columns: 1 });
    this.rows = new Map();
    this.sheet = h('div', { class: 'sheet', role: 'rowgroup' });
    scroller.append(this.sheet);
    this.settle = debounced(REST, () => this.settled());
    scroller.addEventListener('scroll', () => this.scrolled(), { passive: true });
    scroller.addEventListener('wheel', (event) => this.wheeled(event), { passive: false });
    scroller.addEventListener('keydown', (event) => this.pressed(event));
    new ResizeObserver(() => this.resized()).observe(scroller);
  }

  // Shows the rows of a source, from one of them on.
  use(source, first = 0) {
    this.source = source;
    source.onrows = () => this.refreshed();
    this.active = Math.min(first, Math.max(0, source.total - 1));
    this.lay();
    this.show(first);
  }

  lay() {
    const { clientWidth: width, clientHeight: height } = this.scroller;
    if (!width || !this.source) return;
    const least = width < NARROW ? LEAST_NARROW : LEAST;
    let columns = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
    const side = (n) => Math.floor((width - GAP * (n - 1)) / n);
    while (columns > 1 && columns * (Math.ceil(height / (side(columns) + GAP)) + 2 * BEYOND + 1) > MOST) columns -= 1;
    this.columns = columns;
    this.side = side(columns);
    this.step = this.side + GAP;
    this.height = height;
    this.measure();
    this.clear();
  }

  measure() {
    const rows = Math.ceil(this.source.total / this.columns);
    this.whole = Math.max(rows * this.step - GAP, 0);
    const shown = Math.min(this.whole, HIGHEST);
    this.sheet.style.height = `${shown}px`;
    this.ratio = this.whole > HIGHEST ? (this.whole - this.height) / (shown - this.height) : 1;
    this.scroller.setAttribute('aria-rowcount', rows);
    this.scroller.setAttribute('aria-colcount', this.columns);
  }

  resized() {
    const first = this.first;
    this.lay();
    if (this.source) this.show(first ?? 0);
  }

  get first() {
    return this.step ? Math.round(this.top / this.step) * this.columns : undefined;
  }

  // Puts the row of a picture at the top.
  show(index) {
    if (this.step) this.moveTo(Math.floor(index / this.columns) * this.step);
  }

  // Scrolls no further than it takes to have a picture in sight.
  reveal(index) {
    const at = Math.floor(index / this.columns) * this.step;
    if (at < this.top) this.moveTo(at);
    else if (at + this.side > this.top + this.height) this.moveTo(at + this.side - this.height);
    else this.draw();
  }

  moveTo(top) {
    const jump = Math.abs(top - this.top);
    this.top = Math.max(0, Math.min(top, this.whole - this.height));
    this.scroller.scrollTop = this.top / this.ratio;
    this.put = this.scroller.scrollTop;
    this.draw(jump > this.height);
  }

  scrolled() {
    const at = this.scroller.scrollTop;
    if (Math.abs(at - this.put) < 1) return;
    const before = this.top;
    this.put = at;
    this.top = at * this.ratio;
    this.draw(Math.abs(this.top - before) > this.height);
  }

  wheeled(event) {
    if (this.ratio === 1 || event.ctrlKey) return;
    event.preventDefault();
    this.moveTo(this.top + event.deltaY * [1, 16, this.height][event.deltaMode]);
  }

  clear() {
    for (const row of this.rows.values()) row.remove();
    this.rows.clear();
  }

  // Puts the rows in sight into the document. Over a jump, pictures wait until the grid has come to rest.
  draw(jumped = false) {
    if (!this.source || !this.step) return;
    const last = Math.ceil(this.source.total / this.columns) - 1;
    const from = Math.max(0, Math.floor(this.top / this.step) - BEYOND);
    const to = Math.min(last, Math.floor((this.top + this.height) / this.step) + BEYOND);
    const free = [...this.rows].filter(([row]) => row < from || row > to);
    for (const [row] of free) this.rows.delete(row);
    for (let row = from; row <= to; row++) {
      if (!this.rows.has(row)) this.rows.set(row, this.filled(free.pop()?.[1] ?? this.made(), row, !jumped));
      this.rows.get(row).style.transform = `translateY(${row * this.step - this.top + this.put}px)`;
    }
    for (const [, element] of free) element.remove();
    if (!jumped) this.source.want(from * this.columns, Math.min((to + 1) * this.columns, this.source.total) - 1);
    this.mark();
    this.settle();
  }

  settled() {
    this.draw();
    this.onsettle(this.first);
    this.refill();
  }

  refill() {
    for (const [row, element] of this.rows) this.filled(element, row, true);
  }

  refreshed() {
    const whole = this.whole;
    this.measure();
    if (this.whole !== whole) this.draw();
    this.refill();
    this.mark();
  }

  made() {
    const row = h('div', { class: 'row', role: 'row' });
    row.style.height = `${this.side}px`;
    for (let n = 0; n < this.columns; n++) {
      const img = h('img', { alt: '', decoding: 'async', draggable: 'false', onerror: (event) => event.target.classList.add('lost') });
      const cell = h('div', { class: 'cell', role: 'gridcell' }, h('a', { tabindex: '-1' }, img, h('span', { class: 'score' })));
      cell.style.width = `${this.side}px`;
      row.append(cell);
    }
    this.sheet.append(row);
    return row;
  }

  filled(element, row, withPictures) {
    element.setAttribute('aria-rowindex', row + 1);
    [...element.children].forEach((cell, n) => this.fillCell(cell, row * this.columns + n, withPictures));
    return element;
  }

  fillCell(cell, index, withPicture) {
    const row = this.source.row(index);
    const link = cell.firstChild;
    const [img, score] = link.children;
    cell.id = `tile-${index}`;
    cell.setAttribute('aria-colindex', (index % this.columns) + 1);
    cell.hidden = index >= this.source.total;
    if (row === undefined) return forget(link, img, score);
    if (link.dataset.id !== row.id) {
      img.classList.remove('lost');
      img.removeAttribute('src');
      delete img.dataset.path;
      link.dataset.id = row.id;
      img.alt = [row.name, row.taken_at && day(row.taken_at), row.caption].filter(Boolean).join(', ');
      link.title = row.caption ? `${row.name}\n${row.caption}` : row.name;
      score.textContent = row.kind && row.kind !== 'date' ? row.score.toFixed(2) : '';
    }
    link.href = this.href(row.id);
    if (withPicture) show(img, thumbnail(row.id));
  }

  mark() {
    const id = `tile-${this.active}`;
    const isThere = this.rows.has(Math.floor(this.active / this.columns));
    for (const row of this.rows.values()) {
      for (const cell of row.children) cell.classList.toggle('active', cell.id === id);
    }
    if (isThere) this.scroller.setAttribute('aria-activedescendant', id);
    else this.scroller.removeAttribute('aria-activedescendant');
  }

  pressed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || !this.source?.total) return;
    const page = Math.max(1, Math.floor(this.height / this.step)) * this.columns;
    const last = this.source.total - 1;
    const steps = {
      ArrowRight: this.active + 1,
      ArrowLeft: this.active - 1,
      ArrowDown: this.active + this.columns,
      ArrowUp: this.active - this.columns,
      PageDown: this.active + page,
      PageUp: this.active - page,
      Home: 0,
      End: last,
    };
    if (event.key === 'Enter' || event.key === ' ') document.getElementById(`tile-${this.active}`)?.firstChild.click();
    else if (event.key in steps) this.activate(Math.max(0, Math.min(last, steps[event.key])));
    else return;
    event.preventDefault();
  }

  activate(index) {
    this.active = index;
    this.reveal(index);
    this.mark();
  }
}

function forget(link, img, score) {
  delete link.dataset.id;
  delete img.dataset.path;
  link.removeAttribute('href');
  link.title = '';
  img.removeAttribute('src');
  img.alt = t('loading');
  score.textContent = '';
}

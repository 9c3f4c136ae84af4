// Two pictures side by side that are enlarged and moved together, so that the same place is looked at in both.

import { picture, show, thumbnail } from './api.js';
import { fill, find, findAll, h, svg } from './dom.js';

const HUE = 47; // degrees from one matched patch to the next
const CLOSEST = 16;
const STEP = 1.25;

export class SideBySide {
  constructor(element) {
    this.windows = findAll('.window', element);
    this.sheets = this.windows.map((one) => find('.sheet', one));
    for (const one of this.windows) this.listen(one);
    this.plain();
  }

  listen(one) {
    one.addEventListener('wheel', (event) => (event.preventDefault(), this.zoom(event.deltaY < 0 ? STEP : 1 / STEP, at(event))), { passive: false });
    one.addEventListener('dblclick', (event) => this.zoom(this.scale > 1 ? 0 : 4, at(event)));
    one.addEventListener('pointerdown', (event) => {
      this.from = [event.clientX - this.x, event.clientY - this.y];
      one.setPointerCapture(event.pointerId);
    });
    one.addEventListener('pointermove', (event) => {
      if (!one.hasPointerCapture(event.pointerId) || this.scale === 1) return;
      this.place(event.clientX - this.from[0], event.clientY - this.from[1]);
    });
  }

  plain() {
    this.scale = 1;
    this.place(0, 0);
  }

  // Enlarges by a factor and leaves one place where it is; 0 shows all again.
  zoom(factor, place = this.middle()) {
    const next = Math.min(CLOSEST, Math.max(1, this.scale * factor));
    if (next === 1) return this.plain();
    const by = next / this.scale;
    this.scale = next;
    this.place(place.x - (place.x - this.x) * by, place.y - (place.y - this.y) * by);
  }

  middle() {
    const { clientWidth, clientHeight } = this.windows[0];
    return { x: clientWidth / 2, y: clientHeight / 2 };
  }

  move(dx, dy) {
    if (this.scale > 1) this.place(this.x + dx, this.y + dy);
  }

  place(x, y) {
    Object.assign(this, { x, y });
    for (const sheet of this.sheets) sheet.style.transform = `translate(${x}px, ${y}px) scale(${this.scale})`;
  }

  // Shows two members of a group; `patches` are pairs of places, x and y in each, 0..1.
  show(members, patches) {
    this.plain();
    members.forEach((member, side) => {
      const img = h('img', { alt: member.name, draggable: 'false' });
      img.addEventListener('error', () => img.dataset.path !== thumbnail(member.id) && show(img, thumbnail(member.id)));
      const frame = h('div', { class: 'frame' }, img, squares(patches, side, member));
      frame.style.aspectRatio = `${member.width} / ${member.height}`;
      frame.style.setProperty('--aspect', String(member.width / member.height));
      fill(this.sheets[side], frame);
      show(img, picture(member.id));
    });
  }
}

function at(event) {
  const box = event.currentTarget.getBoundingClientRect();
  return { x: event.clientX - box.x, y: event.clientY - box.y };
}

// A square around each place that was matched, in the same colour in both pictures.
function squares(patches, side, { width, height }) {
  const [across, down] = [100, (100 * height) / width];
  const half = Math.max(across, down) / 40;
  const square = (patch, n) =>
    svg('rect', {
      x: patch[2 * side] * across - half,
      y: patch[2 * side + 1] * down - half,
      width: 2 * half,
      height: 2 * half,
      stroke: `hsl(${(n * HUE) % 360} 90% 55%)`,
    });
  return svg('svg', { viewBox: `0 0 ${across} ${down}`, class: 'patches', 'aria-hidden': 'true' }, ...patches.map(square));
}

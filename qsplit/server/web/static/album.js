// The album: all pictures by time, or what a search found, in one grid; and what stands there while there is nothing.

import { call } from './api.js';
import { go, here, query, there } from './address.js';
import { fill, find, h } from './dom.js';
import { Grid } from './grid.js';
import { start } from './jobs.js';
import { complain, failure, panel, say } from './notice.js';
import { Scrubber } from './scrubber.js';
import { Album, likePicture, searched } from './sources.js';
import { choose } from './uploads.js';
import { number, t } from './words.js';

const NOT_STATE = ['at', 'picture']; // what changes without another list of pictures

export class AlbumView {
  constructor() {
    this.shown = null;
    this.dropped = null;
    this.count = find('#count');
    this.instead = find('#instead');
    this.scroller = find('#grid');
    this.grid = new Grid(this.scroller, { href: (id) => there({ picture: id }), onsettle: (first) => this.settled(first) });
    this.scrubber = new Scrubber(find('#scrubber'), { jump: (offset) => this.grid.show(offset) });
  }

  // Shows what the address asks for; the same as before is left as it is.
  async follow(params) {
    const key = there(Object.fromEntries(NOT_STATE.map((name) => [name, null])), params);
    if (key === this.shown) return;
    this.shown = key;
    await this.load(params).catch((error) => this.shown === key && this.failed(error, params));
  }

  again() {
    this.shown = null;
    return this.follow(here());
  }

  async load(params) {
    const key = this.shown;
    const asked = params.has('dropped') ? null : query(params);
    this.scroller.setAttribute('aria-busy', 'true');
    if (params.has('dropped') && !this.dropped) return this.explain(panel(t('dropped.gone'), t('dropped.gone.text')));
    if (!asked && !params.has('dropped')) return this.all(params, key);
    const source = asked ? searched(asked) : likePicture(this.dropped);
    await source.more();
    if (this.shown !== key) return;
    this.scrubber.use({ total: 0, months: [] });
    this.use(source, params);
    this.counted(source);
    if (!source.total) this.explain(this.nothing(source, params));
  }

  async all(params, key) {
    const timeline = await call('/api/v1/timeline');
    if (this.shown !== key) return;
    this.scrubber.use(timeline);
    this.use(new Album(timeline.total), params);
    this.counted(this.grid.source);
    if (!timeline.total) await this.first();
  }

  use(source, params) {
    this.explain(null);
    source.onproblem = complain;
    this.grid.use(source, Number(params.get('at') ?? 0));
    const more = source.onrows;
    source.onrows = () => (more(), this.counted(source));
    this.scroller.setAttribute('aria-busy', 'false');
  }

  counted(source) {
    const key = source instanceof Album ? 'count' : source.next ? 'count.more' : 'count.found';
    this.count.textContent = t(key, { n: number(source.total) });
  }

  settled(first) {
    this.scrubber.follow(first);
    if (here().get('view') === null) go({ at: first ? String(first) : null }, { replace: true, quiet: true });
  }

  // What stands in place of the grid, or null for the grid itself.
  explain(element) {
    this.instead.hidden = element === null;
    this.scroller.hidden = element !== null;
    fill(this.instead, element ?? []);
    if (!element) return;
    this.scroller.setAttribute('aria-busy', 'false');
    this.scrubber.use({ total: 0, months: [] });
    this.count.textContent = '';
  }

  nothing(source, params) {
    const show = h('button', { type: 'button', onclick: () => go({ everything: '1' }) }, t('nothing.anyway'));
    if (source.isCut && !params.has('everything')) return panel(t('nothing.good'), t('nothing.good.text'), show);
    return panel(t('nothing'), t('nothing.text'));
  }

  failed(error, params) {
    this.shown = null; // to be tried anew when it is come back to
    const lacks = error.status && error.status < 500 && /--semantic|--captions/.test(error.fix + error.message);
    if (!lacks) return this.explain(failure(error, () => this.again()));
    const work = { kind: 'refresh', semantic: true, captions: params.has('by') };
    const begun = () => (say(t('prepare.begun')), go({ view: 'jobs' }, { from: new URLSearchParams() }));
    const prepare = () => start(work).then(begun, complain);
    this.explain(panel(t('prepare'), t('prepare.text'), h('button', { type: 'button', class: 'main', onclick: prepare }, t('prepare.button'))));
  }

  // An album without pictures: what to do first.
  async first() {
    const status = await call('/api/v1/status').catch(() => ({}));
    this.explain(find('#first').content.firstElementChild.cloneNode(true));
    find('[data-do=choose]', this.instead).addEventListener('click', choose);
    find('[data-do=index]', this.instead).addEventListener('click', () =>
      start({ kind: 'index' }).then(() => go({ view: 'jobs' }), complain),
    );
    if (status.read_only) say(t('first.read-only'), { bad: true });
  }

  // The picture before or behind another, by what the grid shows; null at an end, or where that is not known.
  beside(id, step) {
    const { source, rows, columns } = this.grid;
    for (const row of rows.keys()) {
      for (let index = row * columns; index < (row + 1) * columns; index++) {
        if (source?.row(index)?.id === id) return this.move(index + step);
      }
    }
    return null;
  }

  move(index) {
    const next = this.grid.source.row(index);
    if (next) this.grid.activate(index);
    return next?.id ?? null;
  }
}

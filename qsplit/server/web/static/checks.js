// What the checks of a policy found, flagged pictures first.

import { call, show, thumbnail } from './api.js';
import { go, here, there } from './address.js';
import { fill, find, h } from './dom.js';
import { start } from './jobs.js';
import { complain, failure, panel, say } from './notice.js';
import { number, share, t } from './words.js';

const PAGE = 50;

export class ChecksView {
  constructor() {
    this.view = find('#checks');
    this.policy = find('[name=policy]', this.view);
    this.instead = find('.instead', this.view);
    this.table = find('table', this.view);
    this.pager = find('.pager', this.view);
    this.policy.addEventListener('change', () => go({ policy: this.policy.value, page: null }));
    find('[data-do=run]', this.view).addEventListener('click', () => this.run().catch(complain));
  }

  async follow(params) {
    try {
      await this.choices(params.get('policy'));
      await this.load(Number(params.get('page') ?? 1));
    } catch (error) {
      this.explain(failure(error, () => this.follow(here())));
    }
  }

  async choices(wanted) {
    if (!this.policy.options.length) {
      const { policies } = await call('/api/v1/policies');
      fill(this.policy, policies.map((one) => h('option', {}, typeof one === 'string' ? one : one.name)));
    }
    if (wanted) this.policy.value = wanted;
  }

  async load(page) {
    const policy = this.policy.value;
    const asked = (this.asked = (this.asked ?? 0) + 1);
    const found = await call(`/api/v1/checks/${encodeURIComponent(policy)}?offset=${(page - 1) * PAGE}&limit=${PAGE}`);
    if (asked !== this.asked) return; // another policy was chosen meanwhile
    find('.counter', this.view).textContent = t('checks.counter', { flagged: number(found.flagged), total: number(found.total) });
    this.explain(found.total ? null : panel(t('checks.none', { policy }), t('checks.none.text')));
    fill(find('tbody', this.table), found.results.map(line));
    this.turn(page, Math.ceil(found.total / PAGE));
  }

  turn(page, pages) {
    this.pager.hidden = pages < 2;
    const link = (to, text) => (to >= 1 && to <= pages ? h('a', { href: there({ page: to === 1 ? null : String(to) }) }, text) : h('span', {}, text));
    fill(this.pager, link(page - 1, t('page.previous')), h('span', {}, t('page.of', { page: number(page), pages: number(pages) })), link(page + 1, t('page.next')));
  }

  explain(element) {
    this.instead.hidden = element === null;
    this.table.hidden = element !== null;
    if (element) this.pager.hidden = true;
    fill(this.instead, element ?? []);
  }

  async run() {
    await start({ kind: 'check', policy: this.policy.value });
    say(t('checks.begun', { policy: this.policy.value }));
    go({ view: 'jobs' }, { from: new URLSearchParams() });
  }
}

function line(result) {
  const img = h('img', { alt: '', width: '48', height: '48' });
  show(img, thumbnail(result.id));
  const meter = h('meter', { min: '0', max: '1', 'aria-label': t('checks.probability') });
  meter.value = result.probability;
  return h(
    'tr',
    { class: result.flagged ? 'flagged' : '' },
    h('td', {}, h('a', { href: there({ picture: result.id }) }, img, h('span', {}, result.name ?? result.id.slice(0, 12)))),
    h('td', {}, result.check),
    h('td', {}, result.answer),
    h('td', {}, meter, ' ', share(result.probability)),
    h('td', {}, result.flagged ? h('strong', { class: 'flag' }, t('checks.flagged')) : ''),
  );
}

// How the page looks, and how the album is.

import { call, forgetKey, hasKey } from './api.js';
import { fill, find, h } from './dom.js';
import { failure } from './notice.js';
import { number, size, t } from './words.js';

const YEAR = 365 * 24 * 3600;

export class SettingsView {
  constructor() {
    this.view = find('#settings');
    for (const name of ['theme', 'language']) {
      const field = find(`[name=${name}]`, this.view);
      field.addEventListener('change', () => this.remember(name, field.value));
    }
    find('[data-do=forget-key]', this.view).addEventListener('click', () => forgetKey().then(() => location.reload()));
  }

  // A choice is a cookie, so that the server renders the page by it.
  remember(name, value) {
    document.cookie = `qsplit-${name}=${value}; path=/; max-age=${YEAR}; samesite=strict`;
    if (name === 'theme') document.documentElement.dataset.theme = value;
    else location.reload();
  }

  async follow() {
    find('[data-do=forget-key]', this.view).hidden = !hasKey();
    try {
      this.tell(await call('/api/v1/status'));
    } catch (error) {
      fill(find('.status', this.view), failure(error, () => this.follow()));
    }
  }

  tell(status) {
    const on = (value) => t(value ? 'yes' : 'no');
    const encoder = (status.encoders ?? []).find((one) => one.current);
    const semantic = Object.values(encoder?.semantic ?? {}).reduce((sum, n) => sum + n, 0);
    const lines = [
      ['status.images', number(status.images ?? 0)],
      ['status.files', number(status.files ?? 0)],
      ['status.stale', number(status.stale ?? 0)],
      ['status.semantic', number(semantic)],
      ['status.captions', number(encoder?.captions ?? 0)],
      ['status.bytes', size(status.bytes?.total ?? 0)],
      ['status.model', status.model || t('status.bundled')],
      ['status.encoder', encoder?.id.slice(0, 12) ?? t('status.none')],
      ['status.role', status.role ?? ''],
      ['status.uploads', on(status.uploads)],
      ['status.read-only', on(status.read_only)],
    ];
    const list = h('dl', {}, lines.flatMap(([key, value]) => [h('dt', {}, t(key)), h('dd', {}, String(value))]));
    const skipped = (status.skipped ?? []).map((one) => h('li', {}, `${base(one)}: ${one.reason}`));
    const unread = h('details', {}, h('summary', {}, t('status.skipped', { n: number(skipped.length) })), h('ul', {}, skipped));
    fill(find('.status', this.view), list, skipped.length ? unread : '');
  }
}

const base = (one) => (one.name ?? one.path ?? '').split('/').pop();

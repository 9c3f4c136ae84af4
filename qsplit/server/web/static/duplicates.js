// Duplicates, pair by pair: the picture that is kept beside the one that would go, and one key for each thing to say.

import { Problem, call } from './api.js';
import { go, here } from './address.js';
import { fill, find, findAll, h, isTyping } from './dom.js';
import { start } from './jobs.js';
import { complain, confirmed, failure, panel, say } from './notice.js';
import { day, number, share, size, t } from './words.js';
import { SideBySide } from './zoom.js';

const AT_ONCE = 1000; // groups that are fetched, or accepted, in one request
const PAN = 60; // pixels

export class DuplicatesView {
  constructor() {
    this.view = find('#duplicates');
    this.review = find('.review', this.view);
    this.instead = find('.instead', this.view);
    this.pair = new SideBySide(this.review);
    this.kinds = find('[name=kinds]', this.view);
    Object.assign(this, { pairs: [], at: 0, decided: 0, done: new Set(), history: [], busy: false });
    this.kinds.addEventListener('change', () => go({ kinds: this.kinds.value === this.kinds.dataset.plain ? null : this.kinds.value, group: null }));
    this.does = {
      trash: () => this.trash(),
      keep: () => this.settle('keep'),
      apart: () => this.apart(),
      skip: () => this.skip(),
      undo: () => this.undo(),
      swap: () => this.swap(),
      zoom: () => this.pair.zoom(this.pair.scale > 1 ? 0 : 4),
      patches: () => this.togglePatches(),
      all: () => this.acceptAll(),
      scan: () => this.scan(),
    };
    for (const button of findAll('[data-do]', this.view)) button.addEventListener('click', () => this.act(button.dataset.do));
    document.addEventListener('keydown', (event) => this.pressed(event));
  }

  async follow(params) {
    const kinds = params.get('kinds') ?? this.kinds.dataset.plain;
    this.kinds.value = kinds;
    if (this.loaded === kinds && this.pairs.length) return this.find(params.get('group'));
    await this.load();
  }

  async load() {
    const kinds = this.kinds.value;
    this.explain(panel(t('loading')));
    try {
      const { groups, scanned_at } = await known(this.chosen());
      this.loaded = kinds;
      this.groups = groups;
      this.pairs = groups.flatMap(pairsOf).filter((pair) => !this.done.has(pair.key));
      this.decided = 0;
      find('.scanned', this.view).textContent = scanned_at ? t('duplicates.scanned', { when: day(scanned_at) }) : '';
      this.empty = scanned_at ? panel(t('duplicates.none'), t('duplicates.none.text')) : this.unscanned();
      this.find(here().get('group'));
    } catch (error) {
      this.explain(failure(error, () => this.load()));
    }
  }

  // The kinds that a person chose, if any: copies are moved only then.
  chosen() {
    return this.kinds.value === this.kinds.dataset.plain ? [] : this.kinds.value.split(',');
  }

  mayMove(kind) {
    return kind !== 'similar' && (kind !== 'copy' || this.chosen().includes('copy'));
  }

  unscanned() {
    const button = h('button', { type: 'button', class: 'main', onclick: () => this.act('scan') }, t('duplicates.scan'));
    return panel(t('duplicates.unscanned'), t('duplicates.unscanned.text'), button);
  }

  async scan() {
    await start({ kind: 'duplicates' });
    say(t('duplicates.scanning'));
    this.loaded = null;
    go({ view: 'jobs' }, { from: new URLSearchParams() });
  }

  explain(element) {
    this.instead.hidden = element === null;
    this.review.hidden = element !== null;
    fill(this.instead, element ?? []);
  }

  find(group) {
    const place = this.pairs.findIndex((pair) => pair.group.id === group);
    if (place >= 0 && this.pairs[this.at]?.group.id !== group) this.at = place;
    this.show();
  }

  // Shows the pair that is next, and in the address whose it is.
  show() {
    this.at = Math.max(0, Math.min(this.at, this.pairs.length - 1));
    const pair = this.pairs[this.at];
    const left = this.pairs.length;
    find('.counter', this.view).textContent = t('duplicates.counter', { n: number(left ? this.at + 1 : 0), of: number(left), done: number(this.decided) });
    find('[data-do=all]', this.view).disabled = !this.groups?.length;
    if (here().get('view') === 'duplicates') go({ group: pair?.group.id ?? null }, { replace: true, quiet: true });
    if (!pair) return this.explain(this.decided ? panel(t('duplicates.done'), t('duplicates.done.text')) : this.empty);
    this.explain(null);
    const { keep, other } = pair;
    const patches = pair.evidence?.patches ?? [];
    this.pair.show([keep, other], pair.swapped ? patches.map((patch) => [...patch.slice(2), ...patch.slice(0, 2)]) : patches);
    findAll('figcaption', this.review).forEach((caption, side) => describe(caption, [keep, other][side], [other, keep][side]));
    find('.why', this.review).textContent = [why(pair), this.stays(pair)].filter(Boolean).join(' ');
    find('[data-do=apart]', this.review).disabled = keep.id === other.id;
    find('[data-do=trash]', this.review).disabled = !this.mayMove(pair.group.kind);
  }

  // Why the file on the right stays where it is, if accepting would leave it.
  stays({ group, other, swapped }) {
    if (group.kind === 'copy' && !this.mayMove('copy')) return t('duplicates.copies');
    return swapped || other.movable || !other.reason ? '' : t('duplicates.stays', { reason: other.reason });
  }

  async act(name) {
    if (this.busy) return;
    this.busy = true;
    try {
      await this.does[name]();
    } catch (error) {
      complain(error);
    } finally {
      this.busy = false;
    }
  }

  // Takes the pair, and those of its pictures that are no longer there, off the list; `said` is what was decided.
  settle(said, isGone = () => false) {
    const pair = this.pairs[this.at];
    const before = [...this.pairs];
    this.pairs = this.pairs.filter((one) => one !== pair && !isGone(one));
    this.history.push({ said, before, at: this.at, decided: this.decided, moves: 1 });
    this.decided += 1;
    if (said === 'keep') this.done.add(pair.key);
    this.show();
  }

  async trash() {
    const pair = this.pairs[this.at];
    if (!pair || !this.mayMove(pair.group.kind)) return;
    const { keep, other } = pair;
    const trash = [{ id: other.id, name: other.name, file: other.file }];
    const { moved } = await call('/api/v1/duplicates/trash', { method: 'POST', json: { keep: keep.id, keep_file: keep.file, trash, ...this.given() } });
    const left = moved.find((one) => !one.moved);
    if (left) throw new Problem(left.reason ?? t('duplicates.left'));
    const isGone = (one) => one.group === pair.group && [one.keep, one.other].includes(other);
    this.settle('trash', isGone);
    say(t('duplicates.trashed', { name: other.name }), { action: t('duplicates.undo'), run: () => this.act('undo') });
  }

  given() {
    const kinds = this.chosen();
    return kinds.length ? { kinds } : {};
  }

  async apart() {
    const pair = this.pairs[this.at];
    if (!pair || pair.keep.id === pair.other.id) return;
    await call('/api/v1/duplicates/decisions', { method: 'POST', json: { one: pair.keep.id, other: pair.other.id } });
    this.settle('apart');
    say(t('duplicates.apart.said'));
  }

  skip() {
    if (this.pairs.length < 2) return;
    this.history.push({ said: 'skip', before: [...this.pairs], at: this.at, decided: this.decided });
    this.pairs.push(...this.pairs.splice(this.at, 1));
    this.show();
  }

  // Takes the last thing back: what went to the trash comes back from it.
  async undo() {
    const last = this.history.at(-1);
    if (!last) return say(t('duplicates.undo.none'));
    if (last.said === 'trash') await this.bringBack(last);
    if (last.said === 'apart') await this.unsay(last);
    this.history.pop();
    Object.assign(this, { pairs: last.before, at: last.at, decided: last.decided });
    if (last.said === 'keep') this.done.delete(this.pairs[this.at].key);
    this.show();
  }

  async unsay({ before, at }) {
    const { keep, other } = before[at];
    const pair = new URLSearchParams({ one: keep.id, other: other.id });
    await call(`/api/v1/duplicates/decisions?${pair}`, { method: 'DELETE' });
    say(t('duplicates.unsaid'));
  }

  // Undoes as many moves to the trash as one thing that was said took.
  async bringBack(last) {
    for (; last.moves > 0; last.moves--) {
      const { restored } = await call('/api/v1/duplicates/undo', { method: 'POST' });
      const left = restored.find((one) => !one.restored);
      if (left) say(`${left.name}: ${left.reason}`, { bad: true });
    }
    say(t('duplicates.undone'));
  }

  swap() {
    const pair = this.pairs[this.at];
    if (!pair) return;
    this.pairs[this.at] = { ...pair, keep: pair.other, other: pair.keep, swapped: !pair.swapped };
    this.show();
  }

  togglePatches() {
    const isOff = this.review.classList.toggle('plain');
    find('[data-do=patches]', this.review).setAttribute('aria-pressed', !isOff);
  }

  async acceptAll() {
    await this.load(); // groups that lost a file are others by now
    const isOpen = (group) => this.pairs.some((pair) => pair.group === group);
    const groups = this.groups.filter((group) => isOpen(group) && group.members.some((member) => member.movable));
    const files = groups.reduce((n, group) => n + group.members.filter((member) => member.movable).length, 0);
    if (!groups.length) return say(t('duplicates.all.none'));
    const question = t('duplicates.all.sure', { groups: number(groups.length), files: number(files) });
    if (!(await confirmed(question, t('duplicates.all')))) return;
    const made = { said: 'trash', before: this.pairs, at: this.at, decided: this.decided, moves: 0 };
    this.history.push(made);
    const told = await this.accept(groups, made);
    await this.load();
    say(t('duplicates.all.done', told), { action: t('duplicates.undo'), run: () => this.act('undo') });
  }

  // Accepts groups, some at once; `made` is told of each move that could be undone.
  async accept(groups, made) {
    const files = { moved: 0, left: 0 };
    for (let done = 0; done < groups.length; done += AT_ONCE) {
      const some = groups.slice(done, done + AT_ONCE).map((group) => group.id);
      const { moved } = await call('/api/v1/duplicates/trash', { method: 'POST', json: { groups: some, ...this.given() } });
      made.moves += 1;
      for (const one of moved) files[one.moved ? 'moved' : 'left'] += 1;
      find('.counter', this.view).textContent = t('duplicates.all.progress', { n: number(done + some.length), of: number(groups.length) });
    }
    return { moved: number(files.moved), left: number(files.left) };
  }

  pressed(event) {
    if (this.view.hidden || isTyping(event) || document.querySelector('dialog[open]')) return;
    const keys = { t: 'trash', k: 'keep', n: 'apart', s: 'skip', u: 'undo', x: 'swap', z: 'zoom', m: 'patches' };
    const pans = { ArrowLeft: [PAN, 0], ArrowRight: [-PAN, 0], ArrowUp: [0, PAN], ArrowDown: [0, -PAN] };
    if (event.key in keys) this.act(keys[event.key]);
    else if (event.key in pans && this.pair.scale > 1) this.pair.move(...pans[event.key]);
    else if (event.key === '+' || event.key === '-') this.pair.zoom(event.key === '+' ? 1.5 : 1 / 1.5);
    else return;
    event.preventDefault();
  }
}

// All groups of some kinds, of all but similar shots if none is given.
async function known(kinds) {
  const groups = [];
  for (;;) {
    const found = await call(`/api/v1/duplicates?kinds=${kinds.join(',')}&offset=${groups.length}&limit=${AT_ONCE}`);
    groups.push(...found.groups);
    if (groups.length >= found.total || !found.groups.length) return { ...found, groups };
  }
}

// The one to keep beside each of the others.
function pairsOf(group) {
  const [keep, ...others] = group.members;
  return others.map((other, n) => ({ group, keep, other, evidence: other.evidence, swapped: false, key: `${group.id}:${n}` }));
}

function describe(caption, member, other) {
  const better = (mine, theirs, text) => (mine > theirs ? h('strong', {}, text) : text);
  fill(find('.name', caption), member.name);
  fill(
    find('.facts', caption),
    better(member.width * member.height, other.width * other.height, `${number(member.width)} × ${number(member.height)}`),
    ` ${member.format}, `,
    better(member.bytes, other.bytes, size(member.bytes)),
    `, ${day(member.taken_at)}`,
  );
}

function why({ group, other, keep, evidence, swapped }) {
  const kind = t(`kind.${group.kind}`);
  if (!evidence) return kind;
  const score = (swapped ? keep : other).score;
  const values = { kind, score: score.toFixed(2), tokens: evidence.tokens, landmarks: evidence.landmarks, agreement: share(evidence.agreement) };
  return t('duplicates.why', values);
}

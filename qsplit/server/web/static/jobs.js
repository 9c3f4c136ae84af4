// Work in the background: begun, watched, paused, gone on with and given up.

import { call } from './api.js';
import { fill, find, findAll, h } from './dom.js';
import { complain, failure, say } from './notice.js';
import { duration, number, share, t } from './words.js';

const EVERY = 1000; // milliseconds
const LIVE = ['queued', 'running', 'paused'];
const MAY = { queued: ['cancel'], running: ['pause', 'cancel'], paused: ['resume', 'cancel'] };

let woken = () => {};

// Has the server begin some work; what is told of it is on the page of jobs.
export async function start(work) {
  const job = await call('/api/v1/jobs', { method: 'POST', json: work });
  woken();
  return job;
}

export class JobsView {
  constructor({ onfinished }) {
    this.view = find('#jobs');
    this.list = find('.jobs', this.view);
    this.badge = find('#job-badge');
    Object.assign(this, { onfinished, lines: new Map(), states: new Map(), timer: 0 });
    woken = () => this.watch();
    for (const button of findAll('[data-start]', this.view)) {
      button.addEventListener('click', () => start(JSON.parse(button.dataset.start)).then((job) => say(t('jobs.begun', { kind: t(`job.${job.kind}`) })), complain));
    }
    document.addEventListener('visibilitychange', () => document.hidden || this.watch());
  }

  follow() {
    this.watch();
  }

  // Looks at the jobs, and again as long as there is something to see.
  async watch() {
    clearTimeout(this.timer);
    try {
      const found = await call('/api/v1/jobs');
      this.tell(found.jobs ?? found);
    } catch (error) {
      if (!this.view.hidden) fill(this.list, failure(error, () => this.watch()));
      this.lines.clear();
      return;
    }
    if (this.isLive && !document.hidden) this.timer = setTimeout(() => this.watch(), EVERY);
  }

  tell(jobs) {
    this.isLive = jobs.some((job) => LIVE.includes(job.state));
    const running = jobs.find((job) => job.state === 'running');
    this.badge.textContent = running?.total ? share(running.done / running.total) : running ? '…' : '';
    if (!jobs.length) fill(this.list, h('li', { class: 'quiet' }, t('jobs.none')));
    else if (!this.lines.size) this.list.replaceChildren();
    for (const job of jobs) this.tellOne(job);
    for (const job of jobs) this.list.append(this.lines.get(job.id).element);
  }

  tellOne(job) {
    if (!this.lines.has(job.id)) this.lines.set(job.id, new Line(() => this.watch()));
    this.lines.get(job.id).tell(job);
    const before = this.states.get(job.id);
    this.states.set(job.id, job.state);
    if (before && LIVE.includes(before) && !LIVE.includes(job.state)) this.onfinished(job);
  }
}

// One job; what is focused in it stays so while the numbers move.
class Line {
  constructor(onchange) {
    this.onchange = onchange;
    this.title = h('strong');
    this.state = h('span', { class: 'state' });
    this.bar = h('progress', { max: '1' });
    this.text = h('p', { class: 'quiet' });
    this.failures = h('ul', { class: 'problem' });
    this.buttons = h('div', { class: 'actions' });
    this.element = h('li', { class: 'job' }, h('div', { class: 'head' }, this.title, this.state), this.bar, this.text, this.failures, this.buttons);
  }

  tell(job) {
    this.element.dataset.state = job.state;
    this.element.dataset.kind = job.kind;
    this.title.textContent = t(`job.${job.kind}`);
    this.state.textContent = t(`state.${job.state}`);
    this.bar.setAttribute('aria-label', this.title.textContent);
    if (job.total) this.bar.value = job.done / job.total;
    else if (job.state === 'done') this.bar.value = 1;
    else if (LIVE.includes(job.state)) this.bar.removeAttribute('value');
    else this.bar.value = 0;
    this.text.textContent = said(job);
    fill(this.failures, (job.failures ?? []).map((one) => h('li', {}, `${one.name}: ${one.reason}`)));
    this.failures.hidden = !job.failures?.length;
    const may = (MAY[job.state] ?? []).join();
    if (this.may === may) return;
    this.may = may;
    fill(this.buttons, (MAY[job.state] ?? []).map((what) => this.button(job.id, what)));
  }

  button(id, what) {
    const run = () => call(`/api/v1/jobs/${id}/${what}`, { method: 'POST' }).then(this.onchange, complain);
    return h('button', { type: 'button', 'data-do': what, onclick: run }, t(`job.${what}`));
  }
}

function said(job) {
  const parts = [];
  if (job.total) parts.push(t('jobs.done', { done: number(job.done), total: number(job.total) }));
  if (job.rate) parts.push(t('jobs.rate', { rate: number(Math.round(job.rate * 10) / 10) }));
  if (job.seconds >= 1) parts.push(duration(job.seconds));
  const failed = job.failed ? t('jobs.failed', { n: number(job.failed) }) : '';
  return [parts.join(', '), job.message, failed].filter(Boolean).join(' — ');
}

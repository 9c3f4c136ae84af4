// Where a grid takes its rows from: how many there are, which are known, and a way to have more fetched.

import { call } from './api.js';

const PAGE = 100;
const KEPT = 80; // pages
const MATCHES = 60; // a page of a search
const AHEAD = 60; // matches that are fetched before they are in sight

// The album: any part of it can be had at once, by its offset.
export class Album {
  constructor(total) {
    this.total = total;
    this.pages = new Map();
    this.wanted = [];
    this.busy = 0;
    this.onrows = () => {};
    this.onproblem = () => {};
  }

  row(index) {
    return this.pages.get(Math.floor(index / PAGE))?.[index % PAGE];
  }

  // Fetches what lacks between two indexes; what was wanted before and is not yet on its way is given up.
  want(first, last) {
    this.wanted = [];
    for (let page = Math.floor(first / PAGE); page <= Math.floor(last / PAGE); page++) {
      if (!this.pages.has(page)) this.wanted.push(page);
    }
    this.fetch();
  }

  async fetch() {
    while (this.busy < 2 && this.wanted.length) {
      const page = this.wanted.shift();
      this.pages.set(page, []);
      this.busy += 1;
      call(`/api/v1/images?offset=${page * PAGE}&limit=${PAGE}`)
        .then((found) => this.keep(page, found.images))
        .catch((error) => (this.pages.delete(page), this.onproblem(error)))
        .finally(() => ((this.busy -= 1), this.fetch()));
    }
  }

  keep(page, rows) {
    this.pages.delete(page);
    this.pages.set(page, rows);
    if (this.pages.size > KEPT) this.pages.delete(this.pages.keys().next().value);
    this.onrows();
  }
}

// What a search found: page after page, from the best match on.
export class Matches {
  constructor(fetchPage) {
    this.fetchPage = fetchPage; // cursor or '' -> {matches, next, is_cut}
    this.rows = [];
    this.next = '';
    this.isCut = false;
    this.onrows = () => {};
    this.onproblem = () => {};
  }

  get total() {
    return this.rows.length;
  }

  row(index) {
    return this.rows[index];
  }

  want(_, last) {
    if (this.next && !this.busy && last + AHEAD > this.rows.length) this.more().catch((error) => this.onproblem(error));
  }

  async more() {
    this.busy = true;
    try {
      const found = await this.fetchPage(this.next);
      this.rows.push(...found.matches);
      this.next = found.next ?? '';
      this.isCut = found.is_cut;
    } finally {
      this.busy = false;
    }
    this.onrows();
  }
}

export const searched = (query) =>
  new Matches((after) => call('/api/v1/search', { method: 'POST', json: { ...query, after, limit: MATCHES } }));

export function likePicture(file) {
  const form = () => {
    const data = new FormData();
    data.append('file', file);
    data.append('limit', String(MATCHES));
    return data;
  };
  return new Matches(() => call('/api/v1/search/picture', { method: 'POST', body: form() }).then((found) => ({ ...found, next: null })));
}

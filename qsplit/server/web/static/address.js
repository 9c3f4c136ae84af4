// The address is the state: which view, what is searched for, which picture and group. Nothing else remembers it.

const CONDITIONS = ['since', 'until', 'camera', 'near', 'path', 'min_width', 'min_height'];
const HOW = ['by', 'sort', 'rerank', 'everything'];
export const FILTERS = [...CONDITIONS, ...HOW];

const listeners = [];

export const onMove = (listener) => listeners.push(listener);

export const here = () => new URLSearchParams(location.search);

// Where a change of some names leads; null takes a name away, a list writes it several times.
export function there(changes, from = here()) {
  const next = new URLSearchParams(from);
  for (const [name, value] of Object.entries(changes)) {
    next.delete(name);
    for (const one of Array.isArray(value) ? value : [value]) if (one !== null && one !== '') next.append(name, one);
  }
  const text = next.toString();
  return text ? `/?${text}` : '/';
}

export function go(changes, { from = here(), replace = false, quiet = false } = {}) {
  const url = there(changes, from);
  if (url === location.pathname + location.search) return;
  history[replace ? 'replaceState' : 'pushState'](null, '', url);
  if (!quiet) move();
}

export function move() {
  for (const listener of listeners) listener(here());
}

addEventListener('popstate', move);

document.addEventListener('click', (event) => {
  const link = event.target.closest('a[href^="/?"], a[href="/"]');
  if (!link || link.target || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  const url = new URL(link.href);
  if (url.search === location.search) return;
  history.pushState(null, '', url.pathname + url.search);
  move();
});

// What the search is asked, or null where nothing is: then the album is shown as it is.
export function query(params) {
  const like = params.getAll('like');
  const where = {};
  for (const name of CONDITIONS) {
    const value = params.get(name);
    if (value) where[name] = name === 'near' ? near(value) : name.startsWith('min') ? Number(value) : value;
  }
  const text = params.get('q') ?? '';
  if (!text && !like.length && !Object.keys(where).length) return null;
  return {
    text,
    like,
    where,
    sort: params.get('sort') ?? 'relevance',
    by: params.get('by') ?? 'meaning',
    rerank: Number(params.get('rerank') ?? 0),
    everything: params.has('everything'),
  };
}

function near(text) {
  const [latitude, longitude, km] = text.split(',').map(Number);
  return { latitude, longitude, km };
}

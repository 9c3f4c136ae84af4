// The page: its views, which of them is shown, and the keys that work everywhere.

import { go, here, move, onMove } from './address.js';
import { AlbumView } from './album.js';
import { ChecksView } from './checks.js';
import { find, findAll, isTyping } from './dom.js';
import { DuplicatesView } from './duplicates.js';
import { JobsView } from './jobs.js';
import { complain } from './notice.js';
import { PictureView } from './picture.js';
import { Search } from './search.js';
import { SettingsView } from './settings.js';
import { Uploads } from './uploads.js';
import { t } from './words.js';

const album = new AlbumView();
const views = {
  album,
  duplicates: new DuplicatesView(),
  checks: new ChecksView(),
  jobs: new JobsView({ onfinished: finished }),
  settings: new SettingsView(),
};
const search = new Search({ onpicture: searchFor });
const picture = new PictureView({ beside: (id, step) => album.beside(id, step), onforgotten: () => album.again() });
new Uploads({ onpicture: searchFor, onadded: () => album.again() });

onMove((params) => {
  const name = params.get('view') in views ? params.get('view') : 'album';
  for (const section of findAll('main > section')) section.hidden = section.id !== name;
  for (const link of findAll('nav a')) link.toggleAttribute('data-current', link.dataset.view === name);
  for (const link of findAll('nav a')) link.setAttribute('aria-current', link.dataset.view === name ? 'page' : 'false');
  document.title = name === 'album' ? t('title') : `${t(`nav.${name}`)} · ${t('title')}`;
  search.follow(params, params.has('dropped') ? album.dropped : null);
  Promise.resolve(views[name].follow(params)).catch(complain);
  picture.follow(params);
});

// A picture that is not in the album: those that are like it are found, but no address can hold it.
function searchFor(file) {
  album.dropped = file;
  album.shown = null;
  go({ dropped: String(Date.now()), at: null, view: null }, { from: new URLSearchParams() });
}

function finished(job) {
  if (job.state === 'failed') complain(Object.assign(new Error(job.message ?? t('state.failed')), { fix: '' }));
  if (job.kind === 'duplicates') views.duplicates.loaded = null;
  if (job.kind === 'index' || job.kind === 'refresh') album.shown = null;
  if (!here().has('view')) album.follow(here());
}

document.addEventListener('keydown', (event) => {
  if (isTyping(event) || document.querySelector('dialog[open]')) return;
  const isAtGrid = !find('#album').hidden && !find('#grid').hidden && !event.target.closest('#grid, #scrubber');
  if (event.key === '/') search.focus();
  else if (event.key === '?') find('#help').showModal();
  else if (isAtGrid && ['Home', 'End', 'PageDown', 'PageUp'].includes(event.key)) {
    find('#grid').focus();
    album.grid.pressed(event);
  } else return;
  event.preventDefault();
});

for (const dialog of findAll('dialog')) {
  dialog.addEventListener('click', (event) => event.target.closest('[data-close]') && dialog.close());
}
find('#help-button').addEventListener('click', () => find('#help').showModal());

move();
views.jobs.watch();
document.documentElement.dataset.ready = 'true';

// What the page says, in the language that the server rendered it in, and numbers and dates as that language writes them.

const words = JSON.parse(document.getElementById('words').textContent);

export const language = document.documentElement.lang;

// The words under a key, with {names} replaced by values.
export function t(key, values = {}) {
  if (!(key in words)) throw new Error(`No words for ${key}`);
  return words[key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

const numbers = new Intl.NumberFormat(language);
const shares = new Intl.NumberFormat(language, { style: 'percent', maximumFractionDigits: 0 });
const dates = new Intl.DateTimeFormat(language, { dateStyle: 'medium', timeStyle: 'short', timeZone: 'UTC' });
const months = new Intl.DateTimeFormat(language, { month: 'long', year: 'numeric', timeZone: 'UTC' });

export const number = (value) => numbers.format(value);

export const share = (value) => shares.format(value);

export const day = (iso) => (iso ? dates.format(new Date(iso)) : t('no-date'));

export const month = (yearMonth) => (yearMonth ? months.format(new Date(`${yearMonth}-01T00:00:00Z`)) : t('no-date'));

const UNITS = ['byte', 'kilobyte', 'megabyte', 'gigabyte', 'terabyte'];

export function size(bytes) {
  const power = Math.min(UNITS.length - 1, Math.floor(Math.log10(Math.max(bytes, 1)) / 3));
  const options = { style: 'unit', unit: UNITS[power], maximumFractionDigits: power ? 1 : 0 };
  return new Intl.NumberFormat(language, options).format(bytes / 1000 ** power);
}

export function duration(seconds) {
  const whole = Math.round(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return parts.map((part) => String(part).padStart(2, '0')).join(':');
}

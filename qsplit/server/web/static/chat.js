// Questions about a picture. Answers come word by word, and what was said before goes along with each further question.

import { Problem, call, request } from './api.js';
import { find, h } from './dom.js';
import { t } from './words.js';

let model = null;

async function answeringModel() {
  model ??= (await call('/v1/models')).data[0]?.id ?? '';
  return model;
}

// Yields {text, model} for each piece of an answer.
async function* answer(messages, signal) {
  const json = { model: await answeringModel(), messages, stream: true };
  const response = await request('/v1/chat/completions', { method: 'POST', json, signal });
  for await (const data of events(response.body)) {
    if (data === '[DONE]') return;
    const piece = JSON.parse(data);
    if (piece.error) throw new Problem(piece.error.message ?? t('problem'), { fix: piece.error.fix ?? '' });
    yield { text: piece.choices?.[0]?.delta?.content ?? '', model: piece.model ?? '' };
  }
}

// The data of server-sent events, event by event.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value.replaceAll('\r', '');
    const whole = held.split('\n\n');
    held = whole.pop();
    for (const event of whole) {
      const data = event.split('\n').filter((line) => line.startsWith('data:'));
      if (data.length) yield data.map((line) => line.slice(5).trim()).join('\n');
    }
  }
}

export class Chat {
  constructor(element) {
    this.log = find('.log', element);
    this.form = find('form', element);
    this.field = find('textarea', element);
    this.stop = find('[data-do=stop]', element);
    this.form.addEventListener('submit', (event) => (event.preventDefault(), this.ask()));
    this.field.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.ask();
    });
    this.stop.addEventListener('click', () => this.leave());
    find('[data-do=new]', element).addEventListener('click', () => this.about(this.id));
  }

  // Begins a conversation about a picture.
  about(id) {
    this.leave();
    Object.assign(this, { id, messages: [] });
    this.log.replaceChildren();
    this.field.value = '';
  }

  leave() {
    this.controller?.abort();
    this.controller = null;
    this.stop.hidden = true;
  }

  async ask() {
    const question = this.field.value.trim();
    if (!question || this.controller) return;
    this.field.value = '';
    const { id, messages } = this;
    const picture = messages.length ? [] : [{ type: 'qsplit_image', id }];
    const turn = [...messages, { role: 'user', content: [...picture, { type: 'text', text: question }] }];
    this.log.append(h('p', { class: 'question' }, question));
    const said = h('p', { class: 'answer', 'aria-busy': 'true' });
    const who = h('p', { class: 'who' });
    this.log.append(said, who);
    const controller = (this.controller = new AbortController());
    this.stop.hidden = false;
    try {
      for await (const piece of answer(turn, controller.signal)) {
        said.append(piece.text);
        if (piece.model) who.textContent = t('ask.by', { model: piece.model });
        this.log.scrollTop = this.log.scrollHeight;
      }
      this.messages = [...turn, { role: 'assistant', content: said.textContent }];
    } catch (error) {
      who.textContent = error.name === 'AbortError' ? t('ask.stopped') : [error.message, error.fix].filter(Boolean).join(' ');
      who.classList.add('problem');
    } finally {
      said.setAttribute('aria-busy', 'false');
      if (this.controller === controller) this.leave();
    }
  }
}

// The page of a running lb. It shows what GET /v1/status, /v1/history, /v1/events, /v1/sessions and
// /v1/clients say, and changes what the CLI changes. Text from outside becomes text nodes, never markup.
'use strict';

const $ = id => document.getElementById(id);
let token = '';
let status = null, history = new Map(), historyUntil = 0, historyInterval = 10;
let events = [], lastEvent = 0, tab = 'pools', filter = '';
const sorts = new Map(); // by table: {column, down}
let failures = 0;

// ---- words ----

const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
function bytes(n) {
  let i = 0;
  while (n >= 1024 && i < units.length - 1) { n /= 1024; i++; }
  return (i ? n.toFixed(1) : n) + ' ' + units[i];
}
function age(s) {
  s = Math.max(0, Math.floor(s));
  if (s >= 86400) return Math.floor(s / 86400) + 'd ' + Math.floor(s % 86400 / 3600) + 'h';
  if (s >= 3600) return Math.floor(s / 3600) + 'h ' + Math.floor(s % 3600 / 60) + 'm';
  if (s >= 60) return Math.floor(s / 60) + 'm ' + s % 60 + 's';
  return s + 's';
}
function secs(s) {
  if (!s) return '–';
  if (s < 0.001) return Math.round(s * 1e6) + ' µs';
  if (s < 1) return (s * 1e3).toPrecision(3) + ' ms';
  return s.toFixed(1) + ' s';
}
const since = t => (Date.now() - Date.parse(t)) / 1000;
const rate = r => r == null ? '–' : (r < 9.95 ? r.toFixed(1) : r.toFixed(0)) + '/s';
const sum = o => Object.values(o || {}).reduce((a, b) => a + b, 0);
const oldest = q => q.length ? ', the oldest for ' + age(q.oldest_wait_seconds) : '';
const plural = (n, noun) => n + ' ' + noun + (n === 1 ? '' : 's');

function stateOf(b) {
  let word = b.health;
  if (b.admin !== 'ready') word = b.health === 'down' ? b.admin + ', down' : b.admin;
  if (b.backup) word += ', backup';
  if (b.last_resort) word += ', last resort';
  const kind = b.health === 'down' ? 'down' : b.health === 'up' && b.admin === 'ready' ? 'up' : 'wait';
  return {word, kind};
}
function why(b) {
  let reason = b.reason || '';
  const p = b.last_probe;
  if (p && !p.ok && p.error && !reason.includes(p.error)) reason += (reason ? '; ' : '') + 'probe: ' + p.error;
  return reason;
}

// ---- tables that change only the cells that have changed ----

function el(name, attrs, ...children) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attrs || {})) {
    if (k === 'class') e.className = v; else if (k.startsWith('on')) e.addEventListener(k.slice(2), v); else e.setAttribute(k, v);
  }
  for (const c of children) e.append(c);
  return e;
}

// A Table has columns {title, text(row), sort(row), cls(row), num, wide, mid, bar(row), node(row)}: wide and mid go on narrow screens.
class Table {
  constructor(id, columns) {
    this.id = id; this.columns = columns; this.rows = new Map(); this.order = '';
    this.body = el('tbody');
    this.heads = columns.map((c, i) => {
      const th = el('th', {scope: 'col', class: (c.num ? 'n ' : '') + (c.wide ? 'wide' : c.mid ? 'mid' : '')});
      if (c.sort || c.text) th.append(el('button', {type: 'button', onclick: () => this.sortBy(i)}, c.title)); else th.append(c.title);
      return th;
    });
    this.root = el('div', {class: 'scroll'}, el('table', {}, el('thead', {}, el('tr', {}, ...this.heads)), this.body));
  }
  sortBy(i) {
    const s = sorts.get(this.id);
    sorts.set(this.id, s && s.i === i ? {i, down: !s.down} : {i, down: !!this.columns[i].num});
    render();
  }
  update(items, key) {
    const s = sorts.get(this.id);
    this.heads.forEach((th, i) => {
      if (s && s.i === i) th.setAttribute('aria-sort', s.down ? 'descending' : 'ascending'); else th.removeAttribute('aria-sort');
    });
    if (s) {
      const c = this.columns[s.i], of = c.sort || c.text;
      items = [...items].sort((a, b) => {
        const x = of(a), y = of(b);
        const d = typeof x === 'number' ? x - y : String(x).localeCompare(String(y), undefined, {numeric: true});
        return s.down ? -d : d;
      });
    }
    const keys = items.map(key);
    const wanted = new Set(keys);
    for (const [k, r] of this.rows) if (!wanted.has(k)) { r.tr.remove(); this.rows.delete(k); }
    items.forEach((item, i) => {
      let r = this.rows.get(keys[i]);
      if (!r) {
        r = {tr: el('tr'), cells: []};
        for (const c of this.columns) {
          const text = document.createTextNode('');
          const td = el('td', {}, el('bdi', {}, text));
          r.cells.push({td, text, was: '', cls: null, size: ''});
          r.tr.append(td);
        }
        this.rows.set(keys[i], r);
      }
      this.columns.forEach((c, n) => {
        const cell = r.cells[n];
        const cls = (c.num ? 'n ' : '') + (c.wide ? 'wide ' : c.mid ? 'mid ' : '') + (c.cls ? c.cls(item) : '');
        if (cls !== cell.cls) { cell.td.className = cls; cell.cls = cls; }
        if (c.node) {
          const stamp = c.stamp(item);
          if (stamp !== cell.was) { cell.td.replaceChildren(c.node(item)); cell.was = stamp; }
          return;
        }
        const text = c.text(item);
        if (text !== cell.was) { cell.text.data = text; cell.was = text; }
        if (c.bar) {
          const size = Math.round(100 * Math.min(1, c.bar(item))) + '% 100%';
          if (size !== cell.size) { cell.td.style.backgroundSize = size; cell.size = size; }
        }
      });
    });
    const order = keys.join('\n');
    if (order !== this.order) {
      keys.forEach(k => this.body.append(this.rows.get(k).tr));
      this.order = order;
    }
  }
}

function spark(points, errors) {
  const ns = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(ns, 'svg');
  svg.setAttribute('class', 'spark');
  svg.setAttribute('viewBox', '0 0 60 16');
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('role', 'img');
  const most = Math.max(1, ...points), from = 60 - points.length;
  svg.setAttribute('aria-label', 'connections of ten minutes, at most ' + most + ' in ten seconds');
  const title = document.createElementNS(ns, 'title');
  title.textContent = 'new connections, ten minutes; at most ' + most + ' in 10 s';
  const line = document.createElementNS(ns, 'polyline');
  line.setAttribute('points', points.map((v, i) => (from + i) + ',' + (15 - 14 * v / most).toFixed(1)).join(' '));
  svg.append(title, line);
  const bad = errors.map((v, i) => v ? 'M' + (from + i) + ' 16v-3h1v3z' : '').join('');
  if (bad) { const p = document.createElementNS(ns, 'path'); p.setAttribute('d', bad); svg.append(p); }
  return svg;
}

// ---- asking lb ----

async function ask(path, options) {
  const headers = token ? {Authorization: 'Bearer ' + token} : {};
  const r = await fetch(path, {...options, headers: {...headers, ...(options && options.headers)}, credentials: 'omit'});
  if (!r.ok) {
    let text = r.statusText;
    try { text = (await r.json()).error || text; } catch { /* no JSON */ }
    throw Object.assign(new Error(text), {status: r.status});
  }
  return r;
}
const get = async path => (await ask(path)).json();
const change = (method, path, body) => ask(path, {method, headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body)});
const poolPath = p => '/v1/pools/' + encodeURIComponent(p);
const backendPath = (p, b) => poolPath(p) + '/backends/' + encodeURIComponent(b);

async function poll() {
  const start = performance.now();
  if (!document.hidden) {
    try {
      status = await get('/v1/status');
      if (Date.now() - historyUntil > historyInterval * 1000 + 500) await loadHistory();
      await loadEvents();
      if (tab === 'sessions' || tab === 'clients') await loadLists();
      failures = 0;
      $('offline').hidden = true;
      render();
    } catch (e) {
      if (++failures > 1) {
        $('offline').hidden = false;
        $('offline').textContent = 'lb does not answer: ' + e.message + '. What follows is as it was.';
      }
    }
  }
  setTimeout(poll, Math.min(5000, Math.max(1000, 8 * (performance.now() - start))));
}

async function loadHistory() {
  const h = await get('/v1/history');
  historyInterval = h.interval_seconds;
  historyUntil = Math.max(Date.parse(h.until) || 0, Date.now() - historyInterval * 900);
  history = new Map(h.backends.map(b => [b.pool + '\n' + b.name, b]));
}

async function loadEvents() {
  const text = await (await ask(lastEvent ? '/v1/events?after=' + lastEvent : '/v1/events?last=300')).text();
  for (const line of text.split('\n')) {
    if (!line) continue;
    const e = JSON.parse(line);
    if (e.id > lastEvent) { lastEvent = e.id; events.unshift(e); }
  }
  events.length = Math.min(events.length, 500);
}

let sessions = null, clients = null, refused = '';
async function loadLists() {
  try {
    if (tab === 'sessions') sessions = await get('/v1/sessions?limit=500');
    else clients = await get('/v1/clients?limit=100');
    refused = '';
  } catch (e) {
    if (e.status !== 401 && e.status !== 403) throw e;
    refused = e.message;
  }
}

// ---- changes, each asked back ----

function question(title, text, yes, label, value, secret) {
  return new Promise(resolve => {
    const d = $('ask');
    $('ask-title').textContent = title;
    $('ask-text').textContent = text;
    $('ask-error').textContent = '';
    $('ask-yes').textContent = yes;
    $('ask-label').hidden = !label;
    $('ask-label').firstElementChild.textContent = label || '';
    const input = $('ask-input');
    input.type = secret ? 'password' : 'text';
    input.value = value || '';
    const end = v => { d.onclose = null; d.close(); resolve(v); };
    $('ask-no').onclick = () => end(null);
    d.onclose = () => resolve(null);
    d.querySelector('form').onsubmit = e => { e.preventDefault(); end(label ? input.value : true); };
    d.showModal();
    if (label) input.select(); else $('ask-no').focus();
  });
}
async function doIt(f) {
  try { await f(); status = await get('/v1/status'); render(); } catch (e) {
    await question('lb refused it', e.message, 'Close');
  }
}

async function setAdmin(p, b, state) {
  const name = p.name + '/' + b.name;
  const others = p.backends.filter(x => x !== b && x.selectable).length;
  const left = others ? plural(others, 'backend') + ' of ' + p.name + ' ' + (others === 1 ? 'takes' : 'take') + ' its share.' : 'No other backend of ' + p.name + ' takes connections!';
  const text = {
    drain: `It gets no new connection. Its ${plural(b.active, 'session')} may finish. ${left}`,
    maint: `It gets no new connection and is not probed. Its ${plural(b.active, 'session')} may finish. ${left}`,
    ready: 'It gets new connections again as soon as it is up.',
  }[state];
  const verb = {drain: 'Drain ', maint: 'Take off for maintenance: ', ready: 'Make ready: '}[state];
  if (await question(verb + name + '?', text, verb.split(/[ :]/)[0])) await doIt(() => change('PUT', backendPath(p.name, b.name) + '/admin', {state}));
}
async function setWeight(p, b) {
  const v = await question('Weight of ' + p.name + '/' + b.name, `It is ${b.weight}, in the config ${b.configured_weight}. 0 takes no new connections.`, 'Set', 'Weight, 0 to 1000', String(b.weight));
  if (v === null) return;
  await doIt(() => {
    if (!/^\d+$/.test(v.trim())) throw new Error('"' + v + '" is no weight; write a whole number from 0 to 1000');
    return change('PUT', backendPath(p.name, b.name) + '/weight', {weight: Number(v)});
  });
}
async function restart(p, s) {
  if (await question(`Restart ${p.name}/${s.slot}?`, `A new worker is started and must be ready; then the one of pid ${s.pid} finishes its sessions and ends.`, 'Restart')) {
    await doIt(() => change('POST', poolPath(p.name) + '/restart', {slot: s.slot, no_wait: true}));
  }
}
async function restartPool(name) {
  const p = status.pools.find(x => x.name === name);
  if (!p || !p.workers) return;
  if (await question(`Restart all workers of ${name}?`, `${plural(p.workers.slots.length, 'worker')}, one after the other: each successor is ready before the worker that it replaces finishes its sessions and ends. The first is a canary: if it fails, nothing is replaced.`, 'Restart')) {
    await doIt(() => change('POST', poolPath(name) + '/restart', {no_wait: true}));
  }
}
async function kill(s) {
  if (await question('Close session ' + s.id + '?', `The connection of ${s.client} to ${s.pool}/${s.backend || '–'} is closed at once.`, 'Close it')) {
    await doIt(() => change('POST', '/v1/sessions/kill', {id: s.id}));
  }
}

// ---- what is shown ----

const tables = new Map();
function table(id, columns) {
  if (!tables.has(id)) tables.set(id, new Table(id, columns()));
  return tables.get(id);
}
const matches = (...texts) => !filter || texts.some(t => String(t).toLowerCase().includes(filter));
const hist = (p, b) => history.get(p + '\n' + b) || history.get(p + '\n' + b.split('.')[0]);

function listenerColumns() {
  return [
    {title: 'Listener', text: l => l.name},
    {title: 'Addresses', text: l => l.addresses.join(' '), wide: true},
    {title: 'To', text: l => l.split ? Object.entries(l.split).map(([p, w]) => '→ ' + p + ' ' + w).join('  ') : '→ ' + l.pool},
    {title: 'Active', num: true, sort: l => l.active, text: l => l.max_conns ? l.active + ' of ' + l.max_conns : String(l.active), cls: l => l.max_conns ? 'bar' : '', bar: l => l.max_conns ? l.active / l.max_conns : 0},
    {title: 'Rate', num: true, sort: l => l.connections_per_second || 0, text: l => rate(l.connections_per_second)},
    {title: 'Refused', num: true, sort: l => sum(l.refused), text: l => String(sum(l.refused)), cls: l => sum(l.refused) ? 'wait' : ''},
    {title: 'In', num: true, wide: true, sort: l => l.bytes_in, text: l => bytes(l.bytes_in)},
    {title: 'Out', num: true, wide: true, sort: l => l.bytes_out, text: l => bytes(l.bytes_out)},
  ];
}

function backendColumns(pool) {
  const columns = [
    {title: 'Backend', text: b => b.name, sort: b => b.name},
    {title: 'State', text: b => stateOf(b).word, cls: b => 'state ' + stateOf(b).kind, sort: b => ({down: 0, wait: 1, up: 2})[stateOf(b).kind]},
    {title: 'For', num: true, sort: b => since(b.since), text: b => age(since(b.since))},
    {title: 'Weight', num: true, mid: true, sort: b => b.weight, text: b => b.weight === b.configured_weight ? String(b.weight) : b.weight + ' (config ' + b.configured_weight + ')', cls: b => b.weight === b.configured_weight ? '' : 'wait'},
    {title: 'Share', num: true, wide: true, sort: b => b.share, text: b => b.share ? (100 * b.share).toFixed(1) + ' %' : '–'},
    {title: 'Active', num: true, sort: b => b.active, text: b => b.max_conns ? b.active + ' of ' + b.max_conns : String(b.active), cls: () => 'bar', bar: b => b.max_conns ? b.active / b.max_conns : b.active / (pool.most || 1)},
    {title: 'Rate', num: true, mid: true, sort: b => b.connections_per_second || 0, text: b => rate(b.connections_per_second)},
    {title: 'Errors', num: true, mid: true, sort: b => sum(b.connect_errors), text: b => String(sum(b.connect_errors)), cls: b => sum(b.connect_errors) ? 'wait' : ''},
    {title: '1st byte p50', num: true, wide: true, sort: b => b.first_byte ? b.first_byte.p50_seconds : 0, text: b => secs(b.first_byte && b.first_byte.p50_seconds)},
    {title: 'p99', num: true, mid: true, sort: b => b.first_byte ? b.first_byte.p99_seconds : 0, text: b => secs(b.first_byte && b.first_byte.p99_seconds)},
    {title: 'Ten minutes', wide: true, stamp: b => { const h = hist(pool.name, b.name); return h ? h.connections.join() + '/' + h.errors.join() : ''; },
      node: b => { const h = hist(pool.name, b.name); return h ? spark(h.connections, h.errors) : ''; }},
    {title: 'Why', cls: () => 'why', text: why},
  ];
  if (token) columns.push({title: '', cls: () => 'do', stamp: b => b.admin, node: b => {
    const f = document.createDocumentFragment();
    const now = () => { const p = status.pools.find(x => x.name === pool.name); return [p, p && p.backends.find(x => x.name === b.name)]; };
    const button = (text, act) => f.append(el('button', {type: 'button', onclick: () => { const [p, x] = now(); if (x) act(p, x); }}, text));
    if (b.admin !== 'ready') button('ready', (p, x) => setAdmin(p, x, 'ready'));
    if (b.admin !== 'drain') button('drain', (p, x) => setAdmin(p, x, 'drain'));
    if (b.admin !== 'maint') button('maint', (p, x) => setAdmin(p, x, 'maint'));
    button('weight', setWeight);
    return f;
  }});
  return columns;
}

const crashes = s => sum(s.exits) - ((s.exits || {}).stopped || 0);
function workerColumns(pool) {
  const columns = [
    {title: 'Worker', text: w => w.label, sort: w => w.slot},
    {title: 'State', text: w => w.state, cls: w => 'state ' + (w.state === 'up' ? 'up' : ['failed', 'silent', 'aborting', 'killing'].includes(w.state) ? 'down' : 'wait')},
    {title: 'PID', num: true, mid: true, sort: w => w.pid, text: w => w.pid ? String(w.pid) : '–'},
    {title: 'For', num: true, mid: true, sort: w => since(w.since), text: w => Date.parse(w.since) > 0 ? age(since(w.since)) : '–'},
    {title: 'CPU', num: true, mid: true, sort: w => w.usage ? w.usage.cpu : 0, text: w => w.usage ? Math.round(100 * w.usage.cpu) + ' %' : '–'},
    {title: 'Memory', num: true, sort: w => w.usage ? w.usage.memory_bytes : 0, text: w => w.usage ? bytes(w.usage.memory_bytes) : '–'},
    {title: 'Version', wide: true, text: w => w.backend || '–'},
    {title: 'Crashes', num: true, sort: crashes, text: w => String(crashes(w)), cls: w => crashes(w) ? 'wait' : ''},
    {title: 'Restarts', num: true, wide: true, sort: w => w.restarts || 0, text: w => String(w.restarts || 0)},
    {title: 'Why, and last exit', cls: () => 'why', text: w => (w.reason || '') + (w.text ? '; it says: ' + w.text : '') +
      (w.last_exit ? (w.reason ? '; ' : '') + 'last exit ' + age(since(w.last_exit.time)) + ' ago: ' + w.last_exit.reason +
        (w.last_exit.lines.length ? ': ' + w.last_exit.lines[w.last_exit.lines.length - 1] : '') : '')},
  ];
  if (token) columns.push({title: '', cls: () => 'do', stamp: w => w.key + w.pid, node: w => w.retired || !w.pid ? '' :
    el('button', {type: 'button', onclick: () => restart({name: pool}, w)}, 'restart')});
  return columns;
}

function workerRows(w) {
  const rows = [];
  for (const s of w.slots) {
    rows.push({...s, label: String(s.slot), key: 's' + s.slot});
    if (s.next) rows.push({...s.next, label: s.slot + ' next', key: 'n' + s.slot, retired: true});
  }
  w.retired.forEach(r => rows.push({...r, label: r.slot + ' was', key: 'r' + r.pid, retired: true}));
  return rows;
}

function wrong() {
  const list = [];
  const add = (kind, what, text, command) => list.push({kind, what, text, command});
  if (status.stopping) add('wait', 'lb is stopping', 'it accepts nobody, and sessions may finish', 'lb conns');
  const r = status.last_reload;
  if (r && r.error) add('down', 'last reload refused', age(since(r.tried)) + ' ago: ' + r.error, 'lb check -f FILE');
  if (status.sessions >= status.max_sessions * 0.9) add('wait', 'sessions', status.sessions + ' of ' + status.max_sessions, 'lb clients');
  for (const p of status.pools) {
    if (p.backends.length && !p.selectable) add('down', p.name, 'no backend takes connections', 'lb status ' + p.name);
    if (p.queue.length) add('wait', p.name, p.queue.length + ' of ' + p.queue.size + ' wait for a slot' + oldest(p.queue), 'lb status ' + p.name);
    for (const b of p.backends) {
      const name = p.name + '/' + b.name;
      if (b.health === 'down' && b.admin !== 'maint') add('down', name, 'down for ' + age(since(b.since)) + (why(b) ? ': ' + why(b) : ''), 'lb status ' + p.name);
      else if (b.admin !== 'ready' && since(b.since) > 600) add('wait', name, b.admin + ' for ' + age(since(b.since)) + (b.reason ? ': ' + b.reason : ''), 'lb ready ' + name);
      else if (b.max_conns && b.active >= b.max_conns) add('wait', name, 'at its limit of ' + plural(b.max_conns, 'connection'), 'lb set-limit ' + name + ' N');
    }
    for (const s of p.workers ? p.workers.slots : []) {
      if (s.state === 'failed') add('down', p.name + '/' + s.slot, 'worker died ' + s.quick_deaths + ' times in a row: ' + (s.last_exit ? s.last_exit.reason : s.reason), 'lb logs ' + p.name + '/' + s.slot);
    }
  }
  return list.sort((a, b) => (a.kind === 'down' ? 0 : 1) - (b.kind === 'down' ? 0 : 1));
}

let wrongWas = '';
function renderWrong() {
  const list = wrong();
  const shown = list.slice(0, 8);
  const text = JSON.stringify([shown, list.length]);
  if (text === wrongWas) return;
  wrongWas = text;
  if (!list.length) { $('wrong').replaceChildren(el('p', {}, '● nothing is wrong')); return; }
  const ul = el('ul');
  for (const x of shown) ul.append(el('li', {class: x.kind}, el('b', {}, el('bdi', {}, x.what)), ' ', el('bdi', {}, x.text), ' ', el('code', {}, x.command)));
  if (list.length > shown.length) ul.append(el('li', {}, 'and ' + (list.length - shown.length) + ' more'));
  $('wrong').replaceChildren(ul);
}

const cards = new Map();
function card(parent, id, title) {
  let c = cards.get(id);
  if (!c) {
    c = {head: el('span'), tools: el('span', {class: 'tools'}), body: el('div')};
    c.root = el('section', {class: 'card', 'aria-label': title}, el('header', {}, el('h2', {}, el('bdi', {}, title)), c.head, c.tools), c.body);
    cards.set(id, c);
    $(parent).append(c.root);
  }
  c.seen = true;
  return c;
}
function put(c, ...nodes) { if (nodes.length !== c.body.childNodes.length || nodes.some((n, i) => n !== c.body.childNodes[i])) c.body.replaceChildren(...nodes); }

function render() {
  if (!status) return;
  $('process').textContent = `${status.version}, pid ${status.pid}, up ${age(status.uptime_seconds)}, ${status.sessions} of ${plural(status.max_sessions, 'session')}` +
    (status.stopping ? ', stopping' : '');
  document.title = (status.pools.some(p => p.backends.some(b => b.health === 'down' && b.admin !== 'maint')) ? '● ' : '') + 'lb';
  renderWrong();
  for (const c of cards.values()) c.seen = false;
  const problems = $('problems').checked;
  if (tab === 'pools') {
    const ls = problems ? [] : status.listeners.filter(l => matches(l.name, l.pool, l.addresses.join(' ')));
    if (ls.length) {
      const c = card('listeners', 'listeners', 'Listeners'), t = table('listeners', listenerColumns);
      t.update(ls, l => l.name);
      put(c, t.root);
    }
    for (const p of status.pools) {
      const whole = matches(p.name);
      const bs = p.backends.filter(b => (whole || matches(b.name, b.address, stateOf(b).word, why(b))) && (!problems || stateOf(b).kind !== 'up'));
      const ws = (p.workers ? workerRows(p.workers) : []).filter(w => (whole || matches(w.label, w.state, w.pid, w.reason, w.text || '')) && (!problems || w.state !== 'up'));
      if (!bs.length && !ws.length && (problems || !whole)) continue;
      const c = card('pools', 'pool ' + p.name, p.name);
      const f = p.first_byte;
      const head = `${p.balance}${p.handoff && p.handoff !== 'off' ? ', handoff ' + p.handoff : ''} · ${p.selectable} of ${plural(p.backends.length, 'backend')} selectable · ${p.active} active` +
        (p.queue.size ? ` · ${p.queue.length} of ${p.queue.size} queued` + oldest(p.queue) : '') + (f ? ` · first byte p50 ${secs(f.p50_seconds)}, p99 ${secs(f.p99_seconds)}` : '') +
        (p.workers && p.workers.restarting ? ` · restarting, ${p.workers.done} of ${p.workers.total}` : '');
      if (c.head.textContent !== head) c.head.textContent = head;
      if (token && p.workers && !c.tools.firstChild) c.tools.append(el('button', {type: 'button', onclick: () => restartPool(p.name)}, 'restart all'));
      const shared = {name: p.name, most: 0};
      const t = table('backends ' + p.name, () => backendColumns(shared));
      t.pool = t.pool || shared;
      t.pool.most = Math.max(1, ...p.backends.map(b => b.active));
      t.update(bs, b => b.name);
      const nodes = [t.root];
      if (ws.length) {
        const w = table('workers ' + p.name, () => workerColumns(p.name));
        w.update(ws, x => x.key);
        nodes.push(w.root);
      }
      put(c, ...nodes);
    }
  } else if (tab === 'events') {
    const c = card('tab-events', 'events', 'Events'), t = table('events', () => [
      {title: 'Time', text: e => new Date(e.time).toLocaleTimeString(), sort: e => e.id},
      {title: 'Level', text: e => e.level, cls: e => e.level === 'error' ? 'down' : e.level === 'warn' ? 'wait' : ''},
      {title: 'What', text: e => e.subject},
      {title: 'Happened', cls: () => 'why', text: e => e.text},
    ]);
    t.update(events.filter(e => matches(e.subject, e.text, e.level) && (!problems || e.level !== 'info')), e => e.id);
    put(c, t.root);
  } else if (tab === 'sessions') {
    const c = card('tab-sessions', 'sessions', 'Sessions');
    if (!sessions) { put(c, el('p', {class: 'note'}, refused || 'loading…')); } else {
      const t = table('sessions', () => [
        {title: 'Session', text: s => s.id, sort: s => Number(s.id)}, {title: 'Client', text: s => s.client}, {title: 'Listener', wide: true, text: s => s.listener},
        {title: 'Backend', text: s => s.pool + '/' + (s.backend || '–')}, {title: 'State', text: s => s.state},
        {title: 'Age', num: true, sort: s => s.age_seconds, text: s => age(s.age_seconds)}, {title: 'Idle', num: true, sort: s => s.idle_seconds, text: s => age(s.idle_seconds)},
        {title: 'In', num: true, sort: s => s.bytes_in, text: s => bytes(s.bytes_in)}, {title: 'Out', num: true, sort: s => s.bytes_out, text: s => bytes(s.bytes_out)},
        {title: '', cls: () => 'do', stamp: s => s.id, node: s => el('button', {type: 'button', onclick: () => kill(s)}, 'close')},
      ]);
      c.head.textContent = sessions.sessions.length < sessions.total ? 'the oldest ' + sessions.sessions.length + ' of ' + sessions.total : plural(sessions.total, 'session');
      t.update(sessions.sessions.filter(s => matches(s.client, s.pool + '/' + s.backend, s.state, s.listener)), s => s.id);
      put(c, t.root);
    }
  } else {
    const c = card('tab-clients', 'clients', 'Clients');
    if (!clients) { put(c, el('p', {class: 'note'}, refused || 'loading…')); } else {
      const t = table('clients', () => [
        {title: 'Client', text: x => x.address}, {title: 'Sessions', num: true, sort: x => x.sessions, text: x => String(x.sessions)},
        {title: 'Oldest', num: true, sort: x => x.oldest_seconds, text: x => age(x.oldest_seconds)},
        {title: 'Rate', num: true, sort: x => x.bytes_per_second || 0, text: x => x.bytes_per_second == null ? '–' : bytes(Math.round(x.bytes_per_second)) + '/s'},
        {title: 'In', num: true, sort: x => x.bytes_in, text: x => bytes(x.bytes_in)}, {title: 'Out', num: true, sort: x => x.bytes_out, text: x => bytes(x.bytes_out)},
      ]);
      c.head.textContent = clients.clients.length < clients.total ? 'the first ' + clients.clients.length + ' of ' + clients.total : plural(clients.total, 'address').replace('addresss', 'addresses');
      t.update(clients.clients.filter(x => matches(x.address)), x => x.address);
      put(c, t.root);
    }
  }
  for (const [id, c] of cards) if (!c.seen) { c.root.remove(); cards.delete(id); }
}

// ---- keys and buttons ----

function show(name) {
  tab = name;
  for (const b of document.querySelectorAll('[role=tab]')) {
    b.setAttribute('aria-selected', b.dataset.tab === name);
    $('tab-' + b.dataset.tab).hidden = b.dataset.tab !== name;
  }
  if (status) (tab === 'sessions' || tab === 'clients' ? loadLists().catch(() => {}) : Promise.resolve()).then(render);
}
$('tabs').addEventListener('click', e => { if (e.target.dataset.tab) show(e.target.dataset.tab); });
$('filter').addEventListener('input', e => { filter = e.target.value.trim().toLowerCase(); render(); });
$('problems').addEventListener('change', render);
$('unlock').addEventListener('click', async () => {
  if (token) { token = ''; locked(); return; }
  const v = await question('Token', 'The token of admin.token_file lets this page change what runs. It is forgotten when the page is closed.', 'Use it', 'Token', '', true);
  if (!v) return;
  token = v.trim();
  try { await get('/v1/sessions?limit=1'); } catch (e) {
    token = '';
    await question('The token is not taken', e.message, 'Close');
  }
  locked();
});
function locked() {
  $('unlock').textContent = token ? 'Changes on' : 'Read-only';
  tables.clear(); cards.forEach(c => c.root.remove()); cards.clear();
  sessions = clients = null;
  show(tab);
}
document.addEventListener('keydown', e => {
  if ($('ask').open || e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.target.tagName === 'INPUT' && e.target.type !== 'checkbox') { if (e.key === 'Escape') { e.target.value = ''; filter = ''; e.target.blur(); render(); } return; }
  const n = '1234'.indexOf(e.key);
  if (n >= 0 && e.key.length === 1) show(['pools', 'sessions', 'clients', 'events'][n]);
  else if (e.key === '/') { e.preventDefault(); $('filter').focus(); }
  else if (e.key === 'p') { $('problems').click(); }
});
document.addEventListener('visibilitychange', () => { if (!document.hidden) historyUntil = 0; });
poll();
